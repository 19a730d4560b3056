"""Paired comparison of two detectors: differences, intervals, exact p-values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v2idetr.evaluation.comparison import VideoRatio, compare_ratios


def metric(parts: list[float], wholes: list[float]) -> VideoRatio:
    return VideoRatio(np.array(parts, dtype=float), np.array(wholes, dtype=float))


def p_by_hand(ours: VideoRatio, theirs: VideoRatio) -> float:
    """Share of all 2^n exchanges with a difference at least as large."""
    parts, wholes = [np.stack([getattr(m, k) for m in (ours, theirs)]) for k in ("parts", "wholes")]
    n = parts.shape[1]

    def difference(choice: tuple[int, ...]) -> float:
        mine, other = np.array(choice), 1 - np.array(choice)
        at = np.arange(n)
        return (
            parts[mine, at].sum() / wholes[mine, at].sum()
            - parts[other, at].sum() / wholes[other, at].sum()
        )

    observed = abs(difference((0,) * n))
    found = [abs(difference(choice)) for choice in itertools.product((0, 1), repeat=n)]
    return float(np.mean(np.array(found) >= observed - 1e-9))


counts = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)),
    min_size=1,
    max_size=7,
)


@settings(max_examples=25)
@given(counts)
def test_with_few_videos_p_is_the_share_of_all_exchanges(rows) -> None:
    a, b, c, d = zip(*rows, strict=True)
    ours, theirs = metric(list(a), list(c)), metric(list(b), list(d))
    row = compare_ratios(ours, theirs)
    assert row["exact"] and row["p_value"] == pytest.approx(p_by_hand(ours, theirs))


def test_four_videos_cannot_be_significant() -> None:
    row = compare_ratios(metric([9] * 4, [10] * 4), metric([1] * 4, [10] * 4))
    assert (row["p_value"], row["differing_videos"]) == (0.125, 4)
    assert row["difference"] == pytest.approx(0.8)


def test_many_videos_on_which_one_is_better_are_significant() -> None:
    row = compare_ratios(metric([9] * 30, [10] * 30), metric([8] * 30, [10] * 30))
    assert not row["exact"] and row["p_value"] < 0.001
    assert row["interval"] == pytest.approx([0.1, 0.1])


def test_equal_detectors_differ_by_nothing() -> None:
    same = metric([3, 5, 7], [10, 10, 10])
    row = compare_ratios(same, same)
    assert (row["difference"], row["p_value"], row["differing_videos"]) == (0.0, 1.0, 0)


def test_videos_on_which_detectors_agree_count_in_the_metric_but_not_in_p() -> None:
    extra = compare_ratios(metric([9, 9, 9, 4, 4], [10] * 5), metric([1, 1, 1, 4, 4], [10] * 5))
    assert extra["p_value"] == 0.25 and extra["differing_videos"] == 3
    assert extra["difference"] == pytest.approx(24 / 50)


def test_an_undefined_metric_has_no_difference() -> None:
    row = compare_ratios(metric([0, 0], [0, 0]), metric([1, 1], [2, 2]))
    assert row["ours"] is None and row["difference"] is None and row["p_value"] is None


def test_a_detector_that_might_get_no_denominator_has_no_p() -> None:
    """Precision of a detector without detections on either video: no exchange of it is defined."""
    row = compare_ratios(metric([1, 0], [1, 0]), metric([0, 1], [0, 1]))
    assert row["difference"] == 0.0 and row["p_value"] is None


def test_one_video_with_a_denominator_has_no_interval() -> None:
    row = compare_ratios(metric([9, 8, 7], [10] * 3), metric([1, 0, 0], [10, 0, 0]))
    assert row["difference"] == pytest.approx(0.7) and row["interval"] is None


def test_one_video_has_neither_interval_nor_evidence() -> None:
    row = compare_ratios(metric([9], [10]), metric([1], [10]))
    assert row["interval"] is None and row["p_value"] == 1.0
