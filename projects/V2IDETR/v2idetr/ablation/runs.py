"""The runs of a table; equal configs share a run, equal teachers a teacher.

A run of train_net.py trains one stage: a teacher, a student of a trained teacher, a plain detector,
or a video detector that may start from a trained plain one:

    FOLDER/seed0/teachers/table3/2_tfd/    teacher of that row, and of all with an equal teacher
    FOLDER/seed0/table3/2_tfd/             student of that row, and of all with an equal config

Both are named after the first row of all tables that needs them.
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
    run_fingerprint,
    teacher_fingerprint,
)
from v2idetr.ablation.tables import PLAIN_STAGE, Equal, Row, Table
from v2idetr.config.load import ConfigError
from v2idetr.config.stage_settings import given_key, needs_of, steps_of
from v2idetr.runs.folder import weights_of
from v2idetr.runs.stage_folder import StageFolder
from v2idetr.runs.training_log import TrainingCost, training_cost, validation_curve

# Stages of a config, each trained in its own run.
TEACHER, PLAIN, STUDENT = "teacher", PLAIN_STAGE, "student"
METHOD = Row(table="", name="", title="")  # the method's config, which no row changes
INITIAL = "initial"  # the role of an earlier stage whose detector's weights a stage starts from


@dataclass(frozen=True)
class Budget:
    """Number of steps of a run that follows from the costs of other runs.

    Attributes:
        what: "frames" or "processor_time".
        spent_by: the runs whose costs are summed.
        pace: a run with the same cost per step.
    """

    what: str
    spent_by: tuple[Run, ...]
    pace: Run

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs that must be finished before."""
        return (*self.spent_by, self.pace)

    def steps(self) -> int | None:
        """Number of steps; None until all `runs` are finished."""
        if not all(run.finished for run in self.runs):
            return None
        spent = sum((run.cost for run in self.spent_by), TrainingCost())
        return self.pace.cost.steps_for(self.what, spent)


