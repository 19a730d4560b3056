"""Percentile bootstrap over the videos of a split.

Whole videos are resampled, not frames, because frames of one video are nearly the same image.
Models and thresholds are fixed: the intervals do not cover training seeds or the choice of the
threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Counts = Sequence[Sequence[int]]  # (true positives, false positives, false negatives) by video

Numbers = Sequence[int] | Sequence[float]

LEVELS = (2.5, 97.5)  # percentiles of a 95 % interval


def f1_interval(counts: Counts, *, resamples: int = 1000, seed: int = 0) -> list[float] | None:
    """95 % interval of a model's pooled F1.

    Returns:
        ``[low, high]``; None with fewer than two videos or if F1 is undefined in all resamples.
    """
    if len(counts) < 2:
        return None
    f1 = _pooled_f1(_resampled(np.array([counts]), resamples, seed))[0]
    if np.isnan(f1).all():
        return None
    return np.nanpercentile(f1, LEVELS).tolist()


def f1_difference(
    ours: Counts, theirs: Counts, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float] | None:
    """Difference of the pooled F1 of two models on the same videos, with its 95 % interval.

    Paired: both models use the same resampled videos.

    Returns:
        ``(difference, low, high)``; None with fewer than two videos or where an F1 is undefined.
    """
    if len(ours) < 2:
        return None
    both = np.array([ours, theirs])
    f1 = _pooled_f1(both.sum(axis=1))
    if np.isnan(f1).any():
        return None
    drawn = _pooled_f1(_resampled(both, resamples, seed))
    low, high = np.nanpercentile(drawn[0] - drawn[1], LEVELS)
    return float(f1[0] - f1[1]), float(low), float(high)


def ratio_interval(
    parts: Numbers, wholes: Numbers, *, resamples: int = 1000, seed: int = 0
) -> list[float] | None:
    """95 % interval of a ratio of sums over videos, such as recall or false alarms a minute.

    Args:
        parts, wholes: numerator and denominator of each video.

    Returns:
        ``[low, high]``; None with fewer than two videos with a denominator: one alone is the same
        in every resample, as if it were certain.
    """
    if np.count_nonzero(np.array(wholes) > 0) < 2:
        return None
    drawn = draw_videos(len(parts), resamples, seed)
    ratios = ratio(np.array(parts, float)[drawn].sum(1), np.array(wholes, float)[drawn].sum(1))
    return percentiles(ratios)


def draw_videos(videos: int, resamples: int, seed: int = 0) -> Int[np.ndarray, "resamples videos"]:
    """Indexes of videos, drawn with replacement; the same in all intervals, so that they pair."""
    return np.random.default_rng(seed).integers(videos, size=(resamples, videos))


def percentiles(values: Float[np.ndarray, "resamples"]) -> list[float] | None:
    """95 % interval of resampled values; None if all are undefined (NaN)."""
    return None if np.isnan(values).all() else np.nanpercentile(values, LEVELS).tolist()


def ratio(
    parts: Float[np.ndarray, "*any"], wholes: Float[np.ndarray, "*any"]
) -> Float[np.ndarray, "*any"]:
    """Quotients; NaN where the denominator is 0."""
    return np.divide(parts, wholes, out=np.full(np.shape(wholes), np.nan), where=wholes > 0)


def _resampled(
    counts: Int[np.ndarray, "models videos 3"], resamples: int, seed: int
) -> Int[np.ndarray, "models resamples 3"]:
    """Counts summed over all videos, resampled with replacement `resamples` times."""
    return counts[:, draw_videos(counts.shape[1], resamples, seed)].sum(axis=2)


def _pooled_f1(counts: Int[np.ndarray, "*any 3"]) -> Float[np.ndarray, "*any"]:
    """F1 of summed counts; NaN without lesions and detections."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return ratio((2 * tp).astype(float), (2 * tp + fp + fn).astype(float))
