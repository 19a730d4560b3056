"""Strict merging: a layer may only change keys that its base has, to values of the same type.

All functions here work on plain containers (dict, list, scalars) and collect what is wrong in a
list of sentences, so that the user sees every error of a config at once.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

from v2idetr.config.key_types import KIND_NAMES, OPTIONAL_KEYS
from v2idetr.config.keys import (
    all_keys,
    dereference,
    is_reference,
    nearest_key,
    replaced,
    select,
)
from v2idetr.config.signatures import signature_of
from v2idetr.config.yaml_text import parse_yaml

# Mappings from names of the user's choice: given as a whole, they replace the base's.
OPEN_MAPPINGS = frozenset({"data.test"})
NULLS = ("null", "Null", "NULL", "~")  # as YAML has them


def merge(base: dict, layer: dict, *, source: str, problems: list[str]) -> dict:
    """`base` with the keys of `layer` changed; neither is modified.

    Args:
        base: the config so far.
        layer: nested mapping of the keys to change.
        source: where the layer comes from, for the messages.
        problems: gets one sentence per unknown key or wrong type.
    """
    return _Merge(base, source, problems).mapping(base, layer, "")


def apply_override(config: dict, override: str, problems: list[str]) -> dict:
    """`config` with one `a.b.c=value` of the command line applied (`+a.b=value` adds a key).

    Values are read as YAML. Where the key holds text, everything after the first `=` is that text,
    spaces around it apart, unless it is quoted: "#", ": " and "[" mean nothing there.
    """
    merging = _Merge(config, f"override {override!r}", problems)
    text_key, equals, text = override.partition("=")
    adding = text_key.startswith("+")
    key = text_key.removeprefix("+").strip()
    if not equals or not key or "" in key.split("."):
        merging.problem("write key=value, for example train.max_iter=500.")
        return config
    parent_key, _, name = key.rpartition(".")
    parent = _parent(config, parent_key, create=adding)
    if parent is None and not adding and _is_null(config, parent_key):
        merging.problem(
            f"{parent_key} is null; give it as a whole: {parent_key}={{_target_: ...}}."
        )
    elif parent is None or not (adding or name in parent or _parameter(parent, name)):
        merging.unknown(key, config, "")
    elif adding and name in parent:
        merging.problem(f"{key} exists already; drop the + to change it.")
    else:
        old = dereference(parent[name] if name in parent else _default(parent, name), config)
        try:
            value = _read_value(text, is_text=_holds_text(old, parent, name))
        except ValueError as error:
            merging.problem(f"the value is not YAML: {error}")
            return config
        return replaced(config, key, value if adding else merging.value(old, value, key, parent))
    return config


@dataclass(frozen=True)
class _Merge:
    """One layer on its way into a config.

    Attributes:
        root: the whole config, in which references are looked up.
        source, problems: see `merge`.
    """

    root: dict
    source: str
    problems: list[str]

    def mapping(self, base: dict, layer: dict, prefix: str) -> dict:
        """`base`, which is at the key `prefix`, changed by `layer`."""
        result = dict(base)
        for name, new in layer.items():
            key = f"{prefix}.{name}" if prefix else name
            if name in base:
                old = dereference(base[name], self.root)
                result[name] = self.value(old, new, key, base)
            elif _parameter(base, name):
                result[name] = self.value(_default(base, name), new, key, base)
            else:
                self.unknown(key, base, prefix)
        return result

    def value(self, old: Any, new: Any, key: str, node: dict) -> Any:
        """What replaces `old` at `key` of `node`; `old`, and a problem, if the type is wrong."""
        if is_reference(old) or is_reference(new):
            return copy.deepcopy(new)
        if new is None:
            if old is None or key in OPTIONAL_KEYS or _may_be_none(node, key.rpartition(".")[2]):
                return None
            self.problem(f"{key} cannot be null; it is {_describe(old)}.")
            return old
        if isinstance(old, dict) and isinstance(new, dict):
            changes_target = "_target_" in new and new["_target_"] != old.get("_target_")
            if key in OPEN_MAPPINGS or changes_target:
                return copy.deepcopy(new)
            return self.mapping(old, new, key)
        expected = OPTIONAL_KEYS.get(key) if old is None else type(old)
        if expected is None:
            return copy.deepcopy(new)
        if not _fits(new, expected):
            kind = KIND_NAMES.get(expected, expected.__name__)
            like = "" if old is None else f", as {_short(old)}"
            self.problem(f"{key} must be {kind}{like}, but is {_describe(new)}.")
            return old
        if isinstance(old, list) and not _items_fit(old, new):
            self.problem(f"{key} must be a list like {_short(old)}, but is {_short(new)}.")
            return old
        return float(new) if expected is float else copy.deepcopy(new)

    def unknown(self, key: str, known: dict, prefix: str) -> None:
        """A key that does not exist, with the nearest of those below `prefix` that do."""
        near = nearest_key(key, list(all_keys(known, prefix)))
        self.problem(f"{key} does not exist.{f' Did you mean {near}?' if near else ''}")

    def problem(self, sentence: str) -> None:
        """Note what is wrong with this layer."""
        self.problems.append(f"{self.source}: {sentence}")


def _holds_text(old: Any, node: dict, name: str) -> bool:
    """Whether a key of a node holds text, or null in the place of text."""
    if old is not None:
        return isinstance(old, str) and not is_reference(old)
    parameter = _parameter(node, name)
    return parameter is not None and str(parameter.annotation) in ("str", "str | None")


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


def _parent(config: dict, key: str, *, create: bool) -> dict | None:
    """The mapping at a key (a list by its indices); with `create`, {} if there is none yet."""
    try:
        parent = dereference(select(config, key), config) if key else config
    except KeyError:
        return {} if create else None
    if isinstance(parent, list) and not create:
        return {str(index): item for index, item in enumerate(parent)}
    return parent if isinstance(parent, dict) else None


def _is_null(config: dict, key: str) -> bool:
    try:
        return dereference(select(config, key), config) is None
    except KeyError:
        return False


def _fits(value: Any, expected: type) -> bool:
    if expected is float:
        return type(value) in (int, float)
    return type(value) is expected  # exact: True is not an int here


def _items_fit(old: list, new: list) -> bool:
    kinds = {type(item) for item in old}
    if len(kinds) != 1 or not kinds <= {bool, int, float, str}:
        return True
    (kind,) = kinds
    return all(_fits(item, kind) or is_reference(item) for item in new)


def _parameter(node: dict, name: str) -> inspect.Parameter | None:
    """The parameter that an argument of an L(...) node binds to; None without such a one."""
    target = node.get("_target_")
    signature = signature_of(target) if isinstance(target, str) else None
    parameter = signature.parameters.get(name) if signature else None
    is_named = parameter is not None and parameter.kind not in (
        inspect.Parameter.VAR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return parameter if is_named else None


def _default(node: dict, name: str) -> Any:
    """The default of a parameter if it is a number, word or truth value; else None: any type."""
    parameter = _parameter(node, name)
    is_plain = parameter is not None and type(parameter.default) in (bool, int, float, str)
    return parameter.default if parameter is not None and is_plain else None


def _may_be_none(node: dict, name: str) -> bool:
    parameter = _parameter(node, name)
    return parameter is not None and (
        parameter.default is None or "None" in str(parameter.annotation)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(value: Any) -> str:
    return f"{_short(value)} ({type(value).__name__})"
