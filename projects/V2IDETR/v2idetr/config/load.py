"""Strict LazyConfig: files, layers and overrides to one plain, resolved, checked config.

A config is a `.py` LazyConfig, or a `.yaml` with a `_base_` (one file or a list of files, `.py` or
`.yaml`, paths relative to it) and the keys that it changes. What it names must exist, values keep
their type, every `_target_` must be importable and its arguments must bind; all errors are shown
together and nothing is built before. The result holds only mappings, lists, words, numbers, truth
values and null, so it can be saved, compared and read again.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc import ErrorDuringImport  # which `instantiate` lets through
from typing import Any

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from v2idetr.atomic_file import write_text_atomically
from v2idetr.config.checks import validate_config
from v2idetr.config.keys import dereferenced, is_reference, select
from v2idetr.config.merge import apply_override, merge
from v2idetr.config.targets import check_targets
from v2idetr.config.yaml_text import dump_yaml, parse_yaml

# Keys that change neither the weights nor their order of events: a resumed run may change them.
NEUTRAL_KEYS = (
    "train.output_dir",
    "train.num_workers",
    "data.cache_mib",
    "train.log_period",
    "train.checkpoint_period",
    "train.tensorboard",
)
# Where the data lies does not matter either: its content is recorded, see run_folder.record.
_DATA_PATH = re.compile(r"data\.(train|val|test\..+)\.(json|image_root)")


class ConfigError(ValueError):
    """Everything that is wrong with a config, one sentence each, in `problems`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        count = f"{len(self.problems)} error{'s' if len(self.problems) > 1 else ''}"
        super().__init__("\n  - ".join([f"the configuration has {count}:", *self.problems]))


@dataclass(frozen=True)
class ConfigFile:
    """A config file with its bases, read once for several runs.

    Attributes:
        path: of the file.
        content: merged, references unresolved.
        problems: what it has wrong.
        unreadable: files that cannot be used.
    """

    path: Path
    content: dict[str, Any]
    problems: tuple[str, ...]
    unreadable: tuple[str, ...]


def read_config(path: Path, parts: dict[Path, dict[str, Any]] | None = None) -> ConfigFile:
    """A config file for `load_config` or `load_run_config`, which tell what is wrong with it.

    Args:
        path: of the file.
        parts: what its `.py` bases hold, filled and used: several files have some in common.
    """
    parts = {} if parts is None else parts
    problems: list[str] = []
    unreadable: list[str] = []
    content = _load_layers(path, (), problems, unreadable, parts)
    return ConfigFile(path, content, tuple(problems), tuple(unreadable))


def load_config(
    path: str | Path | ConfigFile,
    overrides: Sequence[str] = (),
    *,
    layers: Sequence[str | Path] = (),
) -> DictConfig:
    """Config file, layers on it and command-line overrides to the resolved config.

    Args:
        path: a `.py` LazyConfig or a `.yaml` file, or what `read_config` made of it.
        layers: `.yaml` files with keys to change, applied in this order before the overrides. They
            name no `_base_`, so that they fit on any config that has these keys.
        overrides: `a.b.c=value` changes a key, `+a.b.c=value` adds one; values are YAML.

    Raises:
        ConfigError: unreadable files, unknown keys (with the nearest known key), wrong types,
            targets that do not exist, arguments that do not bind, references that lead nowhere;
            all of them at once.
    """
    resolved, problems, _ = _load(path, overrides, layers)
    if problems:
        raise ConfigError(problems)
    return OmegaConf.create(resolved)


def load_run_config(
    path: str | Path | ConfigFile,
    overrides: Sequence[str],
    *,
    world_size: int,
    has_gpu: bool,
    layers: Sequence[str | Path] = (),
    training: bool = True,
) -> DictConfig:
    """`load_config` for a run of train_net.py: also has all keys of one, and they agree.

    Raises:
        ConfigError: what `load_config` and `validate_config` find, together.
    """
    plain = load_plain_run_config(
        path, overrides, world_size=world_size, has_gpu=has_gpu, layers=layers, training=training
    )
    return OmegaConf.create(plain)


