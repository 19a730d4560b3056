"""Strict LazyConfig: files, layers and overrides to one plain, resolved, checked config.

Keys must exist, values keep their type, every `_target_` must be importable and its arguments must
bind; all errors are reported together, before anything is built. The result is plain data
(mappings, lists, strings, numbers, booleans, null), so it can be saved, compared and read again.
Reading and merging of files: `files.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from pydoc import ErrorDuringImport  # which `instantiate` lets through
from typing import Any

from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from v2idetr.atomic_file import write_text_atomically
from v2idetr.config.checks import validate_config
from v2idetr.config.files import ConfigFile
from v2idetr.config.keys import dereferenced, select, walk
from v2idetr.config.merge import apply_override
from v2idetr.config.targets import check_targets
from v2idetr.config.yaml_text import dump_yaml

CONFIG_NAME = "config_name"  # ${config_name}: the name of the config file, without suffix
# Keys that have no effect on the weights: a resumed run may change them.
NEUTRAL_KEYS = (
    "train.output_dir",
    "train.num_workers",
    "data.cache_mib",
    "train.log_period",
    "train.checkpoint_period",
    "train.loggers",
    "train.sample_frames",
    "train.tensorboard",  # of runs that were begun before train.loggers
)
# Paths of the data have none either: a run records the data's content, see run_folder.record.
_DATA_PATH = re.compile(r"data\.(train|val|test\..+)\.(json|image_root)")


class ConfigError(ValueError):
    """All errors of a config; `problems` has one sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        count = f"{len(self.problems)} error{'s' if len(self.problems) > 1 else ''}"
        super().__init__("\n  - ".join([f"the configuration has {count}:", *self.problems]))


def load_config(
    path: str | Path | ConfigFile,
    overrides: Sequence[str] = (),
    *,
    layers: Sequence[str | Path] = (),
) -> DictConfig:
    """The resolved config of a config file, layers and command-line overrides.

    Args:
        path: a `.py` LazyConfig or a `.yaml` file, or a `ConfigFile`.
        layers: `.yaml` files with keys to change and `.py` parts, applied in this order before the
            overrides. They have no `_base_`, so that they apply to any config with these keys.
        overrides: `a.b.c=value` changes a key, `+a.b.c=value` adds one; values are YAML.

    Raises:
        ConfigError: unreadable files, unknown keys (with the nearest known key), wrong types,
            targets that do not exist, arguments that do not bind, broken references; all of them
            at once.
    """
    resolved, problems, _ = _load(path, overrides, layers)
    if problems:
        raise ConfigError(problems)
    return OmegaConf.create(resolved)


def load_run_config(
    path: str | Path | ConfigFile, overrides: Sequence[str], **options: Any
) -> DictConfig:
    """`load_plain_run_config` with the same options, as OmegaConf.

    Raises:
        ConfigError: see `load_plain_run_config`.
    """
    return OmegaConf.create(load_plain_run_config(path, overrides, **options))


def load_plain_run_config(
    path: str | Path | ConfigFile,
    overrides: Sequence[str],
    *,
    world_size: int,
    has_gpu: bool,
    layers: Sequence[str | Path] = (),
    training: bool = True,
) -> dict[str, Any]:
    """`load_config` for a run of train_net.py: all its keys are there and agree.

    Args:
        path, overrides, layers: see `load_config`.
        world_size, has_gpu, training: see `validate_config`.

    Returns:
        The config as dicts and lists, which are much quicker to build than OmegaConf's.

    Raises:
        ConfigError: all errors that `load_config` and `validate_config` find.
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
        ValueError: a callable rejected its arguments, or a library is missing; names the key.
    """
    try:
        return instantiate(select(to_plain(config), key))
    except (TypeError, ValueError, ImportError, ErrorDuringImport) as error:
        reason = str(error)
        raise ValueError(reason if reason.startswith(f"{key}.") else f"{key}: {reason}") from error


def to_plain(config: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """A resolved config as dicts and lists; dicts are returned unchanged."""
    if isinstance(config, dict):
        return config
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def fingerprint(config: DictConfig | dict[str, Any]) -> str:
    """Short hash of all keys that can change the weights (all but `NEUTRAL_KEYS` and paths)."""
    text = json.dumps(sorted(_weight_relevant(to_plain(config)).items()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_keys(
    one: DictConfig, other: DictConfig, *, with_data_paths: bool = False
) -> list[str]:
    """ "key: old -> new" for each weight-relevant key that differs between two configs.

    `with_data_paths` also compares the paths of the data.
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
    """The resolved config without its errors, the errors, and whether all files were read."""
    file = path if isinstance(path, ConfigFile) else ConfigFile(Path(path))
    file = file.with_layers(map(Path, layers))
    if file.unreadable:  # further errors would only be consequences
        return {}, file.unreadable, False
    config, problems = file.content, file.problems
    for override in overrides:
        config = apply_override(config, override, problems)
    resolved = _resolve({**config, CONFIG_NAME: file.path.stem}, problems)
    del resolved[CONFIG_NAME]
    check_targets(resolved, problems)
    return resolved, problems, True


def _weight_relevant(config: dict[str, Any], with_data_paths: bool = False) -> dict[str, Any]:
    """Values that can change the weights, by dotted key; empty mappings and lists count."""
    return {
        key: value
        for key, value in walk(config)
        if not (value and isinstance(value, dict | list))
        and key not in NEUTRAL_KEYS
        and (with_data_paths or not _DATA_PATH.fullmatch(key))
    }


def _resolve(config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """The config with references such as "${model.dim}" resolved; broken ones are reported."""
    with contextlib.suppress(KeyError):
        return dereferenced(config, config)
    try:
        node = OmegaConf.create(config)
    except OmegaConfBaseException as error:  # "${" without "}", of the key that it names
        key, reason = error.full_key, str(error).splitlines()[0]
        raise ConfigError([*problems, f"{key}: cannot be read as a reference: {reason}"]) from error
    for key, value in walk(config):
        if isinstance(value, str) and "${" in value:
            try:
                OmegaConf.select(node, key, throw_on_resolution_failure=True)
            except OmegaConfBaseException as error:
                problems.append(f"{key}: the reference {value} fails: {str(error).splitlines()[0]}")
                OmegaConf.update(node, key, None)
    return to_plain(node)
