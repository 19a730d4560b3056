"""Signatures of callables by their dotted names, read from source: nothing is imported for them.

Importing what a config names takes seconds of torch's and torchvision's time, which a config that
is refused, or a list of rows, need not spend. What the source alone does not settle (a
decorator, an inherited `__init__` from elsewhere) is imported and asked.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.utils.registry import locate

MOST_STEPS = 8  # from a name to where it is defined, through imports and base classes
COMPUTED = object()  # in the place of a default that only running the code would tell
_Definition = ast.ClassDef | ast.FunctionDef


class _NotPlainError(Exception):
    """The source does not settle it."""


@functools.cache
def signature_of(target: str) -> inspect.Signature | None:
    """Signature of the callable with this dotted name; None if there is none.

    Annotations are words. Where the name stands for no callable at all, importing it says why, see
    `config_targets.check_targets`.
    """
    signature = read_signature(target)
    if signature is not None:
        return signature
    try:
        return inspect.signature(locate(target))
    except Exception:  # whatever importing a stranger's module raises; the target check reports it
        return None


@functools.cache
def read_signature(target: str) -> inspect.Signature | None:
    """Signature of a callable by its source alone; None where that does not settle it."""
    try:
        return _read(*_find(target, MOST_STEPS), MOST_STEPS)
    except (_NotPlainError, OSError, SyntaxError, ValueError, ImportError):
        return None


def _find(target: str, steps: int) -> tuple[str, bool, list[_Definition]]:
    """Module, whether it is a package, and definitions from the module down to the target."""
    module, path, names = _module_of(target)
    is_package = path.name == "__init__.py"
    tree: Any = _parsed(path)
    found: list[_Definition] = []
    for index, name in enumerate(names):
        node = _last(tree, name)
        if isinstance(node, ast.ImportFrom) and index == 0 and steps:
            alias = next(a for a in node.names if (a.asname or a.name) == name)
            source = _absolute(node, module, is_package)
            return _find(".".join([source, alias.name, *names[1:]]), steps - 1)
        if not isinstance(node, _Definition):
            raise _NotPlainError
        found.append(node)
        tree = node
    if not found:
        raise _NotPlainError
    return module, is_package, found


def _read(module: str, is_package: bool, found: list[_Definition], steps: int) -> inspect.Signature:
    *above, node = found
    if isinstance(node, ast.FunctionDef):
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if decorators != (["staticmethod"] if above else []):
            raise _NotPlainError
        return inspect.Signature(list(_parameters(node.args)))
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if node.keywords or _last(node, "__new__") is not None:
        raise _NotPlainError
    if decorators:
        return _dataclass(node, decorators)
    init = _last(node, "__init__")
    if isinstance(init, ast.FunctionDef) and not init.decorator_list:
        return inspect.Signature(list(_parameters(init.args))[1:])
    if init is not None or len(node.bases) != 1 or not steps:
        raise _NotPlainError
    base = _find(f"{module}.{ast.unparse(node.bases[0])}", MOST_STEPS)
    return _read(*base, steps - 1)


def _dataclass(node: ast.ClassDef, decorators: list[str]) -> inspect.Signature:
    (decorator,) = decorators if len(decorators) == 1 else [""]
    if decorator.partition("(")[0] != "dataclass" or node.bases:
        raise _NotPlainError
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if "kw_only=True" in decorator:
        kind = inspect.Parameter.KEYWORD_ONLY
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    return inspect.Signature(
        [
            inspect.Parameter(
                ast.unparse(part.target),
                kind,
                default=_value(part.value),
                annotation=ast.unparse(part.annotation),
            )
            for part in fields
        ]
    )


def _parameters(arguments: ast.arguments) -> Iterator[inspect.Parameter]:
    kinds = inspect.Parameter
    positional = [(a, kinds.POSITIONAL_ONLY) for a in arguments.posonlyargs]
    positional += [(a, kinds.POSITIONAL_OR_KEYWORD) for a in arguments.args]
    without = len(positional) - len(arguments.defaults)
    defaults = [None] * without + list(arguments.defaults)
    for (argument, kind), default in zip(positional, defaults, strict=True):
        yield _parameter(argument, kind, default)
    if arguments.vararg is not None:
        yield _parameter(arguments.vararg, kinds.VAR_POSITIONAL, None)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _parameter(argument, kinds.KEYWORD_ONLY, default)
    if arguments.kwarg is not None:
        yield _parameter(arguments.kwarg, kinds.VAR_KEYWORD, None)


def _parameter(argument: ast.arg, kind: Any, default: ast.expr | None) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    annotation = ast.unparse(argument.annotation) if argument.annotation else empty
    return inspect.Parameter(argument.arg, kind, default=_value(default), annotation=annotation)


def _value(default: ast.expr | None) -> Any:
    """A default; `COMPUTED` for one that is not written out."""
    if default is None:
        return inspect.Parameter.empty
    try:
        return ast.literal_eval(default)
    except ValueError:
        return COMPUTED


def _module_of(target: str) -> tuple[str, Path, list[str]]:
    """The module of a dotted name, its file, and the names inside; packages are not imported."""
    first, *names = target.split(".")
    spec = importlib.util.find_spec(first)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise _NotPlainError
    module, path = first, Path(spec.origin)
    while names and path.name == "__init__.py":
        folder = path.parent / names[0]
        inner = next(
            (p for p in (folder / "__init__.py", folder.with_suffix(".py")) if p.is_file()), None
        )
        if inner is None or _last(_parsed(path), names[0]) is not None:
            break
        module, path = f"{module}.{names.pop(0)}", inner
    return module, path, names


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def _last(tree: Any, name: str) -> ast.stmt | None:
    """The statement in a module's or class's body that says what a name stands for.

    Raises:
        _NotPlainError: there is none here, but a star import or a condition may define it.
    """
    found: ast.stmt | None = None
    unclear = False
    for node in tree.body:
        if isinstance(node, _Definition | ast.AsyncFunctionDef):
            found = node if node.name == name else found
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.asname or alias.name for alias in node.names]
            unclear |= "*" in names
            found = node if name in names else found
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = node if name in map(ast.unparse, targets) else found
        elif not isinstance(node, ast.Expr | ast.Pass):
            unclear |= name in ast.unparse(node)
    if unclear:
        raise _NotPlainError
    return found


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module that a `from ... import` names."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    above = parts[: len(parts) - node.level + is_package]
    return ".".join([*above, *([node.module] if node.module else [])])
