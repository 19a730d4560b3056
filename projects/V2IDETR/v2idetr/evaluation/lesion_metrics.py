"""Precision, recall and F1 of lesion detection, by named rules.

A lesion is one ground-truth box on one frame. At a score threshold a rule counts lesions found
(true positives), wrong detections (false positives) and lesions missed (false negatives); metrics
are micro-averages of the summed counts:

    precision = TP / (TP + FP)     recall = TP / (TP + FN)     F1 = 2 TP / (2 TP + FP + FN)

A metric with denominator zero is undefined: ``None``, never 0 or 1. With lesions but no detection,
precision is None, recall 0 and F1 0; on lesion-free frames recall is None, and F1 is 0 with any
detection, None without.

With several classes, a detection of the wrong class is a false positive and finds no lesion.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torchvision.ops import box_iou

from v2idetr.evaluation.frames import LabelledFrame, Video
from v2idetr.evaluation.rule_names import RULE_NAMES

logger = logging.getLogger(__name__)

# Used, with a warning, if no lesion is found at any threshold.
FALLBACK_THRESHOLD = 0.5

Scores = Float[np.ndarray, "_"]
# A rule maps a frame to scores of true positives and of false positives; at threshold t, those >= t
# count. Duplicates that a rule ignores are in neither.
Rule = Callable[[LabelledFrame], tuple[Scores, Scores]]


@dataclass(frozen=True)
class Matches:
    """Detections and lesions of a frame by a rule, the same at all thresholds.

    Attributes:
        finder: index of the detection that finds each lesion, the best one; -1 where none does.
        false: whether each detection is a false positive; one that is not, and finds no lesion, is
            a duplicate that the rule ignores.
    """

    finder: Int[np.ndarray, "m"]
    false: Bool[np.ndarray, "n"]


Matcher = Callable[[LabelledFrame], Matches]


def endovis_center(frame: LabelledFrame) -> Matches:
    """Rule of the EndoVis 2015 polyp challenge, with the box centre as the detection's point.

    A lesion is found if a detection's centre lies strictly inside its box; further centres in the
    same box are ignored. A centre in no lesion's box is a false positive, as is every detection on
    a lesion-free frame. A centre inside two overlapping lesions finds both.
    """
    prediction = frame.prediction
    boxes = prediction.boxes_xyxy_px
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]
    lesions = frame.lesions_xyxy_px[None]
    inside = ((centres > lesions[..., :2]) & (centres < lesions[..., 2:])).all(-1)
    inside &= prediction.classes[:, None] == frame.lesion_classes
    finder = np.full(len(frame.lesions_xyxy_px), -1)
    if len(boxes):
        best = np.where(inside, prediction.scores[:, None], -np.inf).argmax(axis=0)
        finder = np.where(inside.any(axis=0), best, -1)
    return Matches(finder, ~inside.any(axis=1))


def iou50(frame: LabelledFrame) -> Matches:
    """One-to-one matching at IoU >= 0.5, greedy by score: duplicates are false positives.

    By descending score, a detection is matched to the unmatched lesion of its class with the
    highest IoU. Ties in score are broken by class and coordinates, so that the order of detections
    does not matter. Lower scores never change matches of higher ones, so one pass serves all
    thresholds.
    """
    prediction = frame.prediction
    boxes, scores = prediction.boxes_xyxy_px, prediction.scores
    overlaps = box_iou(torch.from_numpy(boxes), torch.from_numpy(frame.lesions_xyxy_px)).numpy()
    overlaps = np.where(prediction.classes[:, None] == frame.lesion_classes, overlaps, 0.0)
    finder = np.full(len(frame.lesions_xyxy_px), -1)
    order = np.lexsort((*boxes.T, prediction.classes, -scores))
    for detection in order[(overlaps[order] >= 0.5).any(axis=1)]:
        available = np.where(finder < 0, overlaps[detection], 0.0)
        lesion = available.argmax()
        if available[lesion] >= 0.5:
            finder[lesion] = detection
    false = np.ones(len(scores), dtype=bool)
    false[finder[finder >= 0]] = False
    return Matches(finder, false)


MATCHERS: dict[str, Matcher] = dict(zip(RULE_NAMES, (endovis_center, iou50), strict=True))


def _rule(match: Matcher) -> Rule:
    return lambda frame: match_scores(frame, match(frame))


RULES: dict[str, Rule] = {name: _rule(match) for name, match in MATCHERS.items()}


def get_rule(name: str) -> Rule:
    """The rule with a name.

    Raises:
        ValueError: there is none; lists the known ones.
    """
    if name not in RULES:
        raise ValueError(
            f"evaluation.rules: unknown rule {name!r}; the rules are {', '.join(sorted(RULES))}."
        )
    return RULES[name]


def match_scores(frame: LabelledFrame, matches: Matches) -> tuple[Scores, Scores]:
    """Scores of true positives, one a lesion that is found, and of false positives."""
    scores = frame.prediction.scores
    return scores[matches.finder[matches.finder >= 0]], scores[matches.false]


@dataclass(frozen=True)
class VideoCounts:
    """Counts of a rule in one video at one threshold."""

    video: Video
    frames: int
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class Outcomes:
    """True and false positives of a rule on a split, for all thresholds at once.

    Attributes:
        videos: the videos; the ``*_videos`` arrays index them.
        frames, lesions: number of each, per video.
        hit_scores, hit_videos: lesions found at thresholds up to this score, and their videos.
        false_scores, false_videos: false positives at thresholds up to this score, likewise.
    """

    videos: tuple[Video, ...]
    frames: Int[np.ndarray, "v"]
    lesions: Int[np.ndarray, "v"]
    hit_scores: Float[np.ndarray, "hits"]
    hit_videos: Int[np.ndarray, "hits"]
    false_scores: Float[np.ndarray, "false"]
    false_videos: Int[np.ndarray, "false"]

    def at(self, threshold: float) -> list[VideoCounts]:
        """Counts of each video for detections with score >= threshold."""
        size = len(self.videos)
        tp = np.bincount(self.hit_videos[self.hit_scores >= threshold], minlength=size)
        fp = np.bincount(self.false_videos[self.false_scores >= threshold], minlength=size)
        rows = zip(self.videos, self.frames, tp, fp, self.lesions - tp, strict=True)
        return [VideoCounts(video, *map(int, counts)) for video, *counts in rows]


def judge(frames: Sequence[LabelledFrame], rule: str) -> Outcomes:
    """Apply a rule to every frame."""
    apply = get_rule(rule)
    return pool_scores(frames, map(apply, frames))


def pool_scores(
    frames: Sequence[LabelledFrame], scores: Iterable[tuple[Scores, Scores]]
) -> Outcomes:
    """The outcomes of frames from what a rule gives for each of them."""
    videos = tuple(dict.fromkeys(frame.video for frame in frames))
    index = {video: i for i, video in enumerate(videos)}
    owner = np.array([index[frame.video] for frame in frames], dtype=np.int64)
    lesions = np.array([len(frame.lesions_xyxy_px) for frame in frames], dtype=np.int64)
    hits, false = [], []
    for frame_hits, frame_false in scores:
        hits.append(frame_hits)
        false.append(frame_false)
    return Outcomes(
        videos=videos,
        frames=np.bincount(owner, minlength=len(videos)),
        lesions=np.bincount(owner, weights=lesions, minlength=len(videos)).astype(np.int64),
        hit_scores=np.concatenate([np.zeros(0), *hits]),
        hit_videos=np.repeat(owner, [len(scores) for scores in hits]),
        false_scores=np.concatenate([np.zeros(0), *false]),
        false_videos=np.repeat(owner, [len(scores) for scores in false]),
    )


@dataclass(frozen=True)
class Sweep:
    """Pooled counts at each threshold where they change, in descending order."""

    thresholds: Float[np.ndarray, "k"]
    tp: Int[np.ndarray, "k"]
    fp: Int[np.ndarray, "k"]
    lesions: int

    @property
    def f1(self) -> Float[np.ndarray, "k"]:
        """F1 at each threshold; 2 TP + FP + FN = TP + FP + lesions is never 0 there."""
        return 2 * self.tp / (self.tp + self.fp + self.lesions)


def sweep(outcomes: Outcomes) -> Sweep:
    """Pooled counts with all distinct scores as thresholds (no grid)."""
    hits, false = np.sort(outcomes.hit_scores), np.sort(outcomes.false_scores)
    thresholds = np.unique(np.concatenate([hits, false]))[::-1]
    return Sweep(
        thresholds=thresholds,
        tp=len(hits) - np.searchsorted(hits, thresholds, side="left"),
        fp=len(false) - np.searchsorted(false, thresholds, side="left"),
        lesions=int(outcomes.lesions.sum()),
    )


def choose_threshold(outcomes: Outcomes) -> float:
    """The threshold with the highest pooled F1; the highest of several.

    If no lesion is found at any threshold, ``FALLBACK_THRESHOLD`` with a warning.
    """
    curve = sweep(outcomes)
    if not curve.tp.any():
        logger.warning(
            "No lesion (of %d) is found at any threshold; using threshold %.2f.",
            curve.lesions,
            FALLBACK_THRESHOLD,
        )
        return FALLBACK_THRESHOLD
    # argmax takes the first maximum. F1 is one division of integers, so equal values are exact.
    return float(curve.thresholds[curve.f1.argmax()])


def summarize(counts: Sequence[VideoCounts]) -> dict[str, Any]:
    """Counts and micro-averaged metrics over videos; undefined metrics are None."""
    tp, fp, fn = (sum(getattr(video, key) for video in counts) for key in ("tp", "fp", "fn"))
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
