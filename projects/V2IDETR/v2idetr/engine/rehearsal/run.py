"""All of it for a config: data, models, eight frames a stage, causes, cost of the whole run."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.stage_settings import stages_to_train
from v2idetr.engine.rehearsal import causes, data
from v2idetr.engine.rehearsal.cost import StageCost, measure
from v2idetr.engine.rehearsal.finding import Finding
from v2idetr.engine.rehearsal.frames import EightFrames, eight_frames
from v2idetr.engine.rehearsal.training import Outcome, train_on
from v2idetr.engine.run_context import RunContext, load_splits
from v2idetr.engine.signals import StopSignals
from v2idetr.engine.stage import DetectorStage, Stage, StageModels
from v2idetr.engine.stage_training import SAME_BATCH
from v2idetr.engine.stages import build_to_train, check_models
from v2idetr.runs.folder import holds_results

GIB, MIB = 2**30, 2**20
TRAINING_SHARE, TRIAL_SHARE = 0.6, 0.2  # of a stage's time; two trials
BUSY = 0.75  # load per core
Tell = Callable[[str], object]


def examine_run(
    config: DictConfig,
    device: torch.device,
    *,
    budget_s: float,
    available_gib: float | None,
    signals: StopSignals,
    tell: Tell = lambda words: None,
) -> Iterator[Finding]:
    """Findings about a run of train_net.py on one process; nothing is written into its folder.

    Args:
        config: resolved and checked, see `load_run_config`.
        budget_s: time for all trainings on eight frames together; reading the data and the
            measurement of the cost take more.
        available_gib: main memory; None if unknown.
        signals: whose `StopRequested` passes.
        tell: gets a few words now and then.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # of others
    yield from _folder(config)
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        copied = copy.deepcopy(config)
        copied.train.output_dir = folder
        notes: list[str] = []
        with _noted(notes):
            try:
                splits = load_splits(copied, with_train=True)
                run = RunContext(copied, device, splits, signals)
                names = stages_to_train(copied)
                yield from (Finding("data", "ok", s.report.summary()) for s in splits.values())
                check_models(run, names)
            except (ValueError, CheckpointError, OSError) as error:
                yield from (Finding("config", "fail", line) for line in str(error).splitlines())
                return
        yield from (Finding("note", "warn", note) for note in dict.fromkeys(notes))
        end_s = time.monotonic() + budget_s
        costs: list[StageCost] = []
        for number, name in enumerate(names):
            share_s = max(0.0, end_s - time.monotonic()) / (len(names) - number)
            with _noted([]):
                yield from _stage(run, run.stages[name], share_s, costs, tell)
        yield from _whole_run(config, costs, device, available_gib, load)


def _stage(
    run: RunContext, stage: Stage, share_s: float, costs: list[StageCost], tell: Tell
) -> Iterator[Finding]:
    if not getattr(stage, "in_steps", type(stage).train is Stage.train):
        yield Finding(stage.name, "ok", "not tried: it is not trained in steps")
        return
    models = _ready(run, stage)
    if isinstance(stage, DetectorStage):
        yield from _until_found(run, stage, models, share_s, tell)
    tell(f"{stage.name}: time and memory")
    cost = measure(run, stage, models)
    costs.append(cost)
    if not isinstance(stage, DetectorStage):
        course = f"loss {cost.losses[0]:.3f} to {cost.losses[-1]:.3f} in {len(cost.losses)} steps"
        yield Finding(f"{stage.name}: steps", "ok", course)
    yield Finding(f"{stage.name}: time", "ok", _times(cost))


def _ready(run: RunContext, stage: Stage) -> StageModels:
    """Models with the weights that they start from, on the device."""
    models = build_to_train(run, stage.name)
    stage.load_needs(run, models)
    if models.teacher is not None:
        models.teacher.to(run.device)
    models.trained.to(run.device)
    return models


def _until_found(
    run: RunContext, stage: Stage, models: StageModels, share_s: float, tell: Tell
) -> Iterator[Finding]:
    """Train on eight frames; what was found, or else why not."""
    frames = eight_frames(run, stage, models)
    found = list(data.data_findings(run, stage, models, frames))
    yield from found
    named: Tell = lambda words: tell(f"{stage.name}: eight frames: {words}")  # noqa: E731
    until_s = time.monotonic() + TRAINING_SHARE * share_s
    outcome = train_on(run, stage, models, frames, until_s=until_s, tell=named)
    topic, spent = f"{stage.name}: eight frames", f"{outcome.steps} steps, {outcome.time_s:.0f} s"
    if outcome.found:
        words = f"all {frames.boxes} lesions of {len(frames.batch)} frames found after {spent}"
        yield Finding(topic, "ok", f"{words}; {causes.describe(outcome)}")
        return
    why = list(_causes(run, stage, models, frames, outcome, share_s, tell))
    failed = [f.topic for f in [*found, *why] if f.level == "fail"]
    words = (
        f"{outcome.hits} of {frames.boxes} lesions found above all false positives after {spent}"
    )
    words += f"; {causes.describe(outcome)}"
    if failed:
        remedy = "see " + ", ".join(failed)
    elif outcome.falling:
        remedy = "the loss still falls: nothing is proven; give more time with --minutes"
    else:
        remedy = "the loss has stopped falling: see the findings about this stage"
    undecided = outcome.falling and not failed
    yield Finding(topic, "warn" if undecided else "fail", words, remedy)
    yield from why


