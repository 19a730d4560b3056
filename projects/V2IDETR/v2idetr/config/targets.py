"""Every `_target_` of a config names installed code, and its other keys bind to it."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

from detectron2.utils.registry import locate

from v2idetr.config.signatures import read_signature

_PLAIN_BUILTINS = ("builtins.dict", "builtins.list", "builtins.tuple", "builtins.set")


def check_targets(config: dict[str, Any], problems: list[str]) -> None:
    """Each `_target_` must name a callable of an installed library, and the other keys bind to it.

    The standard library is refused because a YAML from somewhere could otherwise name `os.system`;
    a config still chooses which installed code is built, so run only configs that you trust.
    """
    for key, node in _nodes(config, ""):
        target = node["_target_"]
        where = f"{key}._target_" if key else "_target_"
        if not isinstance(target, str):
            problems.append(f"{where} must be the dotted name of a callable, but is {target!r}.")
            continue
        if _is_standard_library(target):
            problems.append(f"{where}: {target} belongs to Python itself; a config cannot call it.")
            continue
        signature = read_signature(target) or _imported_signature(where, target, problems)
        if signature is not None:
            _check_arguments(key, target, signature, node, problems)


def _nodes(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All L(...) nodes with their full keys, outer ones first."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield key, value
        for name, item in value.items():
            yield from _nodes(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nodes(item, f"{key}.{index}")


def _is_standard_library(target: str) -> bool:
    return target.split(".")[0] in sys.stdlib_module_names and target not in _PLAIN_BUILTINS


def _imported_signature(where: str, target: str, problems: list[str]) -> inspect.Signature | None:
    """Signature of a target that the source alone does not settle; None if it has none."""
    try:
        found = locate(target)
    except Exception as error:  # importing a stranger's module can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problems.append(f"{where}: {target} cannot be imported: {reason}")
        return None
    if not callable(found):
        problems.append(f"{where}: {target} {'is not callable' if found else 'does not exist'}.")
        return None
    if _is_standard_library(f"{getattr(found, '__module__', '') or ''}.x"):
        problems.append(f"{where}: {target} belongs to Python itself; a config cannot call it.")
        return None
    try:
        return inspect.signature(found)
    except (TypeError, ValueError):
        return None  # some C callables have none


def _check_arguments(
    key: str,
    target: str,
    signature: inspect.Signature,
    node: dict[str, Any],
    problems: list[str],
) -> None:
    """The keys must be parameters of the callable, all required parameters among them."""
    parameters = signature.parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = {
        name: p
        for name, p in parameters.items()
        if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    for name in node.keys() - named.keys() - {"_target_"}:
        if not takes_any:
            near = difflib.get_close_matches(name, list(named), n=1)
            hint = f" Did you mean {key}.{near[0]}?" if near else f" It takes {', '.join(named)}."
            problems.append(f"{key}.{name}: {target} has no such argument.{hint}")
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in node:
            problems.append(f"{key}: {target} needs the argument {name}.")
