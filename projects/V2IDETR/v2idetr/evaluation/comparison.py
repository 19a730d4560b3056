"""Paired comparison of two detectors on the same videos.

A metric is a ratio of sums over videos: recall, F1, false alarms a minute. Its difference comes
with
- a 95 % interval, by the bootstrap: both detectors on the same resampled videos;
- a p-value, by a permutation test: if the detectors are equally good, it does not matter which of
  the two made which of a video's outputs. So they are exchanged in every possible choice of
  videos, and the p-value is the share of choices with a difference at least as large (two-sided).
  With few videos all choices are tried, and the value is exact; it cannot be below 2 / 2^n with n
  videos on which the detectors differ. With many, `RANDOM_CHOICES` are drawn.

AP has an interval only: it ranks scores of all videos together, and scores of two detectors are not
on one scale, so exchanging them would change more than the detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import permutation_test

from v2idetr.evaluation.bootstrap import draw_videos, percentiles, ratio

RANDOM_CHOICES = 9999  # with up to 13 videos all 2^13 choices are tried


@dataclass(frozen=True)
class VideoRatio:
    """A metric of one detector: numerator and denominator of each video."""

    parts: Float[np.ndarray, "v"]
    wholes: Float[np.ndarray, "v"]

    def value(self) -> float | None:
        """The metric of all videos; None where it is undefined."""
        value = float(ratio(self.parts.sum(keepdims=True), self.wholes.sum(keepdims=True))[0])
        return None if np.isnan(value) else value


def compare_ratios(
    ours: VideoRatio, theirs: VideoRatio, *, resamples: int = 2000
) -> dict[str, Any]:
    """Difference of a metric between two detectors, on the same videos in the same order.

    Returns:
        ``ours``, ``theirs``, ``difference``, ``interval`` [low, high], ``p_value``, ``exact``
        (whether all choices were tried), ``differing_videos``; undefined values are None, and so
        is the interval if a detector has fewer than two videos with a denominator.
    """
    values = ours.value(), theirs.value()
    row: dict[str, Any] = {"ours": values[0], "theirs": values[1]}
    if values[0] is None or values[1] is None:
        nothing = dict.fromkeys(("difference", "interval", "p_value", "exact"))
        return row | nothing | {"differing_videos": 0}
    row["difference"] = values[0] - values[1]
    row["interval"] = _interval(ours, theirs, resamples)
    return row | _p_value(ours, theirs)


def _interval(ours: VideoRatio, theirs: VideoRatio, resamples: int) -> list[float] | None:
    if min(np.count_nonzero(metric.wholes > 0) for metric in (ours, theirs)) < 2:
        return None
    drawn = draw_videos(len(ours.parts), resamples)
    mine, other = (ratio(m.parts[drawn].sum(1), m.wholes[drawn].sum(1)) for m in (ours, theirs))
    return percentiles(mine - other)


def _p_value(ours: VideoRatio, theirs: VideoRatio) -> dict[str, Any]:
    parts = np.stack([ours.parts, theirs.parts])
    wholes = np.stack([ours.wholes, theirs.wholes])
    differ = (parts[0] != parts[1]) | (wholes[0] != wholes[1])
    videos = np.flatnonzero(differ)
    result: dict[str, Any] = {"differing_videos": len(videos), "exact": True, "p_value": 1.0}
    if len(videos) < 2:  # one video: each of the two choices is as extreme as the other
        return result
    if not wholes.min(axis=0).sum() > 0:  # some choice leaves a detector without a denominator
        return result | {"p_value": None, "exact": None}
    rest_parts, rest_wholes = parts[:, ~differ].sum(1), wholes[:, ~differ].sum(1)
    flat_parts, flat_wholes = parts[:, videos].ravel(), wholes[:, videos].ravel()

    # A video has two numbers, and the test exchanges single ones: it is given indexes of them.
    def difference(
        mine: Int[np.ndarray, "*any n"], other: Int[np.ndarray, "*any n"], axis: int
    ) -> Float[np.ndarray, "*any"]:
        both = [
            ratio(
                np.asarray(flat_parts[index].sum(axis) + rest_parts[k]),
                np.asarray(flat_wholes[index].sum(axis) + rest_wholes[k]),
            )
            for k, index in enumerate((mine, other))
        ]
        # Sums of the same numbers in another order differ in their last digits; equals must tie.
        return np.asarray((both[0] - both[1]).round(12))

    index = np.arange(2 * len(videos)).reshape(2, -1)
    tested = permutation_test(
        tuple(index),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RANDOM_CHOICES,
        batch=1000,
        rng=np.random.default_rng(0),
    )
    exact = 2 ** len(videos) <= RANDOM_CHOICES
    return result | {"exact": exact, "p_value": float(tested.pvalue)}
