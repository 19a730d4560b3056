"""Signatures of the callables that `_target_` keys name, and checks of their arguments."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

from detectron2.utils.registry import locate

from v2idetr.config.keys import walk

_PLAIN_BUILTINS = ("builtins.dict", "builtins.list", "builtins.tuple", "builtins.set")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@functools.cache
def signature_of(target: str) -> inspect.Signature | None:
    """Signature of the callable with this dotted name, after importing it; None if it has none.

    The standard library is refused: an untrusted YAML could otherwise name `os.system`. A config
    still chooses which installed code is called, so run only configs that you trust.

    Raises:
        ValueError: there is no such callable, or a config cannot call it.
    """
    if _is_standard_library(target):
        raise ValueError(f"{target} belongs to Python itself; a config cannot call it.")
    try:
        found = locate(target)
    except Exception as error:  # importing a foreign module can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{target} cannot be imported: {reason}") from error
    if not callable(found):
        raise ValueError(f"{target} {'is not callable' if found else 'does not exist'}.")
    if _is_standard_library(f"{getattr(found, '__module__', '') or ''}.x"):
        raise ValueError(f"{target} belongs to Python itself; a config cannot call it.")
    try:
        return inspect.signature(found)
    except (TypeError, ValueError):
        return None  # some C callables have none


def parameter_of(node: Any, name: str) -> inspect.Parameter | None:
    """The parameter that a key of an L(...) node binds to; None if there is none."""
    return arguments_of(node).get(name)


def arguments_of(node: Any) -> dict[str, inspect.Parameter]:
    """The parameters of an L(...) node by name; {} for other values."""
    target = node.get("_target_") if isinstance(node, dict) else None
    try:
        signature = signature_of(target) if isinstance(target, str) else None
    except ValueError:  # reported by `check_targets`
        return {}
    return _named(signature) if signature else {}


def check_targets(config: dict[str, Any], problems: list[str]) -> None:
    """Check that each `_target_` can be imported and that the other keys bind to it."""
    for key, node in walk(config):
        if not isinstance(node, dict) or "_target_" not in node:
            continue
        target, where = node["_target_"], f"{key}._target_"
        if not isinstance(target, str):
            problems.append(f"{where} must be the dotted name of a callable, but is {target!r}.")
            continue
        try:
            signature = signature_of(target)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        if signature is None:
            continue
        named = _named(signature)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        for name in () if takes_any else node.keys() - named.keys() - {"_target_"}:
            problems.append(no_such_argument(key, node, name))
        for name, parameter in named.items():
            if parameter.default is parameter.empty and name not in node:
                problems.append(f"{key}: {target} needs the argument {name}.")


def no_such_argument(key: str, node: dict[str, Any], name: str) -> str:
    """Error message for a key of the L(...) node at `key` that is no parameter of its callable."""
    target, named = node["_target_"], arguments_of(node)
    near = difflib.get_close_matches(name, list(named), n=1)
    hint = f"Did you mean {key}.{near[0]}?" if near else f"It takes {', '.join(named)}."
    others = ", ".join(_families_with(name, node))
    return f"{key}.{name}: {target} has no such argument. {hint}{others and f' {others} has it.'}"


def _families_with(name: str, node: dict[str, Any]) -> Iterator[str]:
    """Public callables of sibling packages that take `name` and most other keys of a node."""
    above, _, own = node["_target_"].rpartition(".")[0].rpartition(".")
    packages = pkgutil.iter_modules(getattr(sys.modules.get(above), "__path__", ()))
    for package in (p.name for p in packages if "." in above and p.ispkg and p.name != own):
        with contextlib.suppress(ImportError):
            for public in getattr(importlib.import_module(f"{above}.{package}"), "__all__", ()):
                arguments = arguments_of({"_target_": f"{above}.{package}.{public}"})
                if name in arguments and len(arguments.keys() & node.keys()) > len(node) // 2:
                    yield f"{above}.{package}.{public}"


def _named(signature: inspect.Signature | None) -> dict[str, inspect.Parameter]:
    parameters = signature.parameters if signature else {}
    return {name: p for name, p in parameters.items() if p.kind in _NAMED}


def _is_standard_library(target: str) -> bool:
    return target.split(".")[0] in sys.stdlib_module_names and target not in _PLAIN_BUILTINS
