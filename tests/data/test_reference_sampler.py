from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2idetr.data.reference_sampler import (
    AdjacentSampler,
    GlobalSampler,
    MixedSampler,
    ReferenceSampler,
    VideoFrames,
    WindowSampler,
)

SAMPLERS = st.builds(
    WindowSampler,
    num_frames=st.integers(1, 7),
    window=st.integers(6, 30),
    sampling=st.sampled_from(["random", "fixed"]),
    side=st.sampled_from(["both", "past"]),
)
SEEDS = st.integers(0, 2**63)


def choose(
    sampler: ReferenceSampler, frames, position: int, rng: np.random.Generator | None
) -> list[int]:
    """Positions in a video of one scene."""
    return sampler(VideoFrames(frames, range(len(frames))), position, rng)


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
    sampler = WindowSampler(num_frames=num_frames, window=window, sampling=sampling, side=side)
    frames = range(length)
    positions = choose(sampler, frames, position, np.random.default_rng(seed))
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
    assert positions == choose(sampler, frames, position, np.random.default_rng(seed))


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
    sampler = WindowSampler(num_frames=num_frames, window=window, sampling="fixed", side=side)
    positions = choose(sampler, range(101), 50, np.random.default_rng(0))
    assert [p - 50 for p in positions] == offsets


def test_border_frames_are_repeated() -> None:
    sampler = WindowSampler(num_frames=5, window=4, sampling="fixed")
    rng = np.random.default_rng(0)
    assert choose(sampler, range(20), 0, rng) == [0, 0, 0, 2, 4]
    assert choose(sampler, range(20), 18, rng) == [14, 16, 18, 19, 19]
    assert choose(sampler, range(1), 0, rng) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("sampling", ["random", "fixed"])
@pytest.mark.parametrize("side", ["both", "past"])
def test_a_window_of_0_repeats_the_current_frame(sampling, side) -> None:
    sampler = WindowSampler(num_frames=4, window=0, sampling=sampling, side=side)
    assert choose(sampler, [1, 2, 3], 1, np.random.default_rng(0)) == [1, 1, 1, 1]


def test_random_references_reach_the_whole_window() -> None:
    sampler = WindowSampler(num_frames=3, window=4, sampling="random")
    rng = np.random.default_rng(0)
    seen = {p - 50 for _ in range(200) for p in choose(sampler, range(101), 50, rng)}
    assert seen == set(range(-4, 5))


# Where not every frame is listed


@given(SAMPLERS, st.integers(0, 99), st.integers(1, 60), st.data())
def test_where_every_frame_is_listed_distances_are_places(sampler, start, length, data) -> None:
    """What the same seed has always drawn: distances, cut off at the borders."""
    position, seed = data.draw(st.integers(0, length - 1)), data.draw(SEEDS)
    positions = choose(sampler, range(start, start + length), position, np.random.default_rng(seed))

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
    positions = choose(sampler, frames, position, np.random.default_rng(seed))
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


def test_random_references_are_drawn_from_the_listed_frames_of_the_window() -> None:
    sampler = WindowSampler(num_frames=3, window=10, sampling="random")
    rng = np.random.default_rng(0)
    drawn = {p for _ in range(200) for p in choose(sampler, range(0, 400, 4), 50, rng)}
    assert drawn == {48, 49, 50, 51, 52}  # 8 and 4 frames away


def test_too_few_listed_frames_are_all_taken_before_one_is_repeated() -> None:
    sampler = WindowSampler(num_frames=7, window=10, sampling="random")
    for seed in range(20):
        positions = choose(sampler, range(0, 400, 4), 50, np.random.default_rng(seed))
        assert set(positions) == {48, 49, 50, 51, 52}


