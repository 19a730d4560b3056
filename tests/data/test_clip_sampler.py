import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2idetr.data.clip_mapper import ClipSampler


@given(
    st.integers(1, 7),
    st.integers(6, 30),
    st.sampled_from(["random", "fixed"]),
    st.sampled_from(["both", "past"]),
    st.integers(1, 60),
    st.data(),
)
def test_a_clip_keeps_order_window_scene_and_the_current_frame(
    num_frames, window, sampling, side, length, data
) -> None:
    position = data.draw(st.integers(0, length - 1))
    seed = data.draw(st.integers(0, 2**63))
    sampler = ClipSampler(num_frames=num_frames, window=window, sampling=sampling, side=side)
    positions = sampler(length, position, np.random.default_rng(seed))
    assert len(positions) == num_frames
    assert positions == sorted(positions)
    assert all(0 <= p < length and abs(p - position) <= window for p in positions)
    assert positions[sampler.clip_index] == position
    assert side == "both" or max(positions) == position
    # A frame comes twice only at the border, or where the scene is too short.
    repeated = {p for p in positions if positions.count(p) > 1}
    assert repeated <= {0, length - 1, position}
    if window <= position < length - window:
        assert len(set(positions)) == num_frames
    assert positions == sampler(length, position, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("num_frames", "window", "side", "offsets"),
    [
        (1, 5, "both", [0]),
        (2, 5, "both", [-5, 0]),
        (3, 5, "both", [-5, 0, 5]),
        (4, 6, "both", [-6, -3, 0, 6]),
        (5, 6, "both", [-6, -3, 0, 3, 6]),
        (3, 6, "past", [-6, -3, 0]),
    ],
)
def test_fixed_references_are_evenly_spaced(num_frames, window, side, offsets) -> None:
    sampler = ClipSampler(num_frames=num_frames, window=window, sampling="fixed", side=side)
    positions = sampler(101, 50, np.random.default_rng(0))
    assert [p - 50 for p in positions] == offsets


def test_border_frames_are_repeated() -> None:
    sampler = ClipSampler(num_frames=5, window=4, sampling="fixed")
    rng = np.random.default_rng(0)
    assert sampler(20, 0, rng) == [0, 0, 0, 2, 4]
    assert sampler(20, 18, rng) == [14, 16, 18, 19, 19]
    assert sampler(1, 0, rng) == [0, 0, 0, 0, 0]


def test_random_references_reach_the_whole_window() -> None:
    sampler = ClipSampler(num_frames=3, window=4, sampling="random")
    rng = np.random.default_rng(0)
    seen = {p - 50 for _ in range(200) for p in sampler(101, 50, rng)}
    assert seen == set(range(-4, 5))
