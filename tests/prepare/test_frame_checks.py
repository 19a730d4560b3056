"""Copies of frames are found whatever was done to the file, and look-alikes are not."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from v2idetr.data.audit import AuditReport
from v2idetr.data.coco_vid import SplitData
from v2idetr.prepare.frame_checks import check_frames, find_copies

WIDTH, HEIGHT = 96, 72


def scene(seed: int) -> Image.Image:
    """A smooth random picture, another for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def split_of(root: Path, name: str, pictures: dict[str, list[Image.Image]]) -> SplitData:
    """A split with these videos, saved as lossless files."""
    records, videos = [], {}
    for video_id, (video, frames) in enumerate(pictures.items(), start=1):
        videos[video_id] = {"id": video_id, "name": video}
        for index, picture in enumerate(frames):
            path = root / name / video / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            records.append(
                {
                    "file_name": str(path),
                    "width": picture.width,
                    "height": picture.height,
                    "image_id": len(records) + 1,
                    "video_id": video_id,
                    "frame_index": index,
                }
            )
    return SplitData(root / name, root, ["polyp"], videos, records, AuditReport(source=name))


def copies_of(*splits: SplitData) -> list[tuple]:
    named = {split.json_path.name: split for split in splits}
    prints = {name: check_frames(split) for name, split in named.items()}
    return [(c.splits, c.videos, c.num_frames) for c in find_copies(named, prints)]


def compressed(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: picture,
        compressed,
        lambda picture: picture.resize((WIDTH // 2, HEIGHT // 2)),
        lambda picture: ImageEnhance.Brightness(picture).enhance(0.9),
    ],
)
def test_changed_copies_in_another_split_are_found(tmp_path, change):
    frames = [scene(seed) for seed in range(6)]
    train = split_of(tmp_path, "train", {"a": frames[:3], "b": [scene(50)]})
    test = split_of(tmp_path, "test", {"c": [scene(60)], "d": [change(f) for f in frames]})
    assert copies_of(train, test) == [(("train", "test"), ("a", "d"), 3)]


def test_different_frames_are_not_copies(tmp_path):
    train = split_of(tmp_path, "train", {"a": [scene(seed) for seed in range(30)]})
    test = split_of(tmp_path, "test", {"b": [scene(100 + seed) for seed in range(30)]})
    assert copies_of(train, test) == []


def test_frames_alike_by_hash_alone_are_not_copies(tmp_path):
    train = split_of(tmp_path, "train", {"a": [scene(1)]})
    test = split_of(tmp_path, "test", {"b": [scene(2)]})
    first, second = check_frames(train)[1], check_frames(test)[1]
    collision = replace(second, hash_bits=first.hash_bits)
    splits = {"train": train, "test": test}
    assert find_copies(splits, {"train": {1: first}, "test": {1: collision}}) == []
    assert len(find_copies(splits, {"train": {1: first}, "test": {1: first}})) == 1


def test_one_split_can_be_compared_with_the_others_alone(tmp_path):
    train = split_of(tmp_path, "train", {"a": [scene(0), scene(1)], "b": [scene(0)]})
    val = split_of(tmp_path, "val", {"c": [scene(1)]})
    test = split_of(tmp_path, "test", {"d": [scene(1), scene(2)]})
    splits = {"train": train, "val": val, "test": test}
    found = find_copies(splits, {n: check_frames(s) for n, s in splits.items()}, among="train")
    assert [(c.videos, c.image_ids) for c in found] == [(("a", "c"), (2,)), (("a", "d"), (2,))]


def test_copies_within_a_video_do_not_count_and_between_videos_come_last(tmp_path):
    still = [scene(1), scene(1)]
    train = split_of(tmp_path, "train", {"a": still, "b": [scene(1)]})
    test = split_of(tmp_path, "test", {"c": [scene(1)]})
    found = copies_of(train, test)
    assert found == [
        (("train", "test"), ("a", "c"), 2),
        (("train", "test"), ("b", "c"), 1),
        (("train", "train"), ("a", "b"), 2),
    ]


def test_black_frames_are_alike_without_being_copies(tmp_path):
    black = Image.new("RGB", (WIDTH, HEIGHT))
    train = split_of(tmp_path, "train", {"a": [black]})
    test = split_of(tmp_path, "test", {"b": [black]})
    assert copies_of(train, test) == []
    assert train.report.notes.counts == {"frame is black or plain": 1}


def test_frames_that_cannot_be_read_become_problems(tmp_path):
    split = split_of(tmp_path, "train", {"a": [scene(seed) for seed in range(4)]})
    path = Path(split.records[1]["file_name"])
    path.write_bytes(path.read_bytes()[:200])
    scene(2).resize((10, 10)).save(split.records[2]["file_name"])
    split.report.missing_frames.append("train/a/3.png")
    Path(split.records[3]["file_name"]).unlink()
    assert set(check_frames(split)) == {1}
    assert split.report.problems.counts == {"frame cannot be used": 2}
    assert split.report.frames_decoded == 3


def test_every_kth_frame_of_each_video_is_read(tmp_path):
    split = split_of(tmp_path, "train", {"a": [scene(k) for k in range(5)], "b": [scene(9)]})
    assert set(check_frames(split, every=3)) == {1, 4, 6}