def _causes(
    run: RunContext,
    stage: Stage,
    models: StageModels,
    frames: EightFrames,
    outcome: Outcome,
    share_s: float,
    tell: Tell,
) -> Iterator[Finding]:
    def trial(rate: float) -> Outcome:
        words: Tell = lambda said: tell(f"{stage.name}: rates x{rate:g}: {said}")  # noqa: E731
        until_s = time.monotonic() + TRIAL_SHARE * share_s
        steps = max(20, outcome.steps)
        return train_on(
            run, stage, _ready(run, stage), frames,
            until_s=until_s, rate=rate, most_steps=steps, tell=words,
        )  # fmt: skip

    if not outcome.error:
        yield from causes.classes(stage, outcome, list(run.config.data.class_names))
        finest_px = data.finest_stride(models.model, frames)
        yield from causes.missed_boxes(stage, outcome, finest_px)
        yield from causes.unmoved(stage, outcome, models.trained)
    yield from causes.learning_rate(run, stage, outcome, trial)


def _folder(config: DictConfig) -> Iterator[Finding]:
    folder = Path(config.train.output_dir)
    if holds_results(folder):
        remedy = "--resume continues it; else choose another train.output_dir"
        yield Finding("output folder", "warn", f"{folder} already holds a run", remedy)


def _times(cost: StageCost) -> str:
    parts = [
        f"{cost.steps} steps of {cost.step_s:.3g} s (of it {cost.waiting_s:.2g} s waiting for data)"
    ]
    if cost.frame_s:
        parts.append(
            f"{cost.validations} validations of {cost.validated_frames} frames of "
            f"{1000 * cost.frame_s:.0f} ms, evaluation of {cost.evaluated_frames}"
        )
    return f"{duration(cost.total_s)}: {', '.join(parts)}"


def _whole_run(
    config: DictConfig,
    costs: list[StageCost],
    device: torch.device,
    available_gib: float | None,
    load: float = 0.0,
) -> Iterator[Finding]:
    if not costs:
        return
    total_s = sum(cost.total_s for cost in costs)
    words = ", ".join(f"{cost.stage} {duration(cost.total_s)}" for cost in costs)
    about = "at most" if config.train.patience else "about"
    found = f"{about} {duration(total_s)} on one process: {words}"
    cores = os.cpu_count() or 1
    if load > BUSY * cores:
        remedy = f"the machine was busy (load {load:.1f}, {cores} cores): try again when it is not"
        yield Finding("run: time", "warn", found, remedy)
    else:
        yield Finding("run: time", "ok", found)
    largest = max(costs, key=lambda cost: cost.memory_bytes)
    peak = largest.memory_bytes / GIB
    found = f"peak {peak:.1f} GiB, in stage {largest.stage}"
    if available_gib is not None:
        found += f"; {available_gib:.1f} GiB available"
    short = available_gib is not None and peak > available_gib
    fewer = f"lower train.clips_at_once ({SAME_BATCH}), train.num_workers"
    yield Finding("run: memory", "fail" if short else "ok", found, fewer if short else "")
    if device.type == "cuda":
        gpu = max(cost.cuda_bytes for cost in costs) / GIB
        total = torch.cuda.get_device_properties(device).total_memory / GIB
        level = "warn" if gpu > 0.9 * total else "ok"
        yield Finding("run: GPU memory", level, f"peak {gpu:.1f} of {total:.1f} GiB")
    folder = Path(config.train.output_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free, needed = shutil.disk_usage(there).free, sum(cost.disk_bytes for cost in costs)
    level = "fail" if needed > free else "ok"
    found = f"{needed / MIB:.0f} MiB of checkpoints; {free / GIB:.1f} GiB free at {there}"
    yield Finding("run: disk", level, found, "" if level == "ok" else "free some space")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Warnings of the package go into a list in this block, and nothing to the terminal."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    package, handler = logging.getLogger("v2idetr"), Keep(logging.WARNING)
    before = package.propagate, list(package.handlers)
    package.propagate, package.handlers = False, [handler]
    try:
        yield
    finally:
        package.propagate, package.handlers = before[0], before[1]