@pytest.mark.parametrize("sampling", ["random", "fixed"])
def test_without_a_listed_frame_in_the_window_the_nearest_is_taken(sampling) -> None:
    sampler = WindowSampler(num_frames=5, window=10, sampling=sampling)
    rng = np.random.default_rng(0)
    assert choose(sampler, [0, 30, 60, 75, 90], 2, rng) == [1, 1, 2, 3, 3]
    assert choose(sampler, [0, 30], 0, rng) == [0, 0, 0, 1, 1]


def test_fixed_references_are_the_listed_frames_nearest_to_the_targets() -> None:
    sampler = WindowSampler(num_frames=5, window=6, sampling="fixed")  # targets 3 and 6 away
    rng = np.random.default_rng(0)
    assert choose(sampler, [0, 4, 5, 10, 12, 15, 16], 3, rng) == [1, 2, 3, 4, 6]
    assert choose(sampler, [5, 6, 8, 10, 12, 14, 15], 3, rng) == [
        0,
        2,
        3,
        4,
        6,
    ]  # ties: the nearer one
    assert choose(sampler, [1, 9, 10, 11, 17], 2, rng) == [1, 1, 2, 3, 3]  # never out of the window


def test_a_window_without_room_is_refused_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"data\.window=1 must be at least 2 for num_frames=5"):
        WindowSampler(num_frames=5, window=1, sampling="fixed")


SPARSE = [3, 4, 9, 13, 14, 30, 31, 33, 40, 62, 63, 64, 70, 71, 90]


@pytest.mark.parametrize(
    ("num_frames", "window", "sampling", "side", "frames", "position", "seed", "positions"),
    [
        (3, 10, "random", "both", range(60), 30, 0, [21, 30, 37]),
        (3, 10, "random", "both", range(60), 2, 7, [0, 2, 9]),
        (3, 10, "random", "past", range(60), 30, 0, [22, 23, 30]),
        (5, 10, "random", "both", range(60), 57, 11, [47, 55, 57, 59, 59]),
        (4, 6, "random", "both", SPARSE, 6, 2**40 + 1, [5, 5, 6, 7]),
        (7, 8, "random", "both", SPARSE, 9, 5, [8, 8, 8, 9, 10, 11, 12]),
        (5, 30, "random", "past", SPARSE, 12, 3, [8, 9, 10, 11, 12]),
        (3, 5, "random", "both", range(0, 400, 4), 50, 9, [49, 50, 51]),
        (3, 10, "fixed", "both", SPARSE, 8, 0, [5, 8, 9]),
        (6, 12, "fixed", "past", range(60), 20, 0, [8, 10, 13, 15, 18, 20]),
        (6, 12, "fixed", "both", range(60), 55, 0, [43, 47, 51, 55, 59, 59]),
    ],
)
def test_a_seed_draws_the_references_that_it_has_always_drawn(
    num_frames, window, sampling, side, frames, position, seed, positions
) -> None:
    sampler = WindowSampler(num_frames=num_frames, window=window, sampling=sampling, side=side)
    assert choose(sampler, frames, position, np.random.default_rng(seed)) == positions


# All kinds

ADJACENT = st.builds(AdjacentSampler, before=st.integers(0, 4), after=st.integers(0, 4))
GLOBAL = st.builds(
    GlobalSampler,
    num_references=st.integers(1, 9),
    in_evaluation=st.sampled_from(["spaced", "shuffled"]),
)
KINDS = st.one_of(
    SAMPLERS,
    ADJACENT,
    GLOBAL,
    st.builds(MixedSampler, local=st.one_of(SAMPLERS, ADJACENT), distant=GLOBAL),
)


@st.composite
def videos(draw: st.DrawFn) -> tuple[list[int], range, int]:
    """Frames of a video, the scene of one of them, and its place."""
    frames, position = draw(scenes())
    start, last = draw(st.integers(0, position)), draw(st.integers(position, len(frames) - 1))
    return frames, range(start, last + 1), position