def load_plain_run_config(
    path: str | Path | ConfigFile,
    overrides: Sequence[str],
    *,
    world_size: int,
    has_gpu: bool,
    layers: Sequence[str | Path] = (),
    training: bool = True,
) -> dict[str, Any]:
    """`load_run_config` as dicts and lists, which are made in a fraction of the time.

    Raises:
        ConfigError: see `load_run_config`.
    """
    resolved, problems, complete = _load(path, overrides, layers)
    if complete:
        problems += validate_config(
            resolved, world_size=world_size, has_gpu=has_gpu, training=training
        )
    if problems:
        raise ConfigError(problems)
    return resolved


def save_config(config: DictConfig, path: str | Path) -> None:
    """Write a resolved config as YAML, atomically; `load_config(path)` gives an equal config."""
    write_text_atomically(Path(path), dump_yaml(to_plain(config)))


def build(config: DictConfig, key: str) -> Any:
    """Instantiate the L(...) node, or list of nodes, at a dotted key.

    Raises:
        ValueError: a callable refused its arguments, or needs a library that is missing; names the
            key.
    """
    try:
        return instantiate(select(to_plain(config), key))
    except (TypeError, ValueError, ImportError, ErrorDuringImport) as error:
        said = str(error)  # which may name the key itself
        raise ValueError(said if said.startswith(f"{key}.") else f"{key}: {said}") from error


