"""Why a stage has not found the eight frames: from its losses, weights and detections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from v2idetr.config.stage_settings import optimizer_key, value_at
from v2idetr.engine.rehearsal.finding import Finding
from v2idetr.engine.rehearsal.training import Outcome, found_of_any_class
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import Stage

RATES = (0.1, 10.0)
CLEARLY_LOWER = 0.8  # share of a loss
RISEN = 1.5  # last loss over the first
FLAT = 0.9
FEWEST_STEPS = 15  # from which two trainings are compared
UNMOVED = 1e-6  # relative change of weights


def learning_rate(
    run: RunContext,
    stage: Stage,
    outcome: Outcome,
    trial: Callable[[float], Outcome],
) -> Iterator[Finding]:
    """Train with a tenth and ten times the rates, and say which learns.

    Args:
        outcome: with the rates of the config.
        trial: factor of the rates -> the same training with them, as long or shorter.
    """
    topic, course = f"{stage.name}: learning rate", describe(outcome)
    trials = {rate: trial(rate) for rate in RATES}
    sound = {rate: other for rate, other in trials.items() if not other.error and other.steps}
    best = min(sound, key=lambda rate: _reached(sound[rate], sound[rate].steps), default=None)
    words = [f"x{rate:g}: {describe(other)}" for rate, other in trials.items()]
    found = f"{course}; with the rates " + ", ".join(words)
    broken = bool(outcome.error) or outcome.loss_near(outcome.steps) > RISEN * outcome.first_loss
    if best is not None and _learns_better(sound[best], outcome):
        yield Finding(topic, "fail", found, _other_rates(run, stage, best))
    elif broken:
        yield Finding(topic, "fail", found, "none of these rates learns: see the other findings")
    elif any(other.steps < FEWEST_STEPS for other in sound.values()):
        remedy = f"rates are compared from {FEWEST_STEPS} steps on: give more time with --minutes"
        yield Finding(topic, "warn", found, remedy)
    else:
        yield Finding(topic, "ok", found)


def unmoved(stage: Stage, outcome: Outcome, trained: Any) -> Iterator[Finding]:
    """Parts of the model that training leaves as they are."""
    still = [name for name, change in outcome.moved.items() if change < UNMOVED]
    frozen = sum(p.numel() for p in trained.parameters() if not p.requires_grad)
    every = sum(p.numel() for p in trained.parameters())
    moved = ", ".join(f"{name} by {change:.1%}" for name, change in outcome.moved.items())
    found = f"{frozen} of {every} parameters are frozen; in {outcome.steps} steps changed: {moved}"
    if not still and frozen < every / 2:
        return
    names = f"; not at all: {', '.join(still)}" if still else ""
    yield Finding(
        f"{stage.name}: frozen parts",
        "warn",
        found + names,
        "a backbone that does not learn needs weights of other images (model.net.weights): give "
        "them, or let it learn (optimizer.backbone_lr, freeze settings of the model)",
    )


def classes(stage: Stage, outcome: Outcome, names: Sequence[str]) -> Iterator[Finding]:
    """Lesions that are found under the name of another class, and classes that are never given."""
    given: dict[int, list[int]] = {}
    for frame in outcome.frames:
        for lesion, label in found_of_any_class(frame).items():
            given.setdefault(int(frame.lesion_classes[lesion]), []).append(label)
    for label, others in given.items():
        wrong = [other for other in others if other != label]
        if len(wrong) * 2 < len(others):
            continue
        called = ", ".join(names[other] for other in sorted(set(wrong)))
        never = ", and never as such" if len(wrong) == len(others) else ""
        yield Finding(
            f"{stage.name}: classes",
            "fail",
            f"of {len(others)} lesions of the class {names[label]} that have a box, {len(wrong)} "
            f"are detected as {called}{never}",
            "look at the labels: frames of one look may have different classes, or the order of "
            "the categories differs between files",
        )


def missed_boxes(stage: Stage, outcome: Outcome, finest_px: int) -> Iterator[Finding]:
    """Sizes of the lesions without a sound box, against those with one."""
    with_box: list[float] = []
    without: list[float] = []
    for frame, ratio in zip(outcome.frames, outcome.ratios, strict=True):
        found = found_of_any_class(frame)
        sides = (frame.lesions_xyxy_px[:, 2:] - frame.lesions_xyxy_px[:, :2]) * ratio
        for lesion, side in enumerate(sides.max(1).tolist()):
            (with_box if lesion in found else without).append(side)
    if not without:
        return
    sizes = f"{len(without)} of {len(with_box) + len(without)} lesions have no box with IoU 0.5"
    sizes += f"; their longer sides at the network's input: {_range(without)} px"
    sizes += f"; of those found: {_range(with_box)} px" if with_box else ""
    small = bool(finest_px) and float(np.median(without)) < finest_px / 2
    yield Finding(
        f"{stage.name}: missed boxes",
        "fail" if small else "warn",
        sizes + (f"; a cell of the finest map has {finest_px} px" if finest_px else ""),
        "they are too small for this detector: larger images (data.augmentations), or finer maps"
        if small
        else "look at these frames: tools/check_data.py shows their boxes",
    )


def describe(outcome: Outcome) -> str:
    """The course of a training in words."""
    if outcome.error:
        return f"loss not finite at step {outcome.steps + 1}"
    last = outcome.loss_near(outcome.steps)
    kind = "loss"
    if last > RISEN * outcome.first_loss:
        kind = "loss rises"
    elif last > FLAT * outcome.first_loss:
        kind = "loss is flat"
    return f"{kind} {outcome.first_loss:.2f} to {last:.2f} in {outcome.steps} steps"


def _learns_better(other: Outcome, outcome: Outcome) -> bool:
    if other.steps < FEWEST_STEPS and not other.found:
        return False
    if outcome.error:
        return _reached(other, other.steps) < CLEARLY_LOWER * other.first_loss
    steps = min(other.steps, outcome.steps)
    return _reached(other, steps) < CLEARLY_LOWER * _reached(outcome, steps)


def _reached(outcome: Outcome, steps: int) -> float:
    return 0.0 if outcome.found else outcome.loss_near(steps)


def _other_rates(run: RunContext, stage: Stage, factor: float) -> str:
    """Config keys with these rates, and what they are now."""
    key = optimizer_key(run.config, stage.name)
    rates = {name: value_at(run.config, f"{key}.{name}") for name in ("lr", "backbone_lr")}
    given = {f"{key}.{name}": float(rate) for name, rate in rates.items() if rate is not None}
    now = ", ".join(f"{rate:g}" for rate in given.values())
    return " ".join(f"{name}={rate * factor:g}" for name, rate in given.items()) + f" (now {now})"


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if high - low < 1 else f"{low:.0f} to {high:.0f}"