@given(KINDS, videos(), st.one_of(st.none(), SEEDS))
def test_every_clip_is_what_its_sampler_declares(sampler, video, seed) -> None:
    indices, scene, position = video
    frames = VideoFrames(indices, scene)

    def clip() -> list[int]:
        return sampler(frames, position, None if seed is None else np.random.default_rng(seed))

    positions = clip()
    assert positions == clip(), "nothing is random but what the seed draws"
    assert len(positions) == sampler.num_frames
    assert positions[sampler.clip_index] == position
    near = positions[: sampler.num_frames - sampler.num_global]
    assert near == sorted(near) and set(near) <= set(frames.scene)
    assert set(positions) <= set(range(len(frames.frame_indices)))
    if sampler.look_ahead is not None:
        assert max(positions) - position <= sampler.look_ahead


@given(KINDS, videos())
def test_a_sampler_without_global_frames_sees_nothing_outside_the_scene(sampler, video) -> None:
    indices, scene, position = video
    if sampler.num_global:
        return
    changed = [f if p in scene else -1 for p, f in enumerate(indices)]
    clips = [sampler(VideoFrames(f, scene), position, None) for f in (indices, changed)]
    assert clips[0] == clips[1]


def test_adjacent_references_are_the_listed_frames_beside_the_current_one() -> None:
    sampler = AdjacentSampler(before=2, after=1)
    assert choose(sampler, SPARSE, 5, None) == [3, 4, 5, 6]
    assert sampler(VideoFrames(SPARSE, range(5, 6)), 5, None) == [5, 5, 5, 5]


@given(videos(), st.integers(1, 9), SEEDS)
def test_global_references_differ_while_the_video_has_enough_frames(video, count, seed) -> None:
    indices, scene, position = video
    sampler, rng = GlobalSampler(num_references=count), np.random.default_rng(seed)
    drawn = sampler(VideoFrames(indices, scene), position, rng)[1:]
    others = len(indices) - 1
    assert len(set(drawn)) == min(count, max(others, 1))
    assert position not in drawn or not others


def test_spaced_global_references_are_the_same_for_every_frame() -> None:
    sampler = GlobalSampler(num_references=4)
    clips = [choose(sampler, range(80), position, None) for position in range(80)]
    assert {tuple(clip[1:]) for clip in clips} == {(10, 30, 50, 70)}


def test_shuffled_global_references_change_by_one_a_frame_and_visit_all_frames() -> None:
    sampler = GlobalSampler(num_references=5, in_evaluation="shuffled")
    clips = [choose(sampler, range(40), position, None)[1:] for position in range(40)]
    assert all(a[1:] == b[:-1] for a, b in pairwise(clips))
    assert sorted(clip[0] for clip in clips) == list(range(40)) != [clip[0] for clip in clips]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (WindowSampler, {"num_frames": 0}, "num_frames=0"),
        (WindowSampler, {"window": -1}, "window=-1 must be at least 1"),
        (WindowSampler, {"num_frames": 9}, "window=3 must be at least 4"),
        (WindowSampler, {"num_frames": 5, "side": "past"}, "window=3 must be at least 4"),
        (AdjacentSampler, {"before": -1, "after": 1}, "before=-1"),
        (GlobalSampler, {"num_references": 0}, "num_references=0 must be at least 1"),
    ],
)
def test_nonsense_of_a_sampler_is_named(kind, settings: dict, message: str) -> None:
    window = {"num_frames": 3, "window": 3, "sampling": "fixed"} if kind is WindowSampler else {}
    with pytest.raises(ValueError, match=message):
        kind(**{**window, **settings})


def test_a_mixed_sampler_of_global_frames_alone_is_refused() -> None:
    distant = GlobalSampler(num_references=2)
    with pytest.raises(ValueError, match="needs a GlobalSampler as distant and a sampler of neigh"):
        MixedSampler(local=distant, distant=distant)
    neighbours = AdjacentSampler(before=1, after=0)
    with pytest.raises(ValueError, match="but has AdjacentSampler and AdjacentSampler"):
        MixedSampler(local=neighbours, distant=neighbours)
