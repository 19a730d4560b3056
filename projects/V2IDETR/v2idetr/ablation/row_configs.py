"""The config of a row: that of the data set, the row's layers, and the common overrides."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from v2idetr.ablation.tables import PLAIN_STAGE, RECIPE, STUDENTS, Row
from v2idetr.config.files import ConfigFile
from v2idetr.config.keys import select
from v2idetr.config.load import (
    ConfigError,
    fingerprint,
    load_config,
    load_plain_run_config,
    to_plain,
)
from v2idetr.config.stage_settings import model_key, settings_of
from v2idetr.config.yaml_text import parse_yaml

# Keys that rows, seeds and this program set.
RESERVED = ("train.output_dir", "train.seed", "train.stages")
# Sections that the teacher's stage does not read.
NOT_THE_TEACHERS = ("model", "distillation", "optimizer")
# Sections that every stage of a detector reads, besides those with its model and its settings.
READ_BY_ALL = ("data", "evaluation", "lr_multiplier", "optimizer", "train")
# DETR does not normalise its projected features, which therefore need an alignment, and has one
# level.
FOR_STUDENT = {
    "detr": (
        "distillation.fd.align=conv1x1",
        "distillation.fd.strides=${model.net.strides}",
        "distillation.ed.strides=${model.net.strides}",
    )
}


@dataclass(frozen=True)
class Settings:
    """Settings common to all tables of a folder.

    Attributes:
        configs: folder with the configs.
        dataset: one of `tables.DATASETS`.
        student: one of `tables.STUDENTS`, for rows without their own.
        overrides: "key=value" of the user, for all rows; exceptions: see `Plan`.
        first: overrides of the program before those, such as the settings of a smoke test.
        has_gpu: whether this machine has a GPU.
    """

    configs: Path
    dataset: str
    student: str = "deformable_detr"
    overrides: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    has_gpu: bool = False


def config_file_of(row: Row, settings: Settings) -> Path:
    """The config that a row's layers change."""
    if row.config:
        return settings.configs / row.config.format(dataset=settings.dataset)
    student = row.student or settings.student
    if row.stage == PLAIN_STAGE:
        return settings.configs / "baselines" / f"{student}_{settings.dataset}.yaml"
    kind = "" if student == "deformable_detr" else f"_{student}"
    return settings.configs / f"v2i_{settings.dataset}{kind}.yaml"


def resolve(row: Row, settings: Settings) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A row's resolved config as dicts and lists, and the overrides that apply to it.

    Raises:
        ConfigError: see `Plan.config`.
    """
    path = config_file_of(row, settings)
    student = row.student or settings.student
    given = (
        *settings.first,
        *(() if row.config else FOR_STUDENT.get(student, ())),
        *settings.overrides,
    )
    applied = ()
    if given:
        own = [layer for layer in row.layers if layer.name != RECIPE]
        row_keys = [key for layer in own for key in _leaves(_read(layer))]
        applied = tuple(o for o in given if _applies(o, row_keys, _base(path)))
        # Detectors of another kind have other keys.
        optional = given if row.config else settings.first
        applied = tuple(o for o in applied if o not in optional or _has_place(o, _base(path)))
    if row.student and row.stage != PLAIN_STAGE:
        applied = (*applied, "train.stages=[teacher, student]")

    def load() -> dict[str, Any]:
        return load_plain_run_config(
            _file(path), applied, world_size=1, has_gpu=settings.has_gpu, layers=row.layers
        )

    config = load()
    if row.equal is not None:
        clips = config["teacher"]["batch_size"] or config["train"]["batch_size"]
        applied = (*applied, f"train.batch_size={clips * config['data']['num_frames']}")
        config = load()
    return config, applied


def teacher_fingerprint(config: DictConfig | dict[str, Any]) -> str:
    """Short hash of all keys of a config that can change the trained teacher."""
    plain = to_plain(config)
    relevant = {key: value for key, value in plain.items() if key not in NOT_THE_TEACHERS}
    relevant["train"] = {k: v for k, v in plain["train"].items() if k != "stages"}
    for key in ("max_iter", "batch_size"):  # the teacher's own, else those of `train`
        common = relevant["train"].pop(key)
        relevant["teacher"] = {**relevant["teacher"], key: plain["teacher"][key] or common}
    return fingerprint(relevant)


def run_fingerprint(config: dict[str, Any], stage: str) -> str:
    """Short hash of all keys of a config that can change the result of a stage of its own run.

    A plain detector depends neither on the other stages nor on the sections with their settings.
    """
    if stage != PLAIN_STAGE:
        return fingerprint(config)
    own = {model_key(config, stage).partition(".")[0], settings_of(config, stage)}
    relevant = {key: config[key] for key in sorted({*READ_BY_ALL, *own})}
    relevant["train"] = {k: v for k, v in config["train"].items() if k != "stages"}
    return fingerprint(relevant)


def in_any_order(overrides: Sequence[str]) -> list[str]:
    """Overrides sorted by key; unchanged if one changes a key that another sets."""
    keys = [_key(override) for override in overrides]
    if any(_is_at_or_above(a, b) for a, b in itertools.permutations(keys, 2)):
        return list(overrides)
    return sorted(overrides, key=_key)


def check_overrides(settings: Settings) -> None:
    """Refuse overrides of keys that rows and seeds set.

    Raises:
        ValueError: names the override.
    """
    assert settings.student in STUDENTS
    for override in settings.overrides:
        key = _key(override)
        if any(_is_at_or_above(key, r) or _is_at_or_above(r, key) for r in RESERVED):
            raise ValueError(
                f"{override}: {', '.join(RESERVED)} are set by the rows, by --seeds and --output."
            )


_PARTS: dict[Path, dict[str, Any]] = {}  # cache of `ConfigFile.parts`


@functools.cache
def _file(path: Path) -> ConfigFile:
    return ConfigFile(path, _PARTS)


@functools.cache
def _base(path: Path) -> dict[str, Any]:
    return to_plain(load_config(_file(path)))


def _applies(override: str, row_keys: Sequence[str], base: dict[str, Any]) -> bool:
    """Whether an override applies to a row that sets `row_keys` on a base config."""
    key = _key(override)
    if any(_is_at_or_above(row_key, key) for row_key in row_keys):
        return False
    undone = [row_key for row_key in row_keys if _is_at_or_above(key, row_key)]
    if undone:
        raise ConfigError([f"{override} would undo changes of this row: {', '.join(undone)}."])
    value: Any = base
    above = ""
    for part in key.split(".")[:-1]:
        value = value.get(part, {}) if isinstance(value, dict) else {}
        above = f"{above}{part}."
        if value is None:
            return any(row_key.startswith(above) for row_key in row_keys)
    return True


def _has_place(override: str, base: dict[str, Any]) -> bool:
    """Whether a detector has the key of an override, or its section where it is no detector's."""
    key = _key(override)
    section = key.partition(".")[0]
    if section != "model":
        return section in base
    try:
        select(base, key)
    except KeyError:
        return False
    return True


def _key(override: str) -> str:
    return override.partition("=")[0].removeprefix("+").strip()


def _is_at_or_above(one: str, other: str) -> bool:
    return f"{other}.".startswith(f"{one}.")


def _read(layer: Path) -> dict[str, Any]:
    return parse_yaml(layer.read_text(encoding="utf-8")) or {}


def _leaves(value: Any, key: str = "") -> list[str]:
    """Dotted keys of the values that a layer sets."""
    if not isinstance(value, dict) or not value:
        return [key]
    return [k for n, v in value.items() for k in _leaves(v, f"{key}.{n}" if key else str(n))]