@dataclass(frozen=True)
class Run:
    """One call of train_net.py.

    Attributes:
        row: row after which it is named.
        seed: random seed of the training.
        stage: the only stage that it trains.
        folder: its train.output_dir.
        config: resolved config.
        teacher: run of the student's teacher; None if none is to be trained.
        initial: run of the detector whose weights it starts from; None for a start of its own.
        overrides: overrides of the command line.
        budget: source of its number of steps; None for that of its config.
    """

    row: Row
    seed: int
    stage: str
    folder: Path
    config: DictConfig
    teacher: Run | None
    overrides: tuple[str, ...]
    budget: Budget | None = None
    initial: Run | None = None

    @property
    def trains_teacher(self) -> bool:
        """Whether it trains the teacher of other runs."""
        return self.stage == TEACHER

    @property
    def name(self) -> str:
        """Name on the terminal."""
        what = "teacher of " if self.trains_teacher else ""
        return f"{what}{self.row.key}, seed {self.seed}"

    @property
    def files(self) -> StageFolder:
        """The folder of its stage."""
        return StageFolder(self.folder / self.stage)

    @property
    def evaluation(self) -> Path:
        """The file that it writes last."""
        return self.files.evaluation

    @property
    def log(self) -> Path:
        """File with its output."""
        return self.folder / "log"

    @property
    def weights(self) -> Path:
        """The checkpoint that is evaluated, and used as teacher."""
        return weights_of(self.config, self.stage)

    @property
    def steps(self) -> int:
        """Maximum number of steps; that of its config until its budget is known."""
        decided = self.budget.steps() if self.budget is not None else None
        return decided or steps_of(self.config, self.stage)

    @property
    def needs(self) -> tuple[Run, ...]:
        """Runs that must be finished before."""
        earlier = [run for run in (self.teacher, self.initial) if run is not None]
        return tuple(earlier) if self.budget is None else (*earlier, *self.budget.runs)

    @property
    def cost(self) -> TrainingCost:
        """Cost of its training so far."""
        return training_cost(self.files.metrics)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Steps and validation metric, see `validation_curve`."""
        return validation_curve(self.files.metrics, self.config.train.best_metric)

    @property
    def cost_with_teacher(self) -> TrainingCost:
        """Cost of its training and its teacher's."""
        return self.cost if self.teacher is None else self.teacher.cost + self.cost

    @property
    def begun(self) -> bool:
        """Whether its training began; False for a run that train_net.py refused."""
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
    """The runs of all tables in one folder.

    An override does not apply to a row that sets its key, or that sets a section above it to null.

    Args:
        folder: output folder of the runs.
        settings: common settings.
        tables: all tables.
    """

    def __init__(self, folder: Path, settings: Settings, tables: Sequence[Table]) -> None:
        self.folder, self.settings = folder, settings
        self.rows = {row.key: row for table in tables for row in table.rows}
        self._configs: dict[str, dict[str, Any]] = {}
        self._overrides: dict[str, tuple[str, ...]] = {}
        self._runs: dict[Path, Run] = {}

    def config(self, row: Row) -> dict[str, Any]:
        """A row's resolved config, with seed, stages and folder of its file; not to be changed.

        Dicts and lists are much quicker to build than OmegaConf's.

        Raises:
            ConfigError: see `load_plain_run_config`; an override would undo the row.
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
        return OmegaConf.create(self.config(METHOD))

    def check(self, rows: Sequence[Row]) -> None:
        """Load the configs of some rows.

        Raises:
            ValueError: all errors, each once with its rows.
        """
        check_overrides(self.settings)
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
        given = [r.name for r in rows if r.equal and r.equal.to and self._given_teacher(r)]
        if given:
            raise ValueError(
                f"Rows {', '.join(given)} are matched to the cost of a student and its teacher, "
                "but the cost of the teacher in teacher.checkpoint is unknown: leave them out with "
                "--rows, or train the teacher."
            )
        data = _splits(self.config(METHOD))
        others = [row.name for row in rows if _splits(self.config(row)) != data]
        if others:
            raise ValueError(
                f"Rows {', '.join(others)} change data.train, data.val or data.test: "
                "the rows of a table share their data."
            )
        for override in self.settings.overrides:
            if not any(override in self._overrides[row.key] for row in rows):
                raise ValueError(
                    f"{override}: applies to no row of the table, because each of them sets this "
                    "key or has null above it."
                )

    def first_like(self, row: Row) -> Row:
        """The first row of all tables with the same config."""
        return self._firsts[row.key][0]

    def first_taught_like(self, row: Row) -> Row | None:
        """The first row of all tables with the same teacher; None if none is trained."""
        return self._firsts[row.key][1]

    def run(self, row: Row, seed: int) -> Run:
        """The run of a row."""
        first, teacher = self.first_like(row), self.teacher(row, seed)
        stage, initial = self.stage(row), self._initial(row, seed)
        budget = None
        if first.equal is not None and first.equal.to:
            to, pace = (self.run(self.rows[k], seed) for k in (first.equal.to, first.equal.pace))
            spent_by = (to,) if to.teacher is None else (to.teacher, to)
            budget = Budget(first.equal.what, spent_by, pace)
        return self._run(first, seed, stage, Path(first.key), teacher, budget, initial)

    def stage(self, row: Row) -> str:
        """The stage that a row trains."""
        # The method's configs train both; a row is a student unless its layers say otherwise.
        is_student = STUDENT in self.config(row)["train"]["stages"]
        return row.stage or (STUDENT if is_student else PLAIN)

    def _initial(self, row: Row, seed: int) -> Run | None:
        """The run that a row's stage starts from, that of the row that it is compared with."""
        if INITIAL not in needs_of(self.config(row), self.stage(row)):
            return None
        return self.run(self.rows[row.reference], seed)

    def teacher(self, row: Row, seed: int) -> Run | None:
        """The run of a row's teacher; None if none is trained."""
        first = self.first_taught_like(row)
        if first is None:
            return None
        return self._run(first, seed, TEACHER, Path("teachers", first.key))

    def runs(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[Run]:
        """All runs of some rows, each once and after those that it needs, seed by seed."""
        runs: dict[Path, Run] = {}
        for seed in seeds:
            students = [self.run(row, seed) for row in rows]
            decisive = [needed for run in students if run.budget for needed in run.budget.runs]
            free = [run for run in (*decisive, *students) if run.budget is None]
            earlier = [one for run in free for one in (run.teacher, run.initial) if one is not None]
            runs |= {run.folder: run for run in (*earlier, *free, *students)}
        return list(runs.values())

    @functools.cached_property
    def _firsts(self) -> dict[str, tuple[Row, Row | None]]:
        """By row: the first row with its config, and the first row with its teacher.

        Rows of other tables that the overrides do not fit are left out.
        """
        students: dict[tuple[str, str, Equal | None], Row] = {}
        teachers: dict[str, Row] = {}
        firsts: dict[str, tuple[Row, Row | None]] = {}
        for row in self.rows.values():
            try:
                config = self.config(row)
            except ConfigError:
                continue
            budget = row.equal if row.equal is not None and row.equal.to else None
            stage = self.stage(row)
            key = run_fingerprint(config, stage), stage, budget
            student = students.setdefault(key, row)
            teacher = None
            if stage == STUDENT and not config["teacher"]["checkpoint"]:
                teacher = teachers.setdefault(teacher_fingerprint(config), row)
            firsts[row.key] = student, teacher
        return firsts

    def _given_teacher(self, row: Row) -> bool:
        """Whether the student to which a control is matched has a given teacher."""
        assert row.equal is not None
        return bool(self.config(self.rows[row.equal.to])["teacher"]["checkpoint"])

    def _run(
        self,
        row: Row,
        seed: int,
        stage: str,
        name: Path,
        teacher: Run | None = None,
        budget: Budget | None = None,
        initial: Run | None = None,
    ) -> Run:
        folder = self.folder / f"seed{seed}" / name
        if folder not in self._runs:
            config = OmegaConf.create(self.config(row))
            config.train.seed, config.train.stages = seed, [stage]
            config.train.output_dir = str(folder)
            own = [f"train.seed={seed}", f"train.stages=[{stage}]"]
            own += [f"train.output_dir={json.dumps(str(folder))}"]
            earlier = {"teacher.checkpoint": teacher}
            if initial is not None:
                earlier[given_key(config, needs_of(config, stage)[INITIAL])] = initial
            for key, run in earlier.items():
                if run is not None:
                    OmegaConf.update(config, key, str(run.weights))
                    own.append(f"{key}={json.dumps(str(run.weights))}")
            every = (*self._overrides[row.key], *own)
            self._runs[folder] = Run(
                row, seed, stage, folder, config, teacher, every, budget, initial
            )
        return self._runs[folder]


def listed_by_row(heading: str, problems: Mapping[str, Sequence[str]], num_rows: int) -> str:
    """A list of problems, each with its rows ("all rows" for `num_rows` of them)."""
    lines = [
        f"{problem} ({'all rows' if len(rows) == num_rows else 'rows ' + ', '.join(rows)})"
        for problem, rows in problems.items()
    ]
    return "\n  - ".join([heading, *lines])


def _splits(config: Mapping[str, Any]) -> list[Any]:
    """The splits of a config, with their paths."""
    return [config["data"][name] for name in ("train", "val", "test")]
