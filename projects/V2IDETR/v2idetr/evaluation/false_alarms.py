"""False alarms over time.

A false alarm is a run of consecutive labelled frames of a scene with at least one false positive
each: a wrong box that stays for two seconds is one alarm, not sixty. Where frames are missing, more
than ``LARGEST_GAP`` times the video's usual distance of labelled frames, another alarm begins.
Which detections are false positives is up to a rule of ``lesion_metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from v2idetr.evaluation.frames import LabelledFrame
from v2idetr.evaluation.lesion_metrics import get_rule
from v2idetr.evaluation.pool import Pool

LARGEST_GAP = 1.5  # between consecutive frames, in usual distances of the video's labelled frames


def alarm_steps(
    pool: Pool, frames: Sequence[LabelledFrame], rule: str
) -> tuple[Float[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """Number of false alarms at each score where it may change.

    Returns:
        thresholds in descending order, and the alarms of detections with at least that score.
    """
    own, shared = _scores(pool, frames, rule)
    own, shared = np.sort(own[own > -np.inf]), np.sort(shared[shared > -np.inf])
    thresholds = np.unique(own)[::-1]
    return thresholds, _at_least(own, thresholds) - _at_least(shared, thresholds)


def alarms_by_video(
    pool: Pool, frames: Sequence[LabelledFrame], rule: str, threshold: float
) -> dict[tuple[str, int], int]:
    """Number of false alarms by (split, video id) at a threshold."""
    own, shared = _scores(pool, frames, rule)
    starts = (own >= threshold).astype(int) - (shared >= threshold)
    counts: dict[tuple[str, int], int] = {}
    for frame, start in zip(frames, starts.tolist(), strict=True):
        key = frame.video.split, frame.video.video_id
        counts[key] = counts.get(key, 0) + start
    return counts


def _scores(
    pool: Pool, frames: Sequence[LabelledFrame], rule: str
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Highest score of a false positive by frame, and of those on it and the frame before.

    The number of runs of frames with a false positive is that of such frames, less that of the
    pairs of consecutive ones. -inf where there is none.
    """
    apply = get_rule(rule)
    own = np.array([apply(frame)[1].max(initial=-np.inf) for frame in frames], dtype=float)
    before = np.concatenate([[-np.inf], own[:-1]])
    return own, np.where(continued(pool), np.minimum(own, before), -np.inf)


def continued(pool: Pool) -> Bool[np.ndarray, "n"]:
    """Whether each frame continues the scene of the one before, without a gap."""
    places = [
        (split, record["video_id"], record["scene_id"])
        for split, record in zip(pool.splits, pool.records, strict=True)
    ]
    same = [a == b for a, b in pairwise(places)]
    gaps = [b["frame_index"] - a["frame_index"] for a, b in pairwise(pool.records)]
    usual = [pool.truths[split].steps[video_id] for split, video_id, _ in places[1:]]
    near = [gap <= LARGEST_GAP * step for gap, step in zip(gaps, usual, strict=True)]
    return np.array([False, *(a and b for a, b in zip(same, near, strict=True))])


def _at_least(ascending: np.ndarray, thresholds: np.ndarray) -> Int[np.ndarray, "k"]:
    return len(ascending) - np.searchsorted(ascending, thresholds, side="left")
