"""Before hours of training: do students fit their teachers?

train_net.py tries every stage that it is about to train. Here a teacher and its students are runs
of their own, so the students would have their say only after the teacher.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from v2idetr.ablation.runs import PLAIN, STUDENT, TEACHER, Run, listed_by_row
from v2idetr.config.load import to_plain
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.signals import StopSignals
from v2idetr.engine.stages import build_to_train, check_models
from v2idetr.progress import progress_bar


def new_students(runs: Sequence[Run]) -> list[Run]:
    """Of each row with a teacher the first run that is still to begin."""
    rows: dict[str, Run] = {}
    for run in runs:
        if run.teacher is not None and not run.begun:
            rows.setdefault(run.row.key, run)
    return list(rows.values())


def check_starts(runs: Sequence[Run]) -> None:
    """Build the detectors of all runs that are to begin, with the weights that they start from.

    Args:
        runs: which may have detectors in common; each is built once.

    Raises:
        ValueError: what is wrong with which rows, such as a missing file of backbone weights.
    """
    problems: dict[str, list[str]] = {}
    said: dict[str, str] = {}  # by detector; "" where nothing is wrong
    waiting = [run for run in runs if not run.begun]
    for run in waiting:
        stage = TEACHER if run.trains_teacher else PLAIN  # a student is the plain detector
        detector = _detector_of(run, stage)
        if detector not in said:
            said[detector] = _refusal(run, stage)
        rows = problems.setdefault(said[detector], [])
        if run.row.name not in rows:
            rows.append(run.row.name)
    problems.pop("", None)
    if problems:
        heading = "detectors that cannot be built (--rows can leave rows out):"
        rows = {run.row.name for run in waiting}
        raise ValueError(listed_by_row(heading, problems, len(rows)))


def check_batches(runs: Sequence[Run], splits: Mapping[str, Any]) -> None:
    """A step of the controls must not need a frame twice.

    Raises:
        ValueError: the training split has fewer frames than a step asks for.
    """
    frames = len(splits["train"].records)
    for run in runs:
        wanted = run.config.train.batch_size
        if run.row.equal is not None and wanted > frames:
            raise ValueError(
                f"Row {run.row.name} has as many labelled frames a step as the teacher, {wanted}, "
                f"but data.train has {frames}: lower teacher.batch_size or data.num_frames, or "
                "leave the row out with --rows."
            )


def check_students(students: Sequence[Run], splits: Mapping[str, Any]) -> None:
    """Build each student with an untrained teacher, and compute its losses of one clip.

    Args:
        students: see `new_students`.
        splits: of all runs, see `engine.run_context.load_splits`.

    Raises:
        ValueError: what is wrong with which rows.
    """
    problems: dict[str, list[str]] = {}
    title = "trying the students"
    for student in progress_bar(students, desc=title, unit="row", disable=not students):
        config = copy.deepcopy(student.config)
        config.teacher.checkpoint = ""  # an untrained one does
        run = RunContext(config, torch.device("cpu"), dict(splits), StopSignals())
        try:
            with _quiet():
                check_models(run, [STUDENT])
        except ValueError as error:
            problems.setdefault(str(error), []).append(student.row.name)
    if problems:
        heading = "students that do not fit their teachers (--rows can leave rows out):"
        raise ValueError(listed_by_row(heading, problems, len(students)))


def _refusal(run: Run, stage: str) -> str:
    """Why a detector cannot be built with what it starts from; "" if it can."""
    try:
        with _quiet():
            build_to_train(RunContext(run.config, torch.device("cpu"), {}, StopSignals()), stage)
    except ValueError as error:
        return str(error)
    return ""


def _detector_of(run: Run, stage: str) -> str:
    """What a stage's detector is and starts from, as text to compare."""
    config = to_plain(run.config)
    parts = [stage, config["teacher"] if stage == TEACHER else config["model"]]
    parts += [config["train"][key] for key in ("init_checkpoint", "init_partial")]
    return json.dumps(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks that each run makes itself, in its log."""
    package = logging.getLogger("v2idetr")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(level)
