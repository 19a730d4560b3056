"""Dotted keys and references of a nested config of dicts and lists.

References are OmegaConf's, such as "${model.net.d}"; keys are looked up through them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_WHOLE = re.compile(r"\$\{[^{}]*\}")


def is_reference(value: Any) -> bool:
    """Whether the whole value is one reference: "${model.net.d}", "${oc.env:HOME}"."""
    return isinstance(value, str) and _WHOLE.fullmatch(value) is not None


def dereference(value: Any, root: dict) -> Any:
    """The value that a reference points to; any other value, or a broken reference, unchanged."""
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


def dereferenced(value: Any, root: dict, above: tuple[str, ...] = ()) -> Any:
    """Copy of a value with its references resolved.

    Args:
        value: a part of the config, or all of it.
        root: the whole config, in which references are looked up.
        above: the keys whose references are being followed.

    Raises:
        KeyError: a reference is broken, circular, or more than the name of a key; such ones are
            left to OmegaConf, which is a hundred times slower.
    """
    if isinstance(value, dict):
        return {name: dereferenced(item, root, above) for name, item in value.items()}
    if isinstance(value, list):
        return [dereferenced(item, root, above) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value

    def follow(match: re.Match) -> Any:
        if match[1] in above:
            raise KeyError(value)
        return dereferenced(select(root, match[1]), root, (*above, match[1]))

    whole = _REFERENCE.fullmatch(value)
    if whole is not None:
        return follow(whole)
    text = _REFERENCE.sub(lambda match: str(follow(match)), value)
    if "${" in text:
        raise KeyError(value)
    return text


def walk(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested config, each section before its own keys."""
    items = enumerate(value) if isinstance(value, list) else ()
    for name, item in value.items() if isinstance(value, dict) else items:
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key, item
        yield from walk(item, key)


def nearest_key(key: str, known: list[str]) -> str | None:
    """The known key most similar to a mistyped one; None if none is similar."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if near:
        return near[0]
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(key.rpartition(".")[2], list(leaves), n=1, cutoff=0.75)
    return leaves[near[0]] if near else None
