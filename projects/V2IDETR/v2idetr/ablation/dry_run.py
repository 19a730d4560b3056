"""Dry run of an ablation: detectors are built and students tried before anything is trained.

train_net.py does this for its own stages. In an ablation, teachers and students are separate runs:
a student's error would show only after its teacher was trained.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from v2i_runtime.progress import progress_bar
from v2idetr.ablation.runs import PLAIN, STUDENT, Run, listed_by_row
from v2idetr.config.load import to_plain
from v2idetr.config.stage_settings import model_key
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.signals import StopSignals
from v2idetr.engine.stages import build_to_train, check_models


def new_students(runs: Sequence[Run]) -> list[Run]:
    """The first run that has not begun, of each row with a teacher."""
    rows: dict[str, Run] = {}
    for run in runs:
        if run.teacher is not None and not run.begun:
            rows.setdefault(run.row.key, run)
    return list(rows.values())


def check_starts(runs: Sequence[Run]) -> None:
    """Build the detectors of all runs that have not begun, with their initial weights.

    Args:
        runs: runs of the table; equal detectors are built once.

    Raises:
        ValueError: errors with their rows, such as a missing file of backbone weights.
    """
    problems: dict[str, list[str]] = {}
    errors: dict[str, str] = {}  # by detector; "" for none
    waiting = [run for run in runs if not run.begun]
    for run in waiting:
        stage = PLAIN if run.stage == STUDENT else run.stage  # a student is the plain detector
        detector = _detector_of(run, stage)
        if detector not in errors:
            errors[detector] = _build_error(run, stage)
        rows = problems.setdefault(errors[detector], [])
        if run.row.name not in rows:
            rows.append(run.row.name)
    problems.pop("", None)
    if problems:
        heading = "these detectors cannot be built (leave rows out with --rows):"
        rows = {run.row.name for run in waiting}
        raise ValueError(listed_by_row(heading, problems, len(rows)))


def check_batches(runs: Sequence[Run], splits: Mapping[str, Any]) -> None:
    """Check that the training split has enough frames for one step of each control.

    Raises:
        ValueError: it has fewer frames than the batch size.
    """
    frames = len(splits["train"].records)
    for run in runs:
        wanted = run.config.train.batch_size
        if run.row.equal is not None and wanted > frames:
            raise ValueError(
                f"Row {run.row.name} has as many labelled frames per step as the teacher, "
                f"{wanted}, but data.train has {frames}: lower teacher.batch_size or "
                "data.num_frames, or leave the row out with --rows."
            )


def check_students(students: Sequence[Run], splits: Mapping[str, Any]) -> None:
    """Build each student with an untrained teacher, and compute its losses on one clip.

    Args:
        students: see `new_students`.
        splits: splits of all runs, see `engine.run_context.load_splits`.

    Raises:
        ValueError: errors with their rows.
    """
    problems: dict[str, list[str]] = {}
    title = "dry run of the students"
    for student in progress_bar(students, desc=title, unit="row", disable=not students):
        config = copy.deepcopy(student.config)
        config.teacher.checkpoint = ""  # untrained
        run = RunContext(config, torch.device("cpu"), dict(splits), StopSignals())
        try:
            with _quiet():
                check_models(run, [STUDENT])
        except ValueError as error:
            problems.setdefault(str(error), []).append(student.row.name)
    if problems:
        heading = "these students do not fit their teachers (leave rows out with --rows):"
        raise ValueError(listed_by_row(heading, problems, len(students)))


def _build_error(run: Run, stage: str) -> str:
    """Error of building a detector with its initial weights; "" for none."""
    try:
        with _quiet():
            build_to_train(RunContext(run.config, torch.device("cpu"), {}, StopSignals()), stage)
    except ValueError as error:
        return str(error)
    return ""


def _detector_of(run: Run, stage: str) -> str:
    """Config and initial weights of a stage's detector, as text to compare."""
    config = to_plain(run.config)
    parts = [stage, config[model_key(config, stage).partition(".")[0]]]
    parts += [config["train"][key] for key in ("init_checkpoint", "init_partial")]
    return json.dumps(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of the package, which each run has in its own log."""
    package = logging.getLogger("v2idetr")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(level)
