import logging
import os
import pickle
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from v2idetr.data.augmentation import ScaleJitter, color_jitter, horizontal_flip, resize_fixed
from v2idetr.data.clip_mapper import ClipMapper
from v2idetr.data.coco_vid import SplitData, load_split, write_split
from v2idetr.data.loader import ClipDataset, TrainingOrder, build_eval_loader, build_train_loader
from v2idetr.data.reference_sampler import GlobalSampler, WindowSampler

# Frames a video; those with an odd index have a lesion. Video 3 has one frame, video 4 a cut.
VIDEO_LENGTHS = {1: 7, 2: 5, 3: 1, 4: 6}
CUT = 2
NUM_FRAMES = sum(VIDEO_LENGTHS.values())


def write_videos(root: Path) -> SplitData:
    """A split of small pictures, each of one grey level of its own."""
    images, annotations = [], []
    for video_id, length in VIDEO_LENGTHS.items():
        for index in range(length):
            image_id = len(images) + 1
            name = f"{video_id}_{index}.png"
            Image.new("RGB", (32, 24), (10 * image_id,) * 3).save(root / name)
            images.append(
                {
                    "id": image_id,
                    "file_name": name,
                    "width": 32,
                    "height": 24,
                    "video_id": video_id,
                    "frame_index": index,
                    "scene_id": int(video_id == 4 and index >= CUT),
                }
            )
            if index % 2:
                box = [4.0, 5.0, 12.0, 10.0]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 1,
                        "bbox": box,
                        "area": 120.0,
                        "iscrowd": 0,
                    }
                )
    write_split(
        root / "split.json",
        videos=[{"id": i, "name": f"video{i}"} for i in VIDEO_LENGTHS],
        images=images,
        annotations=annotations,
        categories=[{"id": 1, "name": "lesion"}],
        info={"description": "loader test"},
    )
    return load_split(root / "split.json", root)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> SplitData:
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def train_mapper() -> ClipMapper:
    return ClipMapper(
        sampler=WindowSampler(num_frames=3, window=3, sampling="random"),
        augmentations=[horizontal_flip(), ScaleJitter(32, 24), color_jitter()],
        is_train=True,
    )


@pytest.fixture
def eval_mapper() -> ClipMapper:
    return ClipMapper(
        sampler=WindowSampler(num_frames=3, window=2, sampling="fixed"),
        augmentations=[resize_fixed(32, 24)],
        is_train=False,
        cache_frames=5,
    )


def take(loader, count: int) -> list[list[dict]]:
    return list(islice(iter(loader), count))


def assert_same_samples(first: list[dict], second: list[dict]) -> None:
    assert [s["image_id"] for s in first] == [s["image_id"] for s in second]
    for a, b in zip(first, second, strict=True):
        assert [f["image_id"] for f in a["clip"]] == [f["image_id"] for f in b["clip"]]
        for x, y in zip(a["clip"], b["clip"], strict=True):
            assert torch.equal(x["image"], y["image"])
            assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)


# Training


def test_batches_are_lists_of_clips_of_one_scene(split, train_mapper) -> None:
    loader = build_train_loader(split, train_mapper, batch_size=4, seed=0)
    scene_of = {r["image_id"]: (r["video_id"], r["scene_id"]) for r in split.records}
    for batch in take(loader, 10):
        assert isinstance(batch, list) and len(batch) == 4
        for sample in batch:
            assert len({scene_of[f["image_id"]] for f in sample["clip"]}) == 1


def test_every_frame_comes_once_an_epoch_in_a_new_order(split, train_mapper) -> None:
    loader = build_train_loader(split, train_mapper, batch_size=1, seed=0)
    ids = [batch[0]["image_id"] for batch in take(loader, 2 * NUM_FRAMES)]
    first, second = ids[:NUM_FRAMES], ids[NUM_FRAMES:]
    assert sorted(first) == sorted(second) == list(range(1, NUM_FRAMES + 1))
    assert first != second


def test_workers_and_global_random_state_change_nothing(split, train_mapper) -> None:
    np.random.seed(1)
    alone = take(build_train_loader(split, train_mapper, batch_size=4, seed=5), 6)
    np.random.seed(2)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    workers = build_train_loader(split, train_mapper, batch_size=4, seed=5, num_workers=2)
    for a, b in zip(alone, take(workers, 6), strict=True):
        assert_same_samples(a, b)
    assert torch.equal(before, torch.get_rng_state())


def test_batches_from_workers_take_few_file_descriptors(split, train_mapper) -> None:
    loader = build_train_loader(split, train_mapper, batch_size=16, seed=0, num_workers=1)
    before = len(os.listdir("/proc/self/fd"))
    batches = take(loader, 3)  # 144 frames, 432 tensors
    assert len(batches) == 3 and len(os.listdir("/proc/self/fd")) - before < 20


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(split, train_mapper) -> None:
    alone = take(build_train_loader(split, train_mapper, batch_size=4, seed=5), 3)
    spawned = build_train_loader(split, train_mapper, batch_size=4, seed=5, num_workers=1)
    spawned.multiprocessing_context = "spawn"
    for a, b in zip(alone, take(spawned, 3), strict=True):
        assert_same_samples(a, b)


