"""Which runs a table needs: rows to configs, equal configs to one run, equal teachers to one.

A run of train_net.py trains a teacher, or a student (of a trained teacher), or a plain detector:

    FOLDER/seed0/teachers/table3/2_tfd/    the teacher of that row, and of all with an equal one
    FOLDER/seed0/table3/2_tfd/             the student of that row, and of all with an equal config

Both are named after the first row of the full list that needs them.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from v2idetr.ablation.tables import STUDENTS, Row, Table
from v2idetr.engine.config import (
    ConfigError,
    fingerprint,
    load_config,
    load_run_config,
    to_plain,
)
from v2idetr.engine.config_yaml import parse_yaml
from v2idetr.engine.run_folder import steps_of, weights_of

# What the rows, the seeds and this program set.
RESERVED = ("train.output_dir", "train.seed", "train.stages")
# Sections and keys that the teacher's stage does not read.
NOT_THE_TEACHERS = ("model", "distillation", "optimizer")
# DETR does not normalise its projected features, so they are not compared as they are; and it has
# one level only.
FOR_STUDENT = {
    "detr": (
        "distillation.fd.align=conv1x1",
        "distillation.fd.strides=${model.net.strides}",
        "distillation.ed.strides=${model.net.strides}",
    )
}


@dataclass(frozen=True)
class Settings:
    """What all tables of a folder have in common.

    Attributes:
        configs: folder with the configs.
        dataset: in `tables.DATASETS`.
        student: in `tables.STUDENTS`, for rows that do not name theirs.
        overrides: "key=value", for all rows, but see `Plan`.
        first: overrides before those, of the program: smaller settings, where the data is.
        has_gpu: whether this machine has one.
    """

    configs: Path
    dataset: str
    student: str = "deformable_detr"
    overrides: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    has_gpu: bool = False


@dataclass(frozen=True)
class Run:
    """One call of train_net.py.

    Attributes:
        row: the row that it is named after.
        seed: of the training.
        stage: "teacher", "plain" or "student": the only stage that it trains.
        folder: its train.output_dir.
        config: resolved.
        teacher: whom the student learns from, if one has to be trained before.
        overrides: of the command line.
    """

    row: Row
    seed: int
    stage: str
    folder: Path
    config: DictConfig
    teacher: Run | None
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called on the terminal."""
        what = "teacher of " if self.stage == "teacher" else ""
        return f"{what}{self.row.key}, seed {self.seed}"

    @property
    def evaluation(self) -> Path:
        """What it writes last."""
        return self.folder / self.stage / "evaluation.json"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / "log"

    @property
    def weights(self) -> Path:
        """The checkpoint that is evaluated, and that teaches."""
        return weights_of(self.config, self.stage)

    @property
    def steps(self) -> int:
        """Length of its training."""
        return steps_of(self.config, self.stage)

    @property
    def begun(self) -> bool:
        """Whether its training began; one that was refused before is begun anew by train_net.py."""
        return (self.folder / self.stage).exists()

    @property
    def finished(self) -> bool:
        """Whether it was trained and evaluated."""
        return self.evaluation.exists()

    def arguments(self, settings: Settings, *more: str) -> list[str]:
        """The command line of train_net.py, with further overrides."""
        layers = [part for layer in self.row.layers for part in ("--layer", str(layer))]
        config_file = str(config_file_of(self.row, settings))
        return ["--config-file", config_file, *layers, "--resume", *self.overrides, *more]


