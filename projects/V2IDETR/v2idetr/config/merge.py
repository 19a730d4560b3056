"""Strict merging: a layer may only change keys that its base has, to values of the same type.

All functions work on plain containers (dict, list, scalars) and collect error messages in a list,
so that the user sees all errors of a config at once.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

from v2idetr.config.keys import dereference, is_reference, nearest_key, walk
from v2idetr.config.run_keys import KIND_NAMES, fits, kind_unless_null
from v2idetr.config.targets import arguments_of, no_such_argument, parameter_of
from v2idetr.config.yaml_text import parse_yaml

# Mappings with user-defined names: a layer replaces them as a whole.
OPEN_MAPPINGS = frozenset({"data.test"})
# Mappings of nodes with user-defined names: a layer may add nodes.
NODES = frozenset({"stages"})
NULLS = ("null", "Null", "NULL", "~")  # YAML's


class _Path(dict):
    """One level of the dotted key of an override: {name: rest}."""


class _Text(str):
    """An unparsed value of the command line."""


def merge(base: dict, layer: dict, *, source: str, problems: list[str]) -> dict:
    """`base` with the keys of `layer` changed; neither is modified.

    Args:
        base: the config so far.
        layer: nested mapping of the keys to change.
        source: origin of the layer, for the messages.
        problems: list to which one sentence per unknown key or wrong type is added.
    """
    return _Merge(base, source, problems).mapping(base, layer, "")


def apply_override(config: dict, override: str, problems: list[str]) -> dict:
    """`config` with one `a.b.c=value` of the command line applied (`+a.b=value` adds a key).

    Values are read as YAML. For a key that holds text, an unquoted value is taken literally after
    the first `=`, without surrounding spaces: "#", ": " and "[" have no meaning there.
    """
    key, equals, text = override.partition("=")
    names = key.removeprefix("+").strip().split(".")
    merging = _Merge(config, f"override {override!r}", problems, adding=key.startswith("+"))
    if not equals or "" in names:
        merging.problem("write key=value, for example train.max_iter=500.")
        return config
    change: Any = _Text(text)
    for name in reversed(names):
        change = _Path({name: change})
    return merging.mapping(config, change, "")


@dataclass(frozen=True)
class _Merge:
    """The merge of one layer or override into a config.

    Attributes:
        root: the whole config, in which references are looked up.
        source, problems: see `merge`.
        adding: whether the last key of an override must be new.
    """

    root: dict
    source: str
    problems: list[str]
    adding: bool = False

    def mapping(self, base: dict, layer: dict, key: str) -> dict:
        """`base`, the mapping at `key`, changed by `layer`."""
        result = dict(base)
        for name, new in layer.items():
            full = f"{key}.{name}" if key else name
            parameter = parameter_of(base, name)
            if name in base:
                if self.adding and isinstance(new, _Text):
                    self.problem(f"{full} exists already; drop the + to change it.")
                    continue
                old = dereference(base[name], self.root)
            elif parameter is not None:
                old = _default(parameter)
            elif self.adding:
                old = {} if isinstance(new, _Path) else None
            elif key in NODES and isinstance(new, dict) and "_target_" in new:
                old = None
            else:
                self.unknown(full, new, base)
                continue
            result[name] = self.value(old, new, full, parameter)
        return result

    def value(self, old: Any, new: Any, key: str, parameter: inspect.Parameter | None) -> Any:
        """The new value at `key`; `old`, with a problem reported, if `new` does not fit."""
        if isinstance(new, _Path):
            return self.part(old, new, key)
        if isinstance(new, _Text):
            try:
                new = _read_value(new, is_text=_holds_text(old, parameter))
            except ValueError as error:
                self.problem(f"the value is not YAML: {error}")
                return old
        if is_reference(old) or is_reference(new):
            return new
        if new is None:
            if old is None or kind_unless_null(key) or _may_be_none(parameter):
                return None
            self.problem(f"{key} cannot be null; it is {_describe(old)}.")
            return old
        if isinstance(old, dict) and isinstance(new, dict):
            changes_target = "_target_" in new and new["_target_"] != old.get("_target_")
            if key in OPEN_MAPPINGS or changes_target:
                return copy.deepcopy(new)
            return self.mapping(old, new, key)
        kind = kind_unless_null(key) if old is None else None
        expected = type(old) if old is not None else kind and kind.type
        if expected is None:
            return copy.deepcopy(new)
        if not fits(new, expected):
            name = KIND_NAMES.get(expected, expected.__name__)
            like = "" if old is None else f", as {_short(old)}"
            self.problem(f"{key} must be {name}{like}, but is {_describe(new)}.")
            return old
        if kind is not None and kind.holds and not set(kind.holds) <= new.keys():
            self.null(key)
            return old
        if isinstance(old, list) and not _items_fit(old, new):
            self.problem(f"{key} must be a list like {_short(old)}, but is {_short(new)}.")
            return old
        return float(new) if expected is float else copy.deepcopy(new)

    def part(self, old: Any, path: _Path, key: str) -> Any:
        """`old`, the value at `key`, with the part at `path` changed."""
        if isinstance(old, dict):
            return self.mapping(old, path, key)
        items = {
            str(index): item for index, item in enumerate(old if isinstance(old, list) else ())
        }
        if path.keys() <= items.keys():
            return [*self.mapping(items, path, key).values()]
        if old is None:
            self.null(key)
        else:
            (name,) = path
            self.unknown(f"{key}.{name}", path[name], {})
        return old

    def unknown(self, key: str, new: Any, node: dict) -> None:
        """Report a key that `node` lacks, with the most similar argument or key."""
        parent, _, name = key.rpartition(".")
        if arguments_of(node):
            self.problem(no_such_argument(parent, node, name))
            return
        while isinstance(new, _Path):
            ((name, new),) = new.items()
            key = f"{key}.{name}"
        near = nearest_key(key, [known for known, _ in walk(self.root)])
        self.problem(f"{key} does not exist.{f' Did you mean {near}?' if near else ''}")

    def null(self, key: str) -> None:
        """Report a change to a part of a node that is null."""
        kind = kind_unless_null(key)
        keys = (kind.holds if kind is not None else ()) or ("_target_",)
        whole = ", ".join(f"{name}: ..." for name in keys)
        self.problem(f"{key} is null; give it as a whole: {key}={{{whole}}}.")

    def problem(self, sentence: str) -> None:
        """Report an error of this layer."""
        self.problems.append(f"{self.source}: {sentence}")


def _holds_text(old: Any, parameter: inspect.Parameter | None) -> bool:
    """Whether a key holds text, or null where its parameter takes text."""
    if old is not None:
        return isinstance(old, str) and not is_reference(old)
    return parameter is not None and _annotation(parameter) in ("str", "str | None")


def _read_value(text: str, *, is_text: bool) -> Any:
    """A value of the command line; ValueError where it is not YAML."""
    literal = text.strip()
    try:
        value = parse_yaml(text)
    except ValueError:
        if is_text:
            return literal
        raise
    quoted = len(literal) > 1 and literal[0] == literal[-1] and literal[0] in "\"'"
    if isinstance(value, str):
        return value if quoted else literal  # YAML would end the text before " #"
    return literal if is_text and literal not in NULLS else value


def _items_fit(old: list, new: list) -> bool:
    kinds = {type(item) for item in old}
    if len(kinds) != 1 or not kinds <= {bool, int, float, str}:
        return True
    (kind,) = kinds
    return all(fits(item, kind) or is_reference(item) for item in new)


def _default(parameter: inspect.Parameter) -> Any:
    """A parameter's default if it is a number, string or boolean; else None: any type."""
    is_plain = type(parameter.default) in (bool, int, float, str)
    return parameter.default if is_plain else None


def _may_be_none(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and (
        parameter.default is None or "None" in _annotation(parameter).replace("Optional", "None")
    )


def _annotation(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    return kind if isinstance(kind, str) else inspect.formatannotation(kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(value: Any) -> str:
    return f"{_short(value)} ({type(value).__name__})"
