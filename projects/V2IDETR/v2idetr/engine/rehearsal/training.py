"""A stage's own training, by its own losses and rates, on the same eight frames at every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.ops import box_iou

from v2idetr.engine.rehearsal.frames import EightFrames
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import Stage, StageModels
from v2idetr.engine.stage_training import bare_trainer
from v2idetr.engine.trainer import NonFiniteLossError, TrainerHook
from v2idetr.evaluation.frames import LabelledFrame, label_frames
from v2idetr.evaluation.lesion_metrics import get_rule
from v2idetr.evaluation.predictions import FramePrediction, predict

MOST_STEPS = 3000
CHECK_PERIOD = 10  # steps between looks at the detections
WARM_UP_STEPS = 10
SOUND_IOU = 0.5


@dataclass
class Outcome:
    """What a training on the frames gave.

    Attributes:
        losses: of every step, in total.
        time_s: of all steps, with the looks at the detections.
        found: all lesions are found at IoU 0.5, and no false positive has a higher score.
        hits: lesions that are found above all false positives, at the last look.
        frames: ground truth and detections at the last look.
        ratios: width and height of each at the network's input, over those of its file.
        error: why it ended early; "" if it did not.
        moved: relative change of the weights by the name of the optimizer's group.
    """

    losses: list[float] = field(default_factory=list)
    time_s: float = 0.0
    found: bool = False
    hits: int = 0
    frames: list[LabelledFrame] = field(default_factory=list)
    ratios: list[np.ndarray] = field(default_factory=list)
    error: str = ""
    moved: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return len(self.losses)

    def loss_near(self, step: int) -> float:
        """Median of the ten losses up to a step."""
        return float(np.median(self.losses[max(0, step - 10) : step]))

    @property
    def first_loss(self) -> float:
        """Before much was learnt."""
        return float(np.median(self.losses[:3]))

    @property
    def falling(self) -> bool:
        """Whether the last quarter of the losses is at least 5 % below the one before it."""
        quarter = len(self.losses) // 4
        if quarter < 5:
            return True
        before = np.median(self.losses[-2 * quarter : -quarter])
        return float(np.median(self.losses[-quarter:])) < 0.95 * float(before)


def train_on(
    run: RunContext,
    stage: Stage,
    models: StageModels,
    frames: EightFrames,
    *,
    until_s: float,
    rate: float = 1.0,
    most_steps: int = MOST_STEPS,
    tell: Callable[[str], object] = lambda words: None,
) -> Outcome:
    """Train until the lesions are found, the time is up or a loss is not finite.

    Args:
        until_s: end of the time, of `time.monotonic`.
        rate: factor of all learning rates.
        tell: gets a few words after every look.
    """
    size, limit = len(frames.batch), run.config.train.clips_at_once
    parts = next(n for n in range(1, size + 1) if size % n == 0 and size // n <= limit)
    trainer = bare_trainer(run, stage, models, repeat(frames.batch), accumulate=parts)
    optimizer = trainer.optimizer
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"] = group["lr"] * rate
    before = _weights(optimizer)
    outcome = Outcome()
    watch = _Watch(outcome, models.model, frames, until_s, tell)
    trainer.register_hooks([*stage.hooks(models), watch])
    start = time.monotonic()
    try:
        trainer.train(0, most_steps)
    except NonFiniteLossError as error:
        outcome.error = str(error)
    if not outcome.error and not outcome.frames:
        look(outcome, models.model, frames)
    outcome.time_s = time.monotonic() - start
    outcome.moved = {
        group["name"]: _change(before[group["name"]], group["params"])
        for group in optimizer.param_groups
    }
    return outcome


def look(outcome: Outcome, model: nn.Module, frames: EightFrames) -> None:
    """Detect in the frames and count what is found."""
    outcome.frames = label_frames(
        frames.split, predict(model, [[sample] for sample in frames.seen]), name="train"
    )
    outcome.ratios = [
        np.array([s["image"].shape[2] / s["width"], s["image"].shape[1] / s["height"]])
        for s in frames.seen
    ]
    rule = get_rule("iou50")
    hits, false = zip(*(rule(frame) for frame in outcome.frames), strict=True)
    worst = max((float(scores.max(initial=-1.0)) for scores in false), default=-1.0)
    outcome.hits = sum(int((scores > worst).sum()) for scores in hits)
    outcome.found = outcome.hits == frames.boxes


def found_of_any_class(frame: LabelledFrame) -> dict[int, int]:
    """Class of the best box with IoU 0.5, whatever it is, by the index of the lesion below it."""
    boxes: FramePrediction = frame.prediction
    if not len(boxes.scores):
        return {}
    iou = box_iou(torch.from_numpy(boxes.boxes_xyxy_px), torch.from_numpy(frame.lesions_xyxy_px))
    found = {}
    for lesion, overlaps in enumerate(iou.T.numpy()):
        over = np.flatnonzero(overlaps >= SOUND_IOU)
        if len(over):
            found[lesion] = int(boxes.classes[over[boxes.scores[over].argmax()]])
    return found


class _Watch(TrainerHook):
    """Warms up, keeps the losses, looks at the detections, ends the training."""

    def __init__(
        self,
        outcome: Outcome,
        model: nn.Module,
        frames: EightFrames,
        until_s: float,
        tell: Callable[[str], object],
    ) -> None:
        self.outcome, self.model, self.frames = outcome, model, frames
        self.until_s, self.tell = until_s, tell

    def before_step(self) -> None:
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1.0, (self.trainer.iter + 1) / WARM_UP_STEPS)

    def after_step(self) -> None:
        outcome, done = self.outcome, self.trainer.iter + 1
        outcome.losses.append(self.trainer.step_metrics["total_loss"])
        late = time.monotonic() > self.until_s
        if late or done % CHECK_PERIOD == 0 or done == self.trainer.max_iter:
            look(outcome, self.model, self.frames)
            loss = outcome.losses[-1]
            self.tell(f"step {done}, loss {loss:.2f}, {outcome.hits} of {self.frames.boxes} found")
        if late or outcome.found:
            self.trainer.max_iter = done


def _weights(optimizer: Any) -> dict[str, list[torch.Tensor]]:
    return {g["name"]: [p.detach().clone() for p in g["params"]] for g in optimizer.param_groups}


@torch.no_grad()
def _change(old: list[torch.Tensor], new: list[torch.Tensor]) -> float:
    size = sum(float(tensor.float().square().sum()) for tensor in old) ** 0.5
    moved = sum(float((b - a).float().square().sum()) for a, b in zip(old, new, strict=True)) ** 0.5
    return moved / max(size, 1e-12)
