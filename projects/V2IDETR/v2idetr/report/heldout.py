"""Held-out frames grouped by the models that are right, and examples of each group.

A model is right on a frame if, at its threshold, it finds every lesion and has no false positive:
by the rule ``iou50`` if it was evaluated, else by the first rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torchvision.ops import box_iou

from v2idetr.data.coco_vid import SplitData, read_split
from v2idetr.evaluation.frames import LabelledFrame, Video, label_frames
from v2idetr.evaluation.lesion_metrics import get_rule
from v2idetr.evaluation.predictions import FramePrediction, read_predictions
from v2idetr.runs.reading import RunFiles


@dataclass(frozen=True)
class Outcome:
    """Detections of one model on a frame at its threshold, and their assessment."""

    boxes_xyxy_px: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    classes: Int[np.ndarray, "n"]
    right: bool
    words: str


@dataclass(frozen=True)
class HeldOutFrame:
    """A frame with its lesions and the outcome of each model, by stage."""

    video: Video
    record: Mapping[str, Any]
    lesions_xyxy_px: Float[np.ndarray, "m 4"]
    lesion_classes: Int[np.ndarray, "m"]
    outcomes: Mapping[str, Outcome]

    @property
    def right(self) -> dict[str, bool]:
        """Whether each model is right, by stage."""
        return {stage: outcome.right for stage, outcome in self.outcomes.items()}


@dataclass(frozen=True)
class Group:
    """Frames on which the same models are right, and the examples that are shown."""

    title: str
    frames: Sequence[HeldOutFrame]
    shown: Sequence[HeldOutFrame]


NEAR_MISS = 0.2  # IoU from which a false positive counts as a badly placed box

# Title, number of examples, and condition; a frame belongs to the first group that matches.
Belongs = Callable[[Mapping[str, bool]], bool]
GROUPS: tuple[tuple[str, int, Belongs], ...] = (
    ("All models are right", 2, lambda r: all(r.values())),
    (
        "The V2I student is right, the plain student is not",
        3,
        lambda r: r.get("student", False) and not r.get("plain", True),
    ),
    (
        "The plain student is right, the V2I student is not",
        3,
        lambda r: r.get("plain", False) and not r.get("student", True),
    ),
    (
        "Both students are right, the teacher is not",
        2,
        lambda r: r.get("plain", False) and r.get("student", False) and not r.get("teacher", True),
    ),
    ("Only the teacher is right", 2, lambda r: r.get("teacher", False) and sum(r.values()) == 1),
    ("No model is right", 2, lambda r: not any(r.values())),
    ("Some models are right", 2, lambda r: True),
)


def held_out_frames(run: RunFiles) -> list[HeldOutFrame]:
    """All frames of the test splits with the outcomes of all evaluated stages.

    Raises:
        ValueError: annotations or predictions are missing or do not match.
    """
    data, frames = run.settings["data"], []
    for name in data["test"]:
        split = read(data, data["test"][name])
        labelled = {
            stage: label_frames(split, _predictions(run, stage, name, split), name=name)
            for stage in run.evaluations
        }
        rules = {stage: chosen_rule(evaluation) for stage, evaluation in run.evaluations.items()}
        for index, record in enumerate(split.records):
            of_stage = {stage: rows[index] for stage, rows in labelled.items()}
            outcomes = {stage: judge_frame(row, *rules[stage]) for stage, row in of_stage.items()}
            any_row = next(iter(of_stage.values()))
            frames.append(
                HeldOutFrame(
                    any_row.video, record, any_row.lesions_xyxy_px, any_row.lesion_classes, outcomes
                )
            )
    return frames


def read(data: Mapping[str, Any], paths: Mapping[str, Any]) -> SplitData:
    """A split of a config's ``data`` section."""
    split = read_split(paths["json"], paths["image_root"], on_bad_box=data["on_bad_box"])
    split.report.problems.raise_if_any(str(paths["json"]))
    return split


