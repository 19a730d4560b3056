"""Config files: reading a file, its bases and its layers, and merging them.

A config is a `.py` LazyConfig, or a `.yaml` with a `_base_` (one file or a list of files, paths
relative to it) and the keys that it changes. Bases are applied in order: new sections are added,
keys of existing sections are changed.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import OmegaConf

from v2idetr.config.merge import merge
from v2idetr.config.yaml_text import parse_yaml


@dataclass
class ConfigFile:
    """A config file merged with its bases, read once for several runs.

    Errors are collected, not raised; `load_config` reports them.

    Attributes:
        path: the config file.
        parts: cache of the contents of `.py` files by path, which configs share.
        content: merged config, references unresolved.
        problems: error messages about the content of files.
        unreadable: error messages about files that cannot be read.
    """

    path: Path
    parts: dict[Path, dict[str, Any]] = field(default_factory=dict)
    content: dict[str, Any] = field(init=False)
    problems: list[str] = field(init=False, default_factory=list)
    unreadable: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.content = self._on_its_bases(self.path, ())

    def with_layers(self, layers: Iterable[Path]) -> ConfigFile:
        """A copy with layers applied: a `.yaml` changes keys, a `.py` is applied like a base."""
        config = copy.copy(self)
        config.problems, config.unreadable = [*self.problems], [*self.unreadable]
        for layer in layers:
            config.content = config._with_layer(layer)
        return config

    def _on_its_bases(self, path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
        """Content of a file merged with its bases; `chain`: the files that refer to it."""
        if path.resolve() in chain:
            return self._unusable(f"{path}: its _base_ leads back to itself.")
        if not path.is_file():
            named_by = f" (named by {chain[-1]})" if chain else ""
            return self._unusable(f"{path}: no such config file{named_by}.")
        if path.suffix == ".py":
            return self._python(path.resolve())
        if path.suffix not in (".yaml", ".yml"):
            return self._unusable(f"{path}: a config file ends in .py, .yaml or .yml.")
        layer = self._yaml(path)
        bases = layer.pop("_base_", None)
        if bases is None:
            return layer
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            return self._unusable(f"{path}: _base_ must be a file name or a list of file names.")
        config: dict[str, Any] = {}
        for base in bases:
            part = self._on_its_bases(path.parent / base, (*chain, path.resolve()))
            config = self._with(config, part, str(path.parent / base))
        return merge(config, layer, source=str(path), problems=self.problems)

    def _with_layer(self, path: Path) -> dict[str, Any]:
        if not path.is_file() or path.suffix not in (".yaml", ".yml", ".py"):
            others = sorted(o.name for o in path.parent.glob("*") if o.suffix in (".yaml", ".py"))
            there = f" Layers in {path.parent}: {', '.join(others)}." if others else ""
            return self._unusable(f"{path}: no such layer; a layer is a .yaml or .py file.{there}")
        if path.suffix == ".py":
            return self._with(self.content, self._python(path.resolve()), str(path))
        layer = self._yaml(path)
        if "_base_" in layer:
            return self._unusable(f"{path}: has a _base_, so it is a complete config, not a layer.")
        return merge(self.content, layer, source=str(path), problems=self.problems)

    def _with(self, config: dict[str, Any], part: dict[str, Any], source: str) -> dict[str, Any]:
        """`config` with the new sections of `part` added and its existing ones changed."""
        new = {name: section for name, section in part.items() if name not in config}
        changes = {name: section for name, section in part.items() if name in config}
        return merge({**config, **new}, changes, source=source, problems=self.problems)

    def _python(self, path: Path) -> dict[str, Any]:
        if path not in self.parts:
            try:
                with _import_kept():
                    config = LazyConfig.load(str(path))
            except Exception as error:  # a config file is a program: it can raise anything
                reason = f"{type(error).__name__}: {error}"
                return self._unusable(f"{path}: cannot be loaded: {reason}")
            content = OmegaConf.to_container(config, resolve=False)
            self.parts[path] = self._plain(content, "", path)
        return self.parts[path]

    def _yaml(self, path: Path) -> dict[str, Any]:
        try:
            layer = parse_yaml(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
            return self._unusable(f"{path}: cannot be read as YAML: {error}")
        if layer is not None and not isinstance(layer, dict):
            return self._unusable(f"{path}: must hold a mapping of sections.")
        return layer or {}

    def _unusable(self, sentence: str) -> dict[str, Any]:
        self.unreadable.append(sentence)
        return {}

    def _plain(self, value: Any, key: str, path: Path) -> Any:
        """Plain data with targets as dotted names; other objects are reported as problems."""
        if isinstance(value, dict):
            return {
                str(name): _target_name(item)
                if name == "_target_"
                else self._plain(item, f"{key}.{name}" if key else str(name), path)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._plain(item, f"{key}.{index}", path) for index, item in enumerate(value)]
        if value is None or type(value) in (bool, int, float, str):
            return value
        self.problems.append(
            f"{path}: {key} is a {type(value).__name__}, which a saved config cannot hold; "
            "use L(...), a number or a text."
        )
        return None


@contextlib.contextmanager
def _import_kept() -> Iterator[None]:
    """Undo the patch of `builtins.__import__` that LazyConfig.load leaves when a file fails."""
    original = builtins.__import__
    try:
        yield
    finally:
        builtins.__import__ = original


def _target_name(target: Any) -> str:
    return target if isinstance(target, str) else _convert_target_to_string(target)