def test_a_batch_from_a_worker_keeps_shared_tensors_and_can_be_written(split, train_mapper) -> None:
    loader = build_train_loader(split, train_mapper, batch_size=2, seed=0, num_workers=1)
    sample = take(loader, 1)[0][0]
    assert sample["image"] is sample["clip"][sample["clip_index"]]["image"]
    sample["image"].add_(1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pinned_batch_is_one_piece_of_memory_and_the_same_samples(
    split, train_mapper, num_workers, monkeypatch
) -> None:
    # Without a GPU there is no page-locked memory: what the loader calls is played here.
    pinned = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        pinned.append(self.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    want = take(build_train_loader(split, train_mapper, batch_size=4, seed=5), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is no GPU
        loader = build_train_loader(
            split, train_mapper, batch_size=4, seed=5, num_workers=num_workers, pin_memory=True
        )
        arrived = take(loader, 2)
    # Where torch has an accelerator its loader has done this already.
    have = [batch if isinstance(batch, list) else batch.pin_memory() for batch in arrived]
    for batch, same in zip(want, have, strict=True):
        assert_same_samples(batch, same)
    storages = {
        tensor.untyped_storage().data_ptr()
        for batch in have
        for sample in batch
        for frame in sample["clip"]
        for tensor in (frame["image"], frame["instances"].gt_boxes.tensor)
        if tensor.numel()
    }
    assert storages == {buffer.untyped_storage().data_ptr() for buffer in pinned}


def test_a_resumed_run_sees_the_batches_it_would_have_seen(split, train_mapper) -> None:
    whole = take(build_train_loader(split, train_mapper, batch_size=4, seed=3), 12)
    for start in (1, 5, 11):
        resumed = build_train_loader(
            split, train_mapper, batch_size=4, seed=3, start_iteration=start
        )
        assert_same_samples(whole[start], take(resumed, 1)[0])


def test_resuming_far_into_a_run_costs_nothing() -> None:
    order = TrainingOrder(np.arange(10_000) % 2 == 0, seed=0, negative_share=0.3)
    assert order(10**12) == TrainingOrder(np.arange(10_000) % 2 == 0, seed=0, negative_share=0.3)(
        10**12
    )


def test_ranks_share_the_batch_of_one_process(split, train_mapper) -> None:
    whole = take(build_train_loader(split, train_mapper, batch_size=4, seed=1), 8)
    parts = [
        take(build_train_loader(split, train_mapper, batch_size=2, seed=1, rank=r, world_size=2), 8)
        for r in range(2)
    ]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert_same_samples(batch, first + second)


def test_another_seed_gives_another_order(split, train_mapper) -> None:
    orders = [
        [s["image_id"] for b in take(loader, 4) for s in b]
        for seed in (0, 1)
        for loader in [build_train_loader(split, train_mapper, batch_size=4, seed=seed)]
    ]
    assert orders[0] != orders[1]


# Share of lesion-free frames


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.none() | st.floats(0.0, 0.9),
    st.integers(0, 2**40),
)
def test_epochs_keep_every_lesion_and_the_share_of_frames_without(
    positives, negatives, share, seed
) -> None:
    lesion_free = np.random.default_rng(0).permutation([False] * positives + [True] * negatives)
    order = TrainingOrder(lesion_free, seed=seed, negative_share=share)
    seen: Counter[int] = Counter()
    for epoch in range(3):
        draws = [order(epoch * order.epoch_size + i)[0] for i in range(order.epoch_size)]
        with_lesion = sorted(i for i in draws if not lesion_free[i])
        assert with_lesion == np.flatnonzero(~lesion_free).tolist()
        without = [i for i in draws if lesion_free[i]]
        seen.update(without)
        wanted = negatives if share is None else positives * share / (1 - share)
        assert abs(len(without) - wanted) <= 1
    # Taken in turn: no lesion-free frame is more than one time ahead of another.
    counts = [seen[int(i)] for i in np.flatnonzero(lesion_free)]
    assert max(counts) - min(counts) <= 1


def test_a_small_share_still_brings_lesion_free_frames() -> None:
    order = TrainingOrder(np.array([False, False, True]), seed=0, negative_share=0.05)
    assert order.negatives_per_epoch == 1


def test_the_share_is_logged(split, train_mapper, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="v2idetr.data.loader")
    build_train_loader(split, train_mapper, batch_size=4, seed=0, negative_share=0.25)
    assert "8 frames with a lesion, 11 without" in caplog.text
    assert "8 with and 3 without (27%, negative_share=0.25), a different part" in caplog.text


def test_share_of_frames_that_do_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"negative_share=0\.5, but the split has no lesion-free"):
        TrainingOrder(np.zeros(3, dtype=bool), seed=0, negative_share=0.5)
    with pytest.raises(
        ValueError, match=r"negative_share=0\.5, but the split has no lesion frames"
    ):
        TrainingOrder(np.ones(3, dtype=bool), seed=0, negative_share=0.5)


# Evaluation


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_sees_each_frame_once_in_order(split, eval_mapper, num_workers) -> None:
    loader = build_eval_loader(split, eval_mapper, batch_size=4, num_workers=num_workers)
    assert len(loader) == 5
    samples = [s for batch in loader for s in batch]
    assert [s["image_id"] for s in samples] == [r["image_id"] for r in split.records]
    assert all("instances" not in s for s in samples)
    again = [s for batch in loader for s in batch]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(samples, again, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 25])
