"""A frame finds its video by the nearest frame that is no neighbour."""

from __future__ import annotations

import numpy as np
import pytest

from free_lunch.phases.retrieval import video_retrieval
from free_lunch.phases.videos import VideoFeatures


def video(name: str, features: list[list[float]]) -> VideoFeatures:
    array = np.array(features, dtype=np.float32)
    return VideoFeatures(name, array, np.zeros(len(array), dtype=np.int64))


A, B = [1.0, 0.0], [0.0, 1.0]


def test_videos_of_their_own_direction_are_found_and_mixed_ones_by_their_share() -> None:
    apart = [video("a", [A, A, A]), video("b", [B, B, B])]
    assert video_retrieval(apart, gap=2) == 1.0
    # The frames of b that look like a find a's; the others are too close to each other.
    mixed = [video("a", [A, A, A]), video("b", [B, A, A, B])]
    assert video_retrieval(mixed, gap=2) == pytest.approx((1.0 + 0.5) / 2)


def test_neighbours_do_not_count() -> None:
    def at(*degrees: float) -> list[list[float]]:
        return [[np.cos(np.deg2rad(d)), np.sin(np.deg2rad(d))] for d in degrees]

    videos = [video("a", at(0, 1, 90)), video("b", at(45, 46, 91))]
    assert video_retrieval(videos, gap=1) == pytest.approx(2 / 3), "the last frames find each other"
    assert video_retrieval(videos, gap=2) == 0.0, "what is left of their video is further away"


def test_it_is_undefined_for_one_video_or_where_all_are_within_the_gap() -> None:
    assert video_retrieval([video("a", [A, A, A])], gap=1) is None
    assert video_retrieval([video("a", [A, A]), video("b", [B, B])], gap=2) is None
