"""Strict merging: a layer may only change keys that its base has, and only to values of the same
type.

All functions here work on plain containers (dict, list, scalars) and collect what is wrong in a
list of sentences, so that the user sees every error of a config at once.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Iterator
from typing import Any

from detectron2.utils.registry import locate

from v2idetr.engine.config_yaml import parse_yaml

KIND_NAMES: dict[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    float: "a number",
    int: "an integer",
    bool: "true or false",
    type(None): "null",
}

# Keys that may be null, with the type of their value otherwise. Arguments of L(...) nodes may be
# null where the # callable's own signature says so.
OPTIONAL_KEYS: dict[str, type] = {
    "data.negative_share": float,
    "teacher.max_iter": int,
    "teacher.batch_size": int,
    "distillation.tfd": dict,
    "distillation.cqd": dict,
}

# Mappings from names of the user's choice: given as a whole, they replace the base's.
OPEN_MAPPINGS = frozenset({"data.test"})


def merge(base: dict, layer: dict, *, source: str, problems: list[str], prefix: str = "") -> dict:
    """`base` with the keys of `layer` changed; neither is modified.

    Args:
        base: the config so far.
        layer: nested mapping of the keys to change.
        source: where the layer comes from (a file name, "command line"), for the messages.
        problems: gets one sentence per unknown key or wrong type.
        prefix: full name of the mapping that `base` is ("" for the root).
    """
    result = dict(base)
    for name, new in layer.items():
        key = f"{prefix}.{name}" if prefix else name
        if name in base:
            result[name] = _replace(base[name], new, key, base, source=source, problems=problems)
        elif _parameter(base, name):
            result[name] = _replace(
                _default(base, name), new, key, base, source=source, problems=problems
            )
        else:
            problems.append(f"{source}: {key} does not exist.{_did_you_mean(key, base, prefix)}")
    return result


def apply_override(config: dict, override: str, problems: list[str]) -> dict:
    """`config` with one `a.b.c=value` of the command line applied (`+a.b=value` adds a key).

    Values are read as YAML; where the key holds text, what looks like a number or a truth value
    stays text.
    """
    source = f"override {override!r}"
    text_key, equals, text = override.partition("=")
    adding = text_key.startswith("+")
    key = text_key.removeprefix("+").strip()
    if not equals or not key or "" in key.split("."):
        problems.append(f"{source}: write key=value, for example train.max_iter=500.")
        return config
    try:
        value = parse_yaml(text)
    except ValueError as error:
        problems.append(f"{source}: the value is not YAML: {error}")
        return config
    parent_name, _, name = key.rpartition(".")
    parent = _parent(config, parent_name, create=adding)
    if parent is None or not (adding or name in parent or _parameter(parent, name)):
        problems.append(f"{source}: {key} does not exist.{_did_you_mean(key, config, '')}")
        return config
    if adding and name in parent:
        problems.append(f"{source}: {key} exists already; drop the + to change it.")
        return config
    old = parent[name] if name in parent else _default(parent, name)
    if isinstance(old, str) and (isinstance(value, bool | int | float) or not text.strip()):
        value = text.strip()
    if not adding:
        value = _replace(old, value, key, parent, source=source, problems=problems)
    return _with(config, key.split("."), value)


def select(config: Any, key: str) -> Any:
    """The value at a dotted key (list items by index). KeyError if there is none."""
    for part in key.split("."):
        if isinstance(config, dict) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            raise KeyError(key)
    return config


def all_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Full dotted names of all keys of a nested config, sections included."""
    items = config.items() if isinstance(config, dict) else ()
    if isinstance(config, list):
        items = ((str(index), item) for index, item in enumerate(config))
    for name, value in items:
        key = f"{prefix}.{name}" if prefix else name
        yield key
        yield from all_keys(value, key)


def nearest_key(key: str, known: list[str]) -> str | None:
    """The known key that a mistyped one most probably means; None if nothing is near."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if near:
        return near[0]
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(key.rpartition(".")[2], list(leaves), n=1, cutoff=0.75)
    return leaves[near[0]] if near else None


def signature_of(target: str) -> inspect.Signature | None:
    """Signature of the callable with this dotted name; None if there is none."""
    try:
        return inspect.signature(locate(target))
    except Exception:  # whatever importing a stranger's module raises; the target check reports it
        return None


def is_interpolation(value: Any) -> bool:
    """Whether a value is a reference such as "${model.dim}", whose type is not known yet."""
    return isinstance(value, str) and "${" in value


def _replace(old: Any, new: Any, key: str, node: dict, *, source: str, problems: list[str]) -> Any:
    """The value that replaces `old` at `key`, or `old` and a problem if the type is wrong."""
    if is_interpolation(old) or is_interpolation(new):
        return copy.deepcopy(new)
    if new is None:
        if old is None or key in OPTIONAL_KEYS or _may_be_none(node, key.rpartition(".")[2]):
            return None
        problems.append(f"{source}: {key} cannot be null; it is {_describe(old)}.")
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        changes_target = "_target_" in new and new["_target_"] != old.get("_target_")
        if key in OPEN_MAPPINGS or changes_target:
            return copy.deepcopy(new)
        return merge(old, new, source=source, problems=problems, prefix=key)
    expected = OPTIONAL_KEYS.get(key) if old is None else type(old)
    if expected is None:
        return copy.deepcopy(new)
    like = "" if old is None else f", as {_short(old)}"
    if not _fits(new, expected):
        kind = KIND_NAMES.get(expected, expected.__name__)
        problems.append(f"{source}: {key} must be {kind}{like}, but is {_describe(new)}.")
        return old
    if isinstance(old, list) and not _items_fit(old, new):
        problems.append(f"{source}: {key} must be a list like {_short(old)}, but is {_short(new)}.")
        return old
    return float(new) if expected is float else copy.deepcopy(new)


def _parent(config: dict, key: str, *, create: bool) -> dict | None:
    """The mapping at a key (a list by its indices); with `create`, {} if there is none yet."""
    try:
        parent = select(config, key) if key else config
    except KeyError:
        return {} if create else None
    if isinstance(parent, list) and not create:
        return {str(index): item for index, item in enumerate(parent)}
    return parent if isinstance(parent, dict) else None


def _with(config: Any, path: list[str], value: Any) -> Any:
    """Copy of a nested config in which the value at `path` is replaced or added."""
    if not path:
        return value
    if isinstance(config, list):
        index = int(path[0])
        return [*config[:index], _with(config[index], path[1:], value), *config[index + 1 :]]
    return {**config, path[0]: _with(config.get(path[0], {}), path[1:], value)}


def _fits(value: Any, expected: type) -> bool:
    if expected is float:
        return type(value) in (int, float)
    return type(value) is expected  # exact: True is not an int here


def _items_fit(old: list, new: list) -> bool:
    kinds = {type(item) for item in old}
    if len(kinds) != 1 or not kinds <= {bool, int, float, str}:
        return True
    (kind,) = kinds
    return all(_fits(item, kind) or is_interpolation(item) for item in new)


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


def _did_you_mean(key: str, config: dict, prefix: str) -> str:
    near = nearest_key(key, list(all_keys(config, prefix)))
    return f" Did you mean {near}?" if near else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(value: Any) -> str:
    return f"{_short(value)} ({type(value).__name__})"
