from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2idetr.data.clip_sampler import ClipSampler

SAMPLERS = st.builds(
    ClipSampler,
    num_frames=st.integers(1, 7),
    window=st.integers(6, 30),
    sampling=st.sampled_from(["random", "fixed"]),
    side=st.sampled_from(["both", "past"]),
)
SEEDS = st.integers(0, 2**63)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[int], int]:
    """`frame_index` of the listed frames of a scene, with gaps, and the place of one of them."""
    gaps = draw(st.lists(st.integers(1, draw(st.sampled_from([1, 3, 40]))), max_size=60))
    frames = list(accumulate(gaps, initial=draw(st.integers(0, 9))))
    return frames, draw(st.integers(0, len(frames) - 1))


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
    frames = range(length)
    positions = sampler(frames, position, np.random.default_rng(seed))
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
    assert positions == sampler(frames, position, np.random.default_rng(seed))


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
    positions = sampler(range(101), 50, np.random.default_rng(0))
    assert [p - 50 for p in positions] == offsets


def test_border_frames_are_repeated() -> None:
    sampler = ClipSampler(num_frames=5, window=4, sampling="fixed")
    rng = np.random.default_rng(0)
    assert sampler(range(20), 0, rng) == [0, 0, 0, 2, 4]
    assert sampler(range(20), 18, rng) == [14, 16, 18, 19, 19]
    assert sampler(range(1), 0, rng) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("sampling", ["random", "fixed"])
@pytest.mark.parametrize("side", ["both", "past"])
def test_a_window_of_0_repeats_the_current_frame(sampling, side) -> None:
    sampler = ClipSampler(num_frames=4, window=0, sampling=sampling, side=side)
    assert sampler([1, 2, 3], 1, np.random.default_rng(0)) == [1, 1, 1, 1]


def test_random_references_reach_the_whole_window() -> None:
    sampler = ClipSampler(num_frames=3, window=4, sampling="random")
    rng = np.random.default_rng(0)
    seen = {p - 50 for _ in range(200) for p in sampler(range(101), 50, rng)}
    assert seen == set(range(-4, 5))


# Where not every frame is listed


@given(SAMPLERS, st.integers(0, 99), st.integers(1, 60), st.data())
def test_where_every_frame_is_listed_distances_are_places(sampler, start, length, data) -> None:
    """What the same seed has always drawn: distances, cut off at the borders."""
    position, seed = data.draw(st.integers(0, length - 1)), data.draw(SEEDS)
    positions = sampler(range(start, start + length), position, np.random.default_rng(seed))

    rng, window = np.random.default_rng(seed), sampler.window
    wanted = [position]
    for sign, n in ((-1, sampler.clip_index), (1, sampler.num_frames - 1 - sampler.clip_index)):
        if sampler.sampling == "random":
            distances = rng.choice(window, n, replace=False) + 1
        else:
            distances = [(2 * window * k + n) // (2 * n) for k in range(1, n + 1)]
        wanted += [min(max(position + sign * int(d), 0), length - 1) for d in distances]
    assert positions == sorted(wanted)


@given(SAMPLERS, scenes(), SEEDS)
def test_the_window_counts_frames_of_the_video(sampler, scene, seed) -> None:
    frames, position = scene
    positions = sampler(frames, position, np.random.default_rng(seed))
    assert len(positions) == sampler.num_frames and positions == sorted(positions)
    assert positions[sampler.clip_index] == position
    past, future = positions[: sampler.clip_index], positions[sampler.clip_index + 1 :]
    assert all(p <= position for p in past) and all(p >= position for p in future)
    for references, side in ((past, frames[:position][::-1]), (future, frames[position + 1 :])):
        away = [abs(frames[p] - frames[position]) for p in references]
        listed = [abs(f - frames[position]) for f in side]
        inside = [d for d in listed if d <= sampler.window]
        # The current frame stands for those beyond the border only if there is none between.
        assert set(away) <= set(inside or listed[:1] or [0])
        whole_window = bool(listed) and listed[-1] >= sampler.window
        if sampler.sampling == "random" and whole_window and inside:
            assert len(set(away)) == min(len(inside), len(away))


@given(SAMPLERS, scenes(), SEEDS)
def test_frames_further_than_the_window_in_places_cannot_matter(sampler, scene, seed) -> None:
    """The mapper shows the sampler only those at most `window` places away."""
    frames, position = scene
    first = max(0, position - sampler.window)
    near = frames[first : position + sampler.window + 1]
    whole = sampler(frames, position, np.random.default_rng(seed))
    part = sampler(near, position - first, np.random.default_rng(seed))
    assert [p + first for p in part] == whole


def test_random_references_are_drawn_from_the_listed_frames_of_the_window() -> None:
    sampler = ClipSampler(num_frames=3, window=10, sampling="random")
    rng = np.random.default_rng(0)
    drawn = {p for _ in range(200) for p in sampler(range(0, 400, 4), 50, rng)}
    assert drawn == {48, 49, 50, 51, 52}  # 8 and 4 frames away


def test_too_few_listed_frames_are_all_taken_before_one_is_repeated() -> None:
    sampler = ClipSampler(num_frames=7, window=10, sampling="random")
    for seed in range(20):
        positions = sampler(range(0, 400, 4), 50, np.random.default_rng(seed))
        assert set(positions) == {48, 49, 50, 51, 52}


@pytest.mark.parametrize("sampling", ["random", "fixed"])
def test_without_a_listed_frame_in_the_window_the_nearest_is_taken(sampling) -> None:
    sampler = ClipSampler(num_frames=5, window=10, sampling=sampling)
    rng = np.random.default_rng(0)
    assert sampler([0, 30, 60, 75, 90], 2, rng) == [1, 1, 2, 3, 3]
    assert sampler([0, 30], 0, rng) == [0, 0, 0, 1, 1]


def test_fixed_references_are_the_listed_frames_nearest_to_the_targets() -> None:
    sampler = ClipSampler(num_frames=5, window=6, sampling="fixed")  # targets 3 and 6 away
    rng = np.random.default_rng(0)
    assert sampler([0, 4, 5, 10, 12, 15, 16], 3, rng) == [1, 2, 3, 4, 6]
    assert sampler([5, 6, 8, 10, 12, 14, 15], 3, rng) == [0, 2, 3, 4, 6]  # ties: the nearer one
    assert sampler([1, 9, 10, 11, 17], 2, rng) == [1, 1, 2, 3, 3]  # never out of the window


def test_a_window_without_room_is_refused_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"data\.window=1 must be at least 2 for num_frames=5"):
        ClipSampler(num_frames=5, window=1, sampling="fixed")
