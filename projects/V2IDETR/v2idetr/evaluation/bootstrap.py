"""How much a figure depends on which videos are in a split: the percentile bootstrap.

Whole videos are drawn with replacement, never frames: frames of one video are nearly the same
picture. Models and thresholds stay fixed, so the intervals tell nothing of training seeds or of how
a threshold was found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Counts = Sequence[Sequence[int]]  # true positives, false positives, false negatives a video

LEVELS = (2.5, 97.5)  # percentiles: 95 %


def f1_interval(counts: Counts, *, resamples: int = 1000, seed: int = 0) -> list[float] | None:
    """95 % interval of a model's pooled F1.

    Returns:
        ``[low, high]``; None with fewer than two videos or where F1 is undefined throughout.
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

    The same videos are drawn for both models, so that what is hard for both cancels out.

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


def _resampled(
    counts: Int[np.ndarray, "models videos 3"], resamples: int, seed: int
) -> Int[np.ndarray, "models resamples 3"]:
    """Summed counts of as many videos as there are, drawn with replacement, `resamples` times."""
    videos = counts.shape[1]
    drawn = np.random.default_rng(seed).integers(videos, size=(resamples, videos))
    return counts[:, drawn].sum(axis=2)


def _pooled_f1(counts: Int[np.ndarray, "*any 3"]) -> Float[np.ndarray, "*any"]:
    """F1 of summed counts; NaN where there is neither a lesion nor a detection."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    whole = 2 * tp + fp + fn
    return np.divide(2 * tp, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
