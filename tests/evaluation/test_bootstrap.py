"""Intervals over videos: reproducible, paired, and none where there is nothing to draw from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2idetr.evaluation.bootstrap import f1_difference, f1_interval, ratio_interval

video = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))


def pooled(counts: list[tuple[int, int, int]]) -> float:
    tp, fp, fn = np.sum(counts, axis=0)
    return 2 * tp / (2 * tp + fp + fn)


def test_the_interval_is_reproducible_and_holds_the_estimate() -> None:
    counts = [(found, 1, 5 - found) for found in (3, 4, 5, 2, 4, 3, 5, 1)]
    interval = f1_interval(counts)
    assert interval == f1_interval(counts)
    assert interval is not None
    assert 0 < interval[0] < pooled(counts) < interval[1] < 1


def test_the_interval_is_that_of_videos_drawn_one_by_one() -> None:
    counts = [(3, 1, 2), (0, 4, 5), (9, 0, 0), (2, 2, 1)]
    draws = np.random.default_rng(7).integers(4, size=(500, 4))
    f1 = [pooled([counts[i] for i in draw]) for draw in draws]
    want = np.percentile(f1, [2.5, 97.5])
    assert f1_interval(counts, resamples=500, seed=7) == pytest.approx(want)


def test_equal_videos_leave_no_room() -> None:
    assert f1_interval([(1, 1, 0), (1, 1, 0)]) == pytest.approx([2 / 3, 2 / 3])


def test_an_interval_needs_two_videos_and_something_to_count() -> None:
    assert f1_interval([(1, 0, 1)]) is None
    assert f1_interval([(0, 0, 0), (0, 0, 0)]) is None
    assert f1_difference([(1, 0, 1)], [(0, 0, 2)]) is None
    assert f1_difference([(1, 0, 1)] * 2, [(0, 0, 0)] * 2) is None


def test_a_ratio_of_one_video_alone_has_no_interval() -> None:
    assert ratio_interval([2, 0, 0], [20, 0, 0]) is None
    assert ratio_interval([2, 1, 0], [20, 10, 0]) == pytest.approx([0.1, 0.1])


def test_draws_of_videos_without_anything_to_count_are_left_out() -> None:
    """One of two videos holds all: in a quarter of the draws there is nothing."""
    assert f1_interval([(1, 1, 0), (0, 0, 0)]) == pytest.approx([2 / 3, 2 / 3])


@given(counts=st.lists(video, min_size=2, max_size=6).filter(lambda c: np.sum(c) > 0))
def test_a_model_does_not_differ_from_itself(counts: list[tuple[int, int, int]]) -> None:
    assert f1_difference(counts, counts) == (0.0, 0.0, 0.0)


def test_the_difference_is_that_of_the_pooled_counts() -> None:
    """tp, fn of 8, 12 and 4, 16: F1 is 16 / 28 and 8 / 24."""
    difference = f1_difference([(3, 0, 7), (5, 0, 5)], [(2, 0, 8), (2, 0, 8)])
    assert difference is not None
    assert difference[0] == pytest.approx(16 / 28 - 8 / 24)
    assert difference[1] <= difference[0] <= difference[2]


def test_what_is_hard_for_both_models_cancels_out() -> None:
    """Videos differ much, models by the same little everywhere."""
    hard_and_easy = [(1, 0, 9), (9, 0, 1)] * 4
    better = [(tp + 1, fp, fn - 1) for tp, fp, fn in hard_and_easy]
    single, paired = f1_interval(better), f1_difference(better, hard_and_easy)
    assert single is not None and paired is not None
    assert 0 < paired[1] < paired[2]
    assert paired[2] - paired[1] < (single[1] - single[0]) / 5