def test_shards_are_consecutive_and_complete(split, eval_mapper, world_size) -> None:
    shards = [
        [
            (s["image_id"], [f["image_id"] for f in s["clip"]])
            for batch in build_eval_loader(
                split, eval_mapper, batch_size=4, rank=r, world_size=world_size
            )
            for s in batch
        ]
        for r in range(world_size)
    ]
    whole = [
        (s["image_id"], [f["image_id"] for f in s["clip"]])
        for batch in build_eval_loader(split, eval_mapper, batch_size=4)
        for s in batch
    ]
    # In order and complete, with the references that a single process reads.
    assert [pair for shard in shards for pair in shard] == whole
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_references_stop_at_cuts_and_videos(split, eval_mapper) -> None:
    loader = build_eval_loader(split, eval_mapper, batch_size=NUM_FRAMES)
    clips = {
        (s["video_id"], s["frame_index"]): [(f["video_id"], f["frame_index"]) for f in s["clip"]]
        for s in next(iter(loader))
    }
    assert clips[1, 6] == [(1, 4), (1, 6), (1, 6)]
    assert clips[2, 0] == [(2, 0), (2, 0), (2, 2)]
    assert clips[3, 0] == [(3, 0), (3, 0), (3, 0)]
    assert clips[4, CUT - 1] == [(4, 0), (4, 1), (4, 1)]
    assert clips[4, CUT] == [(4, 2), (4, 2), (4, 4)]


def test_global_references_stay_in_the_video_and_reach_all_of_it(split) -> None:
    sampler = GlobalSampler(num_references=6)
    mapper = ClipMapper(sampler=sampler, augmentations=[], is_train=True)
    dataset = ClipDataset(split.records, mapper)
    for index, record in enumerate(split.records):
        clips = [dataset[index, seed]["clip"] for seed in range(8)]
        assert all(clip[0]["image_id"] == record["image_id"] for clip in clips)
        assert {f["video_id"] for clip in clips for f in clip} == {record["video_id"]}
        seen = {f["frame_index"] for clip in clips for f in clip}
        assert seen == set(range(VIDEO_LENGTHS[record["video_id"]]))


def test_scenes_shorter_than_a_clip_are_counted(split, eval_mapper, caplog) -> None:
    build_eval_loader(split, eval_mapper, batch_size=4)
    assert "2 of 5 scenes (in 2 of 4 videos) have fewer than num_frames=3" in caplog.text


# Bad input and processes


def test_an_unreadable_frame_is_named_by_a_worker(tmp_path: Path, train_mapper) -> None:
    split = write_videos(tmp_path)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    loader = build_train_loader(split, train_mapper, batch_size=2, seed=0, num_workers=1)
    batches = iter(loader)
    with pytest.raises(ValueError, match=r"\.png: cannot be read as an image"):
        next(batches)
    batches._shutdown_workers()  # the traceback keeps it alive, and the worker with it


def test_dataset_holds_no_images(split, eval_mapper) -> None:
    dataset = ClipDataset(split.records, eval_mapper)
    size = len(pickle.dumps(dataset))
    for index in range(len(dataset)):
        dataset[index, 0]
    assert len(pickle.dumps(dataset)) < size + 24 * 32 * 3  # one frame


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"start_iteration": -1}, "start_iteration=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": 2, "world_size": 2}, r"rank=2 must lie in \[0, world_size=2\)"),
        ({"negative_share": 1.0}, r"negative_share=1\.0 must be null or lie in \[0, 1\)"),
    ],
)
def test_nonsense_settings_are_named(split, train_mapper, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_train_loader(split, train_mapper, **{"batch_size": 2, "seed": 0, **settings})


def test_loaders_need_the_mapper_of_their_kind(split, train_mapper, eval_mapper) -> None:
    with pytest.raises(ValueError, match="is_train=True"):
        build_train_loader(split, eval_mapper, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="is_train=False"):
        build_eval_loader(split, train_mapper, batch_size=1)


def test_a_split_without_frames_is_refused(train_mapper) -> None:
    with pytest.raises(ValueError, match="no frames"):
        ClipDataset([], train_mapper)
