"""Decoded frames in shared memory: the same samples, each frame decoded once for all workers."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from v2idetr.data.augmentation import color_jitter, horizontal_flip
from v2idetr.data.clip_mapper import ClipMapper, FrameCache
from v2idetr.data.coco_vid import load_split, write_split
from v2idetr.data.loader import build_train_loader
from v2idetr.data.reference_sampler import WindowSampler
from v2idetr.data.shared_frames import SharedFrames, SharedFrameStore
from v2idetr.engine.run_context import RunContext

SIZES = [(30, 40), (20, 50), (30, 40)]  # (h, w) of the videos


@pytest.fixture
def split(tmp_path: Path):
    rng = np.random.default_rng(0)
    images = []
    for video, (h, w) in enumerate(SIZES, start=1):
        for frame in range(4):
            name = f"{video}_{frame}.png"
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(tmp_path / name)
            ids = {"id": len(images) + 1, "video_id": video, "frame_index": frame, "scene_id": 0}
            images.append({**ids, "file_name": name, "height": h, "width": w})
    write_split(
        tmp_path / "train.json",
        videos=[{"id": v, "name": str(v)} for v in (1, 2, 3)],
        images=images,
        annotations=[
            {"id": i["id"], "image_id": i["id"], "category_id": 1, "bbox": [2, 3, 9, 8]}
            | {"area": 72, "iscrowd": 0}
            for i in images
        ],
        categories=[{"id": 1, "name": "polyp"}],
        info={"description": "test"},
    )
    return load_split(tmp_path / "train.json", tmp_path)


def batches(split, shared: SharedFrames | None, num_workers: int = 2) -> list[list[dict]]:
    mapper = ClipMapper(
        sampler=WindowSampler(num_frames=3, window=2, sampling="random"),
        augmentations=[horizontal_flip(), color_jitter()],
        is_train=True,
        shared=shared,
    )
    loader = build_train_loader(split, mapper, batch_size=2, seed=0, num_workers=num_workers)
    return list(islice(iter(loader), 30))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_are_the_same_with_and_without(split, num_workers: int) -> None:
    shared = SharedFrames(split.records, FrameCache(0).read)
    want, have = batches(split, None), batches(split, shared, num_workers)
    assert len(shared) == len(split.records)  # what the workers decoded is there for this process
    for some, others in zip(want, have, strict=True):
        for sample, other in zip(some, others, strict=True):
            for frame, same in zip(sample["clip"], other["clip"], strict=True):
                assert torch.equal(frame["image"], same["image"])
                boxes, same_boxes = (f["instances"].gt_boxes.tensor for f in (frame, same))
                assert torch.equal(boxes, same_boxes)


def test_files_are_read_once_for_all_workers(split, tmp_path: Path) -> None:
    shared = SharedFrames(split.records, FrameCache(0).read)
    first = batches(split, shared)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    again = batches(split, shared)
    assert all(
        torch.equal(a["image"], b["image"])
        for one, other in zip(first, again, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_an_array_from_shared_memory_cannot_be_written(split) -> None:
    shared = SharedFrames(split.records, FrameCache(0).read)
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only"):
            shared.read(split.records[0])[0, 0, 0] = 1


def test_a_frame_that_cannot_be_read_is_named_each_time(split) -> None:
    record = split.records[5]
    Path(record["file_name"]).write_bytes(b"")
    shared = SharedFrames(split.records, FrameCache(0).read)
    for _ in range(2):
        with pytest.raises(ValueError, match=Path(record["file_name"]).name):
            shared.read(record)
    assert len(shared) == 0


def test_the_limit_holds_for_all_splits_together(split, caplog) -> None:
    caplog.set_level(logging.INFO, logger="v2idetr.data.shared_frames")
    records = [{"file_name": str(i), "height": 512, "width": 1024} for i in range(4)]  # 6 MiB
    store = SharedFrameStore(10)
    assert store.of("train", records, FrameCache(0).read) is not None
    assert store.of("train", records, FrameCache(0).read) is store.of("train", records, print)
    assert store.of("val", records, FrameCache(0).read) is None
    assert store.of("test", records[:2], FrameCache(0).read) is not None
    assert "train: decoded frames stay in 6 MiB of shared memory" in caplog.text
    assert "val: decoded frames need 6 MiB, but of data.cache_mib=10 4 MiB are left" in caplog.text


def test_one_file_with_two_image_roots_has_frames_of_each(split, tmp_path: Path) -> None:
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            (tmp_path / "dark").mkdir(exist_ok=True)
            image.point(lambda value: value // 2).save(tmp_path / "dark" / path.name)
    dark = load_split(tmp_path / "train.json", tmp_path / "dark")
    run = SimpleNamespace(
        splits={"test/clean": split, "test/dark": dark}, frames=SharedFrameStore(10)
    )
    for own in (split, dark):
        frames = RunContext.shared_frames(cast(RunContext, run), own)
        assert frames is not None
        record = own.records[0]
        assert np.array_equal(frames.read(record), FrameCache(0).read(record))


def test_no_room_in_shared_memory_is_said_once_and_done_without(split, caplog, monkeypatch) -> None:
    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    store = SharedFrameStore(10)
    for _ in range(2):
        assert store.of("train", split.records, FrameCache(0).read) is None
    assert caplog.text.count("no shared memory for 0 MiB of decoded frames (unable to") == 1


def test_zero_keeps_nothing_and_less_is_refused(split) -> None:
    assert SharedFrameStore(0).of("train", split.records, FrameCache(0).read) is None
    with pytest.raises(ValueError, match=r"data\.cache_mib=-1 must be 0"):
        SharedFrameStore(-1)