def to_plain(config: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """A resolved config as dicts and lists; one that is that already as it is."""
    if isinstance(config, dict):
        return config
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def fingerprint(config: DictConfig | dict[str, Any]) -> str:
    """Short hash of everything in a config that can change the weights (all but `NEUTRAL_KEYS`)."""
    text = json.dumps(sorted(_weight_relevant(to_plain(config)).items()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_keys(
    one: DictConfig, other: DictConfig, *, with_data_paths: bool = False
) -> list[str]:
    """ "key: old -> new" for each weight-relevant key that differs between two configs.

    `with_data_paths` also compares where the data lies.
    """
    old, new = (_weight_relevant(to_plain(c), with_data_paths) for c in (one, other))
    missing = "(not set)"
    return [
        f"{key}: {old.get(key, missing)} -> {new.get(key, missing)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing)
    ]


def _load(
    path: str | Path | ConfigFile, overrides: Sequence[str], layers: Sequence[str | Path]
) -> tuple[dict[str, Any], list[str], bool]:
    """The resolved config without what is wrong, what is wrong, and whether all files were read."""
    file = path if isinstance(path, ConfigFile) else read_config(Path(path))
    config, problems, unreadable = file.content, [*file.problems], [*file.unreadable]
    changes = [(str(layer), _load_layer(Path(layer), unreadable)) for layer in layers]
    if unreadable:  # what else is wrong would only be a consequence
        return {}, unreadable, False
    for source, change in changes:
        config = merge(config, change, source=source, problems=problems)
    for override in overrides:
        config = apply_override(config, override, problems)
    resolved = _resolve(config, problems)
    check_targets(resolved, problems)
    return resolved, problems, True


def _weight_relevant(config: dict[str, Any], with_data_paths: bool = False) -> dict[str, Any]:
    return {
        key: value
        for key, value in _leaves(config)
        if key not in NEUTRAL_KEYS and (with_data_paths or not _DATA_PATH.fullmatch(key))
    }


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{prefix}.{index}")
    else:
        yield prefix, value


def _load_layers(
    path: Path,
    chain: tuple[Path, ...],
    problems: list[str],
    unreadable: list[str],
    parts: dict[Path, dict[str, Any]],
) -> dict[str, Any]:
    """The file merged onto its bases, references unresolved.

    What the file has wrong goes to `problems`, files that cannot be used go to `unreadable`.
    """
    if path.resolve() in chain:
        unreadable.append(f"{path}: its _base_ leads back to itself.")
        return {}
    if not path.is_file():
        named_by = f" (named by {chain[-1]})" if chain else ""
        unreadable.append(f"{path}: no such config file{named_by}.")
        return {}
    if path.suffix == ".py":
        part = path.resolve()
        if part not in parts:
            parts[part] = _load_py(path, unreadable)
        return parts[part]
    if path.suffix not in (".yaml", ".yml"):
        unreadable.append(f"{path}: a config file ends in .py, .yaml or .yml.")
        return {}
    layer = _load_yaml(path, unreadable)
    bases = layer.pop("_base_", None)
    if bases is None:
        return layer
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        unreadable.append(f"{path}: _base_ must be a file name or a list of file names.")
        return {}
    config: dict[str, Any] = {}
    for base in bases:
        part = _load_layers(
            path.parent / base, (*chain, path.resolve()), problems, unreadable, parts
        )
        for section in config.keys() & part.keys():
            unreadable.append(f"{path}: two of its _base_ files define the section {section}.")
        config.update(part)
    return merge(config, layer, source=str(path), problems=problems)


def _load_layer(path: Path, unreadable: list[str]) -> dict[str, Any]:
    """The keys that a layer changes."""
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        others = sorted(other.name for other in path.parent.glob("*.yaml"))
        there = f" In {path.parent} there are {', '.join(others)}." if others else ""
        unreadable.append(
            f"{path}: a layer is a .yaml file, and there is none of this name.{there}"
        )
        return {}
    layer = _load_yaml(path, unreadable)
    if "_base_" in layer:
        unreadable.append(f"{path}: has a _base_, so it is a config of its own, not a layer.")
    return layer


def _load_py(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        with _import_kept():
            config = LazyConfig.load(str(path))
    except Exception as error:  # a config file is a program: it can raise anything
        reason = f"{type(error).__name__}: {error}"
        problems.append(f"{path}: cannot be loaded: {reason}")
        return {}
    return _plain(OmegaConf.to_container(config, resolve=False), "", str(path), problems)


def _load_yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        layer = parse_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
        problems.append(f"{path}: cannot be read as YAML: {error}")
        return {}
    if layer is None:
        return {}
    if not isinstance(layer, dict):
        problems.append(f"{path}: must hold a mapping of sections.")
        return {}
    return layer


@contextlib.contextmanager
def _import_kept() -> Iterator[None]:
    """Undo the patch of `builtins.__import__` that LazyConfig.load leaves when a file fails."""
    original = builtins.__import__
    try:
        yield
    finally:
        builtins.__import__ = original


def _plain(value: Any, key: str, source: str, problems: list[str]) -> Any:
    """Targets become their dotted names; anything else that is not plain data is a problem."""
    if isinstance(value, dict):
        return {
            str(name): _target_name(item)
            if name == "_target_"
            else _plain(item, f"{key}.{name}" if key else str(name), source, problems)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{key}.{i}", source, problems) for i, item in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    problems.append(
        f"{source}: {key} is a {type(value).__name__}, which a saved config cannot hold; "
        "describe it with L(...) or a word."
    )
    return None


def _target_name(target: Any) -> str:
    return target if isinstance(target, str) else _convert_target_to_string(target)


def _resolve(config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """References such as "${model.dim}" replaced by their values, each bad one reported."""
    with contextlib.suppress(KeyError):
        return dereferenced(config)
    node = OmegaConf.create(config)
    for key, value in list(_leaves(config)):
        if is_reference(value):
            try:
                OmegaConf.select(node, key, throw_on_resolution_failure=True)
            except OmegaConfBaseException as error:
                problems.append(f"{key}: the reference {value} fails: {str(error).splitlines()[0]}")
                OmegaConf.update(node, key, None)
    resolved = OmegaConf.to_container(node, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
