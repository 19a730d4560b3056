"""Dotted keys of a nested config of dicts and lists, whose values may refer to other keys.

A reference is OmegaConf's: "${model.net.d}". A key that leads through one is followed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def is_reference(value: Any) -> bool:
    """Whether a value stands for another one, such as "${model.net.d}" or "${oc.env:HOME}/x"."""
    return isinstance(value, str) and "${" in value


def dereference(value: Any, root: dict) -> Any:
    """The value that a reference to a key stands for; any other value, or a bad one, itself."""
    for _ in range(10):  # references to references; a circle ends here
        match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return value
        try:
            value = select(root, match[1])
        except KeyError:
            return value
    return value


def select(root: dict, key: str) -> Any:
    """The value at a dotted key (list items by index), not dereferenced. KeyError if none."""
    value: Any = root
    for part in key.split("."):
        value = dereference(value, root)
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(key)
    return value


def dereferenced(root: dict) -> dict:
    """Copy of a config with the values that its references to keys stand for.

    Raises:
        KeyError: a reference leads nowhere, in a circle, or is more than the name of a key: what
            that means is for OmegaConf to say.
    """
    return _dereferenced(root, root, ())


def replaced(root: dict, key: str, value: Any) -> dict:
    """Copy of a config with another value at a key; what is referred to on the way is copied."""
    return _replaced(root, key.split("."), value, root)


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


def _dereferenced(value: Any, root: dict, above: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _dereferenced(item, root, above) for name, item in value.items()}
    if isinstance(value, list):
        return [_dereferenced(item, root, above) for item in value]
    if not is_reference(value):
        return value
    match = _REFERENCE.fullmatch(value)
    if match is None or match[1] in above:
        raise KeyError(value)
    return _dereferenced(select(root, match[1]), root, (*above, match[1]))


def _replaced(node: Any, path: list[str], value: Any, root: dict) -> Any:
    if not path:
        return value
    node = dereference(node, root)
    if isinstance(node, list):
        index = int(path[0])
        return [*node[:index], _replaced(node[index], path[1:], value, root), *node[index + 1 :]]
    return {**node, path[0]: _replaced(node.get(path[0], {}), path[1:], value, root)}
