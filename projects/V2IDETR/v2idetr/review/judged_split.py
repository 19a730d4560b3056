"""Detectors on a split with ground truth, judged once for all thresholds.

    Judgement     one detector by one rule: counts, missed lesions and false alarms at a threshold
    JudgedSplit   all detectors of a split: its videos, metrics, places to jump to

A missed lesion or a false alarm to jump to is a run of consecutive frames of a scene, so that one
that stays for a second is visited once. False alarms are counted as in
``evaluation/false_alarms.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from v2idetr.data.ground_truth import GroundTruth
from v2idetr.evaluation.false_alarms import continued
from v2idetr.evaluation.frames import LabelledFrame, label_frames
from v2idetr.evaluation.lesion_metrics import (
    MATCHERS,
    Outcomes,
    match_scores,
    pool_scores,
    summarize,
)
from v2idetr.evaluation.pool import Pool
from v2idetr.evaluation.predictions import FramePrediction

What = Literal["miss", "false"]
HIT, FALSE, DUPLICATE = 1, 0, 2  # of a detection, for the page


@dataclass(frozen=True)
class Judgement:
    """One detector on a split by one rule.

    Attributes:
        outcomes: scores of hits and of false positives.
        weakest: highest threshold at which all lesions of a frame are found; -inf where one never
            is, inf without lesions.
        alarming: highest score of a false positive of a frame; -inf without.
    """

    outcomes: Outcomes
    weakest: Float[np.ndarray, " frames"]
    alarming: Float[np.ndarray, " frames"]

    def flags(self, what: What, threshold: float) -> Bool[np.ndarray, " frames"]:
        """Frames with a missed lesion, or with a false alarm."""
        return self.weakest < threshold if what == "miss" else self.alarming >= threshold


def judge_all(frames: Sequence[LabelledFrame], rule: str) -> Judgement:
    """Judge every frame by a rule."""
    match = MATCHERS[rule]
    scores, weakest = [], []
    for frame in frames:
        matches = match(frame)
        scores.append(match_scores(frame, matches))
        hits = scores[-1][0]
        all_can_be_found = len(hits) == len(frame.lesions_xyxy_px)
        weakest.append(hits.min(initial=np.inf) if all_can_be_found else -np.inf)
    return Judgement(
        pool_scores(frames, scores),
        np.array(weakest),
        np.array([false.max(initial=-np.inf) for _, false in scores]),
    )


class JudgedSplit:
    """Ground truth of a split, and what detectors find there.

    Args:
        name: name of the split.
        truth: ground truth.
        predictions: predictions of every frame, by detector.

    Raises:
        ValueError: predictions do not fit the split.
    """

    def __init__(
        self,
        name: str,
        truth: GroundTruth,
        predictions: Mapping[str, Sequence[FramePrediction]],
    ) -> None:
        self.name, self.truth = name, truth
        self.records = truth.split.records
        self.frames = {
            detector: label_frames(truth.split, own, name=name)
            for detector, own in predictions.items()
        }
        self.judgements = {
            detector: {rule: judge_all(frames, rule) for rule in MATCHERS}
            for detector, frames in self.frames.items()
        }
        ids = [record["video_id"] for record in self.records]
        starts = [0, *(i for i, (a, b) in enumerate(pairwise(ids), start=1) if a != b), len(ids)]
        self.ranges = [range(a, b) for a, b in pairwise(starts)]
        self.video_ids = [ids[frames.start] for frames in self.ranges]
        self._pool = Pool({name: truth})
        self._continued = continued(self._pool)

    def runs(self, flags: Bool[np.ndarray, " frames"]) -> Bool[np.ndarray, " frames"]:
        """Whether a run of flagged frames of a scene begins at a frame."""
        before = np.concatenate([[False], flags[:-1]])
        return flags & ~(before & self._continued)

    # ------------------------------------------------------------------ metrics

    def metrics(self, detector: str, rule: str, threshold: float, video: int) -> dict[str, Any]:
        """Counts, precision, recall, F1 and false alarms of a video and of the whole split.

        Args:
            detector: name.
            rule: name of a rule.
            threshold: detections with at least this score count.
            video: position of the video in the split.

        Returns:
            ``{"video": metrics, "split": metrics}``; metrics as ``lesion_metrics.summarize`` gives
            them, with ``alarms`` and ``alarms_a_minute`` (None without a frame rate).
        """
        judgement = self.judgements[detector][rule]
        counts = judgement.outcomes.at(threshold)
        alarms = self.runs(judgement.flags("false", threshold))
        own = int(alarms[self.ranges[video].start : self.ranges[video].stop].sum())
        lengths = self._pool.minutes[self.name, self.video_ids[video]], self._pool.total_minutes
        return {
            "video": {**summarize([counts[video]]), **_a_minute(own, lengths[0])},
            "split": {**summarize(counts), **_a_minute(int(alarms.sum()), lengths[1])},
        }

    def events_by_video(self, detector: str, rule: str, threshold: float) -> list[dict[What, int]]:
        """Number of runs of missed lesions and of false alarms in each video."""
        judgement = self.judgements[detector][rule]
        runs: dict[What, Bool[np.ndarray, " frames"]] = {
            what: self.runs(judgement.flags(what, threshold)) for what in ("miss", "false")
        }
        return [
            {what: int(flags[own.start : own.stop].sum()) for what, flags in runs.items()}
            for own in self.ranges
        ]

    # ------------------------------------------------------------------ jumps

    def jump(
        self, what: What, detector: str, rule: str, threshold: float, at: tuple[int, int], step: int
    ) -> tuple[int, int] | None:
        """The next or previous missed lesion or false alarm in the split, around its ends.

        Args:
            what: "miss" or "false".
            detector, rule, threshold: what counts as missed or false.
            at: position of a video in the split, and of a frame in it.
            step: 1 for the next, -1 for the previous one.

        Returns:
            the same of the first frame there; None if there is none in the split.
        """
        starts = np.flatnonzero(
            self.runs(self.judgements[detector][rule].flags(what, threshold))
        ).tolist()
        if not starts:
            return None
        here = self.ranges[at[0]].start + at[1]
        if step > 0:
            place = next((start for start in starts if start > here), starts[0])
        else:
            place = next((start for start in reversed(starts) if start < here), starts[-1])
        video = next(v for v, own in enumerate(self.ranges) if place in own)
        return video, place - self.ranges[video].start

    # ------------------------------------------------------------------ one video

    def truth_of(self, video: int) -> list[list[list[float]]]:
        """Lesions of every frame of a video, xyxy px."""
        frames = next(iter(self.frames.values()))
        return [frames[i].lesions_xyxy_px.round(1).tolist() for i in self.ranges[video]]

    def detections_of(self, detector: str, video: int, floor: float) -> dict[str, Any]:
        """Detections of a video and what they find, for the page.

        Returns:
            ``frames``: by frame, rows [x0, y0, x1, y1, score, class, kind by rule ...], with
            HIT, FALSE or DUPLICATE; ``found``: by rule and frame, the score of what finds each
            lesion or None.
        """
        rows, found = [], {rule: [] for rule in MATCHERS}
        for index in self.ranges[video]:
            frame = self.frames[detector][index]
            prediction, kinds = frame.prediction, []
            for rule, match in MATCHERS.items():
                matches = match(frame)
                kind = np.where(matches.false, FALSE, DUPLICATE)
                kind[matches.finder[matches.finder >= 0]] = HIT
                kinds.append(kind)
                found[rule].append(
                    [None if i < 0 else float(prediction.scores[i]) for i in matches.finder]
                )
            rows.append(detection_rows(prediction, floor, kinds))
        return {"frames": rows, "found": found}


def _a_minute(alarms: int, minutes: float | None) -> dict[str, Any]:
    return {"alarms": alarms, "alarms_a_minute": None if minutes is None else alarms / minutes}


def detection_rows(
    prediction: FramePrediction, floor: float, kinds: Sequence[np.ndarray] = ()
) -> list[list[Any]]:
    """Rows of the detections with at least the score ``floor``, worst first: the best on top."""
    order = np.argsort(prediction.scores, kind="stable")
    order = order[prediction.scores[order] >= floor]
    columns = [
        *prediction.boxes_xyxy_px[order].round(1).T.tolist(),
        prediction.scores[order].tolist(),
        prediction.classes[order].tolist(),
        *(kind[order].tolist() for kind in kinds),
    ]
    return [list(row) for row in zip(*columns, strict=True)]