def chosen_rule(evaluation: Mapping[str, Any]) -> tuple[str, float]:
    """The rule by which frames are shown, and its threshold from the validation split."""
    thresholds = evaluation["thresholds"]
    if not thresholds:
        raise ValueError("evaluation.rules is empty, so no score threshold was chosen.")
    rule = shown_rule(list(thresholds))
    return rule, thresholds[rule]


def shown_rule(rules: Sequence[str]) -> str:
    """The rule by which frames and curves are shown."""
    return "iou50" if "iou50" in rules else rules[0]


def judge_frame(frame: LabelledFrame, rule: str, threshold: float) -> Outcome:
    """Outcome of one model on one frame."""
    hit_scores, false_scores = get_rule(rule)(frame)
    hits, false = (int((scores >= threshold).sum()) for scores in (hit_scores, false_scores))
    below = float(hit_scores[hit_scores < threshold].max(initial=0.0))
    prediction = frame.prediction
    kept = prediction.scores >= threshold
    boxes = prediction.boxes_xyxy_px[kept]
    return Outcome(
        boxes_xyxy_px=boxes,
        scores=prediction.scores[kept],
        classes=prediction.classes[kept],
        right=hits == len(frame.lesions_xyxy_px) and not false,
        words=_words(hits, false, frame.lesions_xyxy_px, boxes, below, threshold),
    )


def groups_of(frames: Sequence[HeldOutFrame]) -> list[Group]:
    """Non-empty groups of frames by the models that are right, in the order of ``GROUPS``.

    Examples are the middle frames of evenly spaced videos, and one lesion-free frame if there are
    any: chosen by position, not by content.
    """
    rest, groups = list(frames), []
    for title, count, belongs in GROUPS:
        members = [frame for frame in rest if belongs(frame.right)]
        rest = [frame for frame in rest if not belongs(frame.right)]
        if members:
            groups.append(Group(title, members, _some(members, count)))
    return groups


def _some(frames: Sequence[HeldOutFrame], count: int) -> list[HeldOutFrame]:
    with_lesion = [frame for frame in frames if len(frame.lesions_xyxy_px)]
    without = [frame for frame in frames if not len(frame.lesions_xyxy_px)]
    reserved = 1 if with_lesion and without and count > 1 else 0
    chosen = _spread(with_lesion, count - reserved) + _spread(without, count)
    return chosen[:count]


def _spread(frames: Sequence[HeldOutFrame], count: int) -> list[HeldOutFrame]:
    """The middle frames of ``count`` evenly spaced videos."""
    by_video: dict[Video, list[HeldOutFrame]] = {}
    for frame in frames:
        by_video.setdefault(frame.video, []).append(frame)
    middles = [members[len(members) // 2] for members in by_video.values()]
    count = min(count, len(middles))
    return [middles[(2 * k + 1) * len(middles) // (2 * count)] for k in range(count)]


def _words(
    hits: int, false: int, lesions: np.ndarray, boxes: np.ndarray, below: float, threshold: float
) -> str:
    """``below``: highest score below the threshold of a box that would find a lesion."""
    if not len(lesions):
        return f"{_alarms(false)} on a lesion-free frame" if false else "correct, no detection"
    best = 0.0
    if len(boxes):
        best = float(box_iou(torch.from_numpy(boxes), torch.from_numpy(lesions)).max())
    missed = len(lesions) - hits
    alarms = f", {_alarms(false)}" if false else ""
    if not missed:
        return f"found, IoU {best:.2f}{alarms}"
    if hits:
        return f"{missed} of {len(lesions)} missed{alarms}"
    if best >= NEAR_MISS:
        return f"badly placed box, IoU {best:.2f}"
    why = f" (score {below:.2f} is below {threshold:.2f})" if below else ""
    return f"missed{why}{alarms}"


def _alarms(count: int) -> str:
    return "false alarm" if count == 1 else f"{count} false alarms"


def _predictions(run: RunFiles, stage: str, test: str, split: SplitData) -> list[FramePrediction]:
    path: Path = run.stages[stage].predictions(test)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; train_net.py --eval-only writes it again.")
    return read_predictions(path, split)
