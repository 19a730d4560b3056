"""Which runs a table needs: equal configs are one run, equal teachers one teacher.

A run of train_net.py trains a teacher, or a student (of a trained teacher), or a plain detector:

    FOLDER/seed0/teachers/table3/2_tfd/    the teacher of that row, and of all with an equal one
    FOLDER/seed0/table3/2_tfd/             the student of that row, and of all with an equal config

Both are named after the first row of the full list that needs them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from v2idetr.ablation.row_configs import (
    Settings,
    check_overrides,
    config_file_of,
    resolve,
    teacher_fingerprint,
)
from v2idetr.ablation.tables import Equal, Row, Table
from v2idetr.config.load import ConfigError, fingerprint, to_plain
from v2idetr.config.stage_settings import steps_of
from v2idetr.runs.folder import weights_of
from v2idetr.runs.stage_folder import StageFolder
from v2idetr.runs.training_log import TrainingCost, training_cost, validation_curve

# Stages of a config: a table trains each in a run of its own.
TEACHER, PLAIN, STUDENT = "teacher", "plain", "student"


@dataclass(frozen=True)
class Budget:
    """Length of a run that follows from what other runs have spent.

    Attributes:
        what: "frames" or "processor_time".
        spent_by: the runs that count.
        pace: a run whose steps cost what this one's do.
    """

    what: str
    spent_by: tuple[Run, ...]
    pace: Run

    @property
    def runs(self) -> tuple[Run, ...]:
        """All that have to be finished before."""
        return (*self.spent_by, self.pace)

    def steps(self) -> int | None:
        """None as long as one of them is not finished."""
        if not all(run.finished for run in self.runs):
            return None
        spent = sum((run.cost for run in self.spent_by), TrainingCost())
        return self.pace.cost.steps_for(self.what, spent)


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
        budget: what its length follows from; None where its config says it.
    """

    row: Row
    seed: int
    stage: str
    folder: Path
    config: DictConfig
    teacher: Run | None
    overrides: tuple[str, ...]
    budget: Budget | None = None

    @property
    def trains_teacher(self) -> bool:
        """Whether it trains the teacher of other runs."""
        return self.stage == TEACHER

    @property
    def name(self) -> str:
        """What it is called on the terminal."""
        what = "teacher of " if self.trains_teacher else ""
        return f"{what}{self.row.key}, seed {self.seed}"

    @property
    def files(self) -> StageFolder:
        """The folder of its stage."""
        return StageFolder(self.folder / self.stage)

    @property
    def evaluation(self) -> Path:
        """What it writes last."""
        return self.files.evaluation

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
        """Most steps of its training, or what its config says until others have decided it."""
        decided = self.budget.steps() if self.budget is not None else None
        return decided or steps_of(self.config, self.stage)

    @property
    def needs(self) -> tuple[Run, ...]:
        """What has to be finished before."""
        teacher = () if self.teacher is None else (self.teacher,)
        return teacher if self.budget is None else (*teacher, *self.budget.runs)

    @property
    def cost(self) -> TrainingCost:
        """What its training has cost so far."""
        return training_cost(self.files.metrics)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Steps and validation metric, see `validation_curve`."""
        return validation_curve(self.files.metrics, self.config.train.best_metric)

    @property
    def cost_with_teacher(self) -> TrainingCost:
        """What its training and that of its teacher have cost."""
        return self.cost if self.teacher is None else self.teacher.cost + self.cost

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
        if self.budget is not None:
            more = (f"train.max_iter={self.steps}", *more)
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
        self._configs: dict[str, dict[str, Any]] = {}
        self._overrides: dict[str, tuple[str, ...]] = {}
        self._runs: dict[Path, Run] = {}

    def config(self, row: Row) -> DictConfig:
        """A row's resolved config; its seed, stages and folder are those of its file.

        Raises:
            ConfigError: see `load_run_config`, and overrides that would undo the row.
        """
        return OmegaConf.create(self._plain(row))

    def base(self) -> DictConfig:
        """The resolved config of the method, without any row.

        Raises:
            ConfigError: see `load_run_config`.
        """
        return OmegaConf.create(resolve(Row(table="", name="", title=""), self.settings)[0])

    def check(self, rows: Sequence[Row]) -> None:
        """Load the configs of some rows.

        Raises:
            ValueError: what is wrong with any of them, each named once.
        """
        check_overrides(self.settings)
        problems: dict[str, list[str]] = {}
        for row in rows:
            try:
                self._plain(row)
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(row.name)
        if problems:
            heading = "the configurations of the table:"
            raise ValueError(listed_by_row(heading, problems, len(rows)))
        given = [r.name for r in rows if r.equal and r.equal.to and self._given_teacher(r)]
        if given:
            raise ValueError(
                f"Rows {', '.join(given)} are given what a student and its teacher have spent, and "
                "what the teacher of teacher.checkpoint has is not known: leave them out with "
                "--rows, or let the teacher be trained."
            )
        data = _splits(self.base())
        others = [row.name for row in rows if _splits(self._plain(row)) != data]
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
        stage = STUDENT if STUDENT in self._plain(row)["train"]["stages"] else PLAIN
        budget = None
        if first.equal is not None and first.equal.to:
            to, pace = (self.run(self.rows[k], seed) for k in (first.equal.to, first.equal.pace))
            spent_by = (to,) if to.teacher is None else (to.teacher, to)
            budget = Budget(first.equal.what, spent_by, pace)
        return self._run(first, seed, stage, Path(first.key), teacher, overrides, budget)

    def teacher(self, row: Row, seed: int) -> Run | None:
        """The run of the row's teacher; None if none is to be trained."""
        first = self.first_taught_like(row)
        if first is None:
            return None
        return self._run(first, seed, TEACHER, Path("teachers", first.key), None, [], None)

    def runs(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[Run]:
        """All runs of some rows, each once: seed by seed, each after those that it needs."""
        runs: dict[Path, Run] = {}
        for seed in seeds:
            students = [self.run(row, seed) for row in rows]
            decisive = [needed for run in students if run.budget for needed in run.budget.runs]
            free = [run for run in (*decisive, *students) if run.budget is None]
            teachers = [run.teacher for run in free if run.teacher is not None]
            runs |= {run.folder: run for run in (*teachers, *free, *students)}
        return list(runs.values())

    @functools.cached_property
    def _firsts(self) -> dict[str, tuple[Row, Row | None]]:
        """By row: the first one with its config, and the first one with its teacher.

        Rows that the overrides do not fit are left out: they are not in the table that is wanted.
        """
        students: dict[tuple[str, Equal | None], Row] = {}
        teachers: dict[str, Row] = {}
        firsts: dict[str, tuple[Row, Row | None]] = {}
        for row in self.rows.values():
            try:
                config = self._plain(row)
            except ConfigError:
                continue
            budget = row.equal if row.equal is not None and row.equal.to else None
            student, teacher = students.setdefault((fingerprint(config), budget), row), None
            if STUDENT in config["train"]["stages"] and not config["teacher"]["checkpoint"]:
                teacher = teachers.setdefault(teacher_fingerprint(config), row)
            firsts[row.key] = student, teacher
        return firsts

    def _given_teacher(self, row: Row) -> bool:
        """Whether the student that a control is matched to has a teacher from elsewhere."""
        assert row.equal is not None
        return bool(self._plain(self.rows[row.equal.to])["teacher"]["checkpoint"])

    def _plain(self, row: Row) -> dict[str, Any]:
        """`config` as dicts and lists, which are made in a fraction of the time."""
        if row.key not in self._configs:
            config, overrides = resolve(row, self.settings)
            self._configs[row.key], self._overrides[row.key] = config, overrides
        return self._configs[row.key]

    def _run(
        self,
        row: Row,
        seed: int,
        stage: str,
        name: Path,
        teacher: Run | None,
        overrides: list[str],
        budget: Budget | None,
    ) -> Run:
        folder = self.folder / f"seed{seed}" / name
        if folder not in self._runs:
            config = self.config(row)
            config.train.seed, config.train.stages = seed, [stage]
            config.train.output_dir = str(folder)
            if teacher is not None:
                config.teacher.checkpoint = str(teacher.weights)
            own = [f"train.seed={seed}", f"train.stages=[{stage}]"]
            own += [f"train.output_dir={json.dumps(str(folder))}", *overrides]
            said = (*self._overrides[row.key], *own)
            self._runs[folder] = Run(row, seed, stage, folder, config, teacher, said, budget)
        return self._runs[folder]


def listed_by_row(heading: str, problems: Mapping[str, Sequence[str]], num_rows: int) -> str:
    """Problems of a table, each with the names of its rows, of `num_rows` that were looked at."""
    lines = [
        f"{problem} ({'all rows' if len(rows) == num_rows else 'rows ' + ', '.join(rows)})"
        for problem, rows in problems.items()
    ]
    return "\n  - ".join([heading, *lines])


def _splits(config: DictConfig | dict[str, Any]) -> list[Any]:
    """Where the data is."""
    data = to_plain(config)["data"]
    return [data[name] for name in ("train", "val", "test")]