class Plan:
    """The runs of the rows of all tables, in one folder.

    An override holds for a row unless the row says otherwise: not where the row itself sets that
    key, and not below something that the row switches off.

    Args:
        folder: where the runs write.
        settings: of all of them.
        tables: all there are.
    """

    def __init__(self, folder: Path, settings: Settings, tables: Sequence[Table]) -> None:
        self.folder, self.settings = folder, settings
        self.rows = {row.key: row for table in tables for row in table.rows}
        self._configs: dict[str, DictConfig] = {}
        self._overrides: dict[str, tuple[str, ...]] = {}
        self._runs: dict[Path, Run] = {}

    def config(self, row: Row) -> DictConfig:
        """A row's resolved config; its seed, stages and folder are those of its file.

        Raises:
            ConfigError: see `load_run_config`, and overrides that would undo the row.
        """
        if row.key not in self._configs:
            config, overrides = resolve(row, self.settings)
            self._configs[row.key], self._overrides[row.key] = config, overrides
        return self._configs[row.key]

    def base(self) -> DictConfig:
        """The resolved config of the method, without any row.

        Raises:
            ConfigError: see `load_run_config`.
        """
        return resolve(Row(table="", name="", title=""), self.settings)[0]

    def check(self, rows: Sequence[Row]) -> None:
        """Load the configs of some rows.

        Raises:
            ValueError: what is wrong with any of them, each named once.
        """
        _check_overrides(self.settings)
        problems: dict[str, list[str]] = {}
        for row in rows:
            try:
                self.config(row)
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(row.name)
        if problems:
            heading = "the configurations of the table:"
            raise ValueError(listed_by_row(heading, problems, len(rows)))
        data = _splits(self.base())
        others = [row.name for row in rows if _splits(self.config(row)) != data]
        if others:
            raise ValueError(
                f"Rows {', '.join(others)} change where data.train, data.val or data.test lie: "
                "the rows of a table share their data."
            )
        for override in self.settings.overrides:
            if not any(override in self._overrides[row.key] for row in rows):
                raise ValueError(
                    f"{override}: no row of the table takes it, because each of them sets this "
                    "key itself or has nothing there."
                )

    def first_like(self, row: Row) -> Row:
        """The first row of all tables with the same config."""
        return self._firsts[row.key][0]

    def first_taught_like(self, row: Row) -> Row | None:
        """The first row of all tables with the same teacher; None if none is to be trained."""
        return self._firsts[row.key][1]

    def run(self, row: Row, seed: int) -> Run:
        """The run whose result is the row's."""
        first, teacher = self.first_like(row), self.teacher(row, seed)
        overrides = []
        if teacher is not None:
            overrides.append(f"teacher.checkpoint={json.dumps(str(teacher.weights))}")
        # The method's configs have both: a row is a student unless it says otherwise.
        stage = "student" if "student" in self.config(row).train.stages else "plain"
        return self._run(first, seed, stage, Path(first.key), teacher, overrides)

    def teacher(self, row: Row, seed: int) -> Run | None:
        """The run of the row's teacher; None if none is to be trained."""
        first = self.first_taught_like(row)
        if first is None:
            return None
        return self._run(first, seed, "teacher", Path("teachers", first.key), None, [])

    def runs(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[Run]:
        """All runs of some rows, each once: seed by seed, teachers before the others."""
        runs: dict[Path, Run] = {}
        for seed in seeds:
            students = [self.run(row, seed) for row in rows]
            teachers = [run.teacher for run in students if run.teacher is not None]
            runs |= {run.folder: run for run in (*teachers, *students)}
        return list(runs.values())

    @functools.cached_property
    def _firsts(self) -> dict[str, tuple[Row, Row | None]]:
        """By row: the first one with its config, and the first one with its teacher.

        Rows that the overrides do not fit are left out: they are not in the table that is wanted.
        """
        students: dict[str, Row] = {}
        teachers: dict[str, Row] = {}
        firsts: dict[str, tuple[Row, Row | None]] = {}
        for row in self.rows.values():
            try:
                config = self.config(row)
            except ConfigError:
                continue
            student, teacher = students.setdefault(fingerprint(config), row), None
            if "student" in config.train.stages and not config.teacher.checkpoint:
                teacher = teachers.setdefault(teacher_fingerprint(config), row)
            firsts[row.key] = student, teacher
        return firsts

    def _run(
        self,
        row: Row,
        seed: int,
        stage: str,
        name: Path,
        teacher: Run | None,
        overrides: list[str],
    ) -> Run:
        folder = self.folder / f"seed{seed}" / name
        if folder not in self._runs:
            config = copy.deepcopy(self.config(row))
            config.train.seed, config.train.stages = seed, [stage]
            config.train.output_dir = str(folder)
            if teacher is not None:
                config.teacher.checkpoint = str(teacher.weights)
            own = [f"train.seed={seed}", f"train.stages=[{stage}]"]
            own += [f"train.output_dir={json.dumps(str(folder))}", *overrides]
            said = (*self._overrides[row.key], *own)
            self._runs[folder] = Run(row, seed, stage, folder, config, teacher, said)
        return self._runs[folder]


def listed_by_row(heading: str, problems: Mapping[str, Sequence[str]], num_rows: int) -> str:
    """Problems of a table, each with the names of its rows, of `num_rows` that were looked at."""
    lines = [
        f"{problem} ({'all rows' if len(rows) == num_rows else 'rows ' + ', '.join(rows)})"
        for problem, rows in problems.items()
    ]
    return "\n  - ".join([heading, *lines])


def config_file_of(row: Row, settings: Settings) -> Path:
    """The config that a row's layers change."""
    student = row.student or settings.student
    if row.is_plain:
        return settings.configs / "baselines" / f"{student}_{settings.dataset}.yaml"
    kind = "" if student == "deformable_detr" else f"_{student}"
    return settings.configs / f"v2i_{settings.dataset}{kind}.yaml"


def resolve(row: Row, settings: Settings) -> tuple[DictConfig, tuple[str, ...]]:
    """A row's config, and those overrides that hold for it.

    Raises:
        ConfigError: see `Plan.config`.
    """
    path = config_file_of(row, settings)
    student = row.student or settings.student
    given = (*settings.first, *FOR_STUDENT.get(student, ()), *settings.overrides)
    held = ()
    if given:
        says = [key for layer in row.layers for key in _leaves(_read(layer))]
        held = tuple(o for o in given if _holds(o, says, _base(path)))
    if row.student and not row.is_plain:
        held = (*held, "train.stages=[teacher, student]")
    config = load_run_config(path, held, world_size=1, has_gpu=settings.has_gpu, layers=row.layers)
    return config, held


def teacher_fingerprint(config: DictConfig) -> str:
    """Short hash of everything in a config that can change the trained teacher."""
    plain = to_plain(config)
    relevant = {key: value for key, value in plain.items() if key not in NOT_THE_TEACHERS}
    relevant["train"] = {k: v for k, v in plain["train"].items() if k != "stages"}
    for key in ("max_iter", "batch_size"):  # the teacher's own, or else those of all stages
        common = relevant["train"].pop(key)
        relevant["teacher"] = {**relevant["teacher"], key: plain["teacher"][key] or common}
    return fingerprint(OmegaConf.create(relevant))


def in_any_order(overrides: Sequence[str]) -> list[str]:
    """Overrides sorted by their keys, but as they are where one changes what another does."""
    keys = [_key(override) for override in overrides]
    if any(_is_at_or_above(a, b) for a, b in itertools.permutations(keys, 2)):
        return list(overrides)
    return sorted(overrides, key=_key)


def _splits(config: DictConfig) -> list[Any]:
    """Where the data is."""
    data = to_plain(config)["data"]
    return [data[name] for name in ("train", "val", "test")]


def _check_overrides(settings: Settings) -> None:
    """ValueError for an override of what rows and seeds set."""
    assert settings.student in STUDENTS
    for override in settings.overrides:
        key = _key(override)
        if any(_is_at_or_above(key, r) or _is_at_or_above(r, key) for r in RESERVED):
            raise ValueError(
                f"{override}: {', '.join(RESERVED)} are set by the rows, by --seeds and --output."
            )


@functools.cache
def _base(path: Path) -> dict[str, Any]:
    return to_plain(load_config(path))


def _holds(override: str, says: Sequence[str], base: dict[str, Any]) -> bool:
    """Whether an override is for a row that sets the keys `says` on this base."""
    key = _key(override)
    if any(_is_at_or_above(said, key) for said in says):
        return False
    undone = [said for said in says if _is_at_or_above(key, said)]
    if undone:
        raise ConfigError([f"{override} would undo what this row changes: {', '.join(undone)}."])
    value: Any = base
    above = ""
    for part in key.split(".")[:-1]:
        value = value.get(part, {}) if isinstance(value, dict) else {}
        above = f"{above}{part}."
        if value is None:
            return any(said.startswith(above) for said in says)
    return True


def _key(override: str) -> str:
    return override.partition("=")[0].removeprefix("+").strip()


def _is_at_or_above(one: str, other: str) -> bool:
    return f"{other}.".startswith(f"{one}.")


def _read(layer: Path) -> dict[str, Any]:
    return parse_yaml(layer.read_text(encoding="utf-8")) or {}


def _leaves(value: Any, key: str = "") -> list[str]:
    """Dotted keys of everything that a layer sets."""
    if not isinstance(value, dict) or not value:
        return [key]
    return [k for n, v in value.items() for k in _leaves(v, f"{key}.{n}" if key else str(n))]
