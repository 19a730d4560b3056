import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from v2idetr.data import clip_mapper
from v2idetr.data.augmentation import (
    ScaleJitter,
    color_jitter,
    horizontal_flip,
    resize_fixed,
    resize_or_crop_resize,
    vertical_flip,
)
from v2idetr.data.clip_mapper import ClipMapper, clip_boxes, read_frame
from v2idetr.data.reference_sampler import GlobalSampler, MixedSampler, WindowSampler

HEIGHT, WIDTH = 96, 128


def write_frame(path: Path, box_xyxy: tuple[int, int, int, int] | None, seed: int) -> None:
    """Dark noise, with a bright rectangle that fills the box."""
    image = np.random.default_rng(seed).integers(0, 50, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    if box_xyxy:
        x0, y0, x1, y1 = box_xyxy
        image[y0:y1, x0:x1] = (230, 220, 210)
    Image.fromarray(image).save(path)


def make_record(path: Path, index: int, box_xyxy: tuple[int, int, int, int] | None) -> dict:
    annotations = []
    if box_xyxy:
        x0, y0, x1, y1 = map(float, box_xyxy)
        annotations = [
            {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 1,
                "iscrowd": 0,
            }
        ]
    return {
        "file_name": str(path),
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 100 + index,
        "video_id": 7,
        "frame_index": 10 + index,
        "scene_id": 0,
        "annotations": annotations,
    }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Eight frames with a rectangle that wanders; the third has none."""
    root = tmp_path_factory.mktemp("scene")
    records = []
    for index in range(8):
        box = (
            None if index == 2 else (30 + 4 * index, 20 + 3 * index, 60 + 5 * index, 52 + 3 * index)
        )
        write_frame(root / f"{index}.png", box, seed=index)
        records.append(make_record(root / f"{index}.png", index, box))
    return records


def train_mapper(augmentations: list, num_frames: int = 3, **settings) -> ClipMapper:
    return ClipMapper(
        sampler=WindowSampler(num_frames=num_frames, window=3, sampling="random"),
        augmentations=augmentations,
        is_train=True,
        **settings,
    )


def eval_mapper(augmentations: list, num_frames: int = 3, **settings) -> ClipMapper:
    return ClipMapper(
        sampler=WindowSampler(num_frames=num_frames, window=2, sampling="fixed"),
        augmentations=augmentations,
        is_train=False,
        **settings,
    )


# What a sample holds


def test_sample_is_the_current_frame_and_its_clip(scene: list[dict]) -> None:
    sample = train_mapper([resize_fixed(64, 48)])(scene[4], 0, scene)
    current = sample["clip"][sample["clip_index"]]
    assert sample["image"] is current["image"] and sample["instances"] is current["instances"]
    assert sample["image"].shape == (3, 48, 64) and sample["image"].dtype == torch.uint8
    for key in ("height", "width", "file_name", "image_id", "video_id", "frame_index", "scene_id"):
        assert sample[key] == current[key] == scene[4][key]
    assert [f["frame_index"] for f in sample["clip"]] == sorted(
        f["frame_index"] for f in sample["clip"]
    )
    assert len(sample["clip"]) == 3 and "annotations" not in sample
    torch.testing.assert_close(
        sample["instances"].gt_boxes.tensor, torch.tensor([[23.0, 16.0, 40.0, 32.0]])
    )
    assert sample["instances"].gt_classes.tolist() == [1]
    assert sample["instances"].image_size == (48, 64)


def test_frame_without_lesion_keeps_empty_instances(scene: list[dict]) -> None:
    sample = train_mapper([horizontal_flip(1.0)], num_frames=1)(scene[2], 0, scene)
    assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
    assert sample["instances"].gt_classes.dtype == torch.int64


def test_crowd_annotations_are_no_instances(scene: list[dict]) -> None:
    crowd = {**scene[1], "annotations": [{**scene[1]["annotations"][0], "iscrowd": 1}]}
    assert len(train_mapper([], num_frames=1)(crowd, 0)["instances"]) == 0


def test_evaluation_samples_have_no_instances(scene: list[dict]) -> None:
    sample = eval_mapper([resize_fixed(64, 48)])(scene[3], 0, scene)
    assert "instances" not in sample
    assert [f["frame_index"] for f in sample["clip"]] == [11, 13, 15]


def test_a_video_of_one_frame_gives_a_clip_of_copies(scene: list[dict]) -> None:
    sample = train_mapper([], num_frames=5)(scene[0], 0, scene[:1])
    assert [f["image_id"] for f in sample["clip"]] == [100] * 5


def test_pixels_are_those_of_the_file_in_rgb(scene: list[dict]) -> None:
    image = train_mapper([], num_frames=1)(scene[0], 0)["image"]
    with Image.open(scene[0]["file_name"]) as picture:
        stored = np.asarray(picture.convert("RGB"))
    assert np.array_equal(image.numpy().transpose(1, 2, 0), stored)


def test_clips_are_drawn_in_training_and_fixed_in_evaluation(scene: list[dict]) -> None:
    sampler = WindowSampler(num_frames=3, window=3, sampling="random")
    clips = [
        [
            [f["frame_index"] for f in mapper(scene[4], seed, scene)["clip"]]
            for seed in range(12)
            for mapper in [ClipMapper(sampler=sampler, augmentations=[], is_train=is_train)]
        ]
        for is_train in (True, False)
    ]
    assert len({tuple(c) for c in clips[0]}) > 3
    assert clips[1] == [[11, 14, 17]] * 12


def test_global_frames_come_from_all_scenes_of_the_video(scene: list[dict]) -> None:
    cut = [{**r, "scene_id": int(i >= 5)} for i, r in enumerate(scene)]
    sampler = MixedSampler(
        local=WindowSampler(num_frames=3, window=2, sampling="fixed"),
        distant=GlobalSampler(num_references=4),
    )
    sample = ClipMapper(sampler=sampler, augmentations=[], is_train=False)(cut[5], 0, cut)
    frames = [f["frame_index"] - 10 for f in sample["clip"]]
    assert frames == [5, 5, 7, 1, 3, 5, 7] and sample["clip_index"] == 1


# Alignment

CHAIN = [
    horizontal_flip(),
    vertical_flip(),
    resize_or_crop_resize(resize_fixed(120, 90), min_fraction=0.7),
    ScaleJitter(144, 112, scale=(0.7, 1.4)),
    color_jitter(0.2, 0.2, 0.3, 0.03),
]


@pytest.mark.parametrize("seed", range(12))
def test_boxes_of_every_frame_of_a_clip_lie_on_their_lesions(scene: list[dict], seed: int) -> None:
    sample = train_mapper(CHAIN, num_frames=5, min_visible=0.0)(scene[4], seed, scene)
    assert len({f["image"].shape for f in sample["clip"]}) == 1
    for frame in sample["clip"]:
        grey = frame["image"].float().mean(dim=0).numpy()
        bright = grey > 110
        boxes = frame["instances"].gt_boxes.tensor.numpy()
        if not len(boxes):
            assert bright.sum() < 20
            continue
        ys, xs = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        found = [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]
        np.testing.assert_allclose(found, boxes[0], atol=1.5)


def test_all_frames_get_the_same_transform(scene: list[dict]) -> None:
    # The same picture under different names must come out the same.
    twins = [{**r, "file_name": scene[1]["file_name"]} for r in scene]
    for seed in range(5):
        clip = train_mapper(CHAIN, num_frames=5)(twins[4], seed, twins)["clip"]
        assert len({f["image_id"] for f in clip}) == 5
        assert all(torch.equal(f["image"], clip[0]["image"]) for f in clip)


def test_a_sample_depends_on_its_seed_alone(scene: list[dict]) -> None:
    mapper = train_mapper(CHAIN)
    np.random.seed(1)
    first = mapper(scene[4], 5, scene)
    np.random.seed(2)
    again = mapper(scene[4], 5, scene)
    other = mapper(scene[4], 6, scene)
    assert torch.equal(first["image"], again["image"])
    assert [f["image_id"] for f in first["clip"]] == [f["image_id"] for f in again["clip"]]
    assert not torch.equal(first["image"], other["image"])


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_clipped_boxes_stay_inside_and_small_remains_go(x0, y0, w, h) -> None:
    box = np.array([[x0 - 50, y0 - 50, x0 - 50 + w, y0 - 50 + h]], dtype=np.float32)
    clipped, visible = clip_boxes(box, (80, 100), 0.3)
    assert (clipped >= 0).all() and (clipped <= [100, 80, 100, 80]).all()
    left = np.prod(clipped[0, 2:] - clipped[0, :2])
    assert bool(visible[0]) == (left > 0 and left >= 0.3 * w * h - 1e-3)


def test_a_lesion_cut_to_a_sliver_is_no_instance(scene: list[dict]) -> None:
    x0 = int(scene[0]["annotations"][0]["bbox"][0])
    cut = T.CropTransform(0, 0, x0 + 6, HEIGHT)  # 6 of 30 px are left
    augmentations = [T.AugmentationList([cut])]
    strict = train_mapper(augmentations, num_frames=1, min_visible=0.25)(scene[0], 0)
    lenient = train_mapper(augmentations, num_frames=1, min_visible=0.15)(scene[0], 0)
    assert len(strict["instances"]) == 0
    assert lenient["instances"].gt_boxes.tensor.tolist() == [[x0, 20, x0 + 6, 52]]


# Cache and processes


def test_cache_reads_each_frame_of_overlapping_clips_once(scene, monkeypatch) -> None:
    reads = []

    def counting_read(path, **size):
        reads.append(path)
        return read_frame(path, **size)

    monkeypatch.setattr(clip_mapper, "read_frame", counting_read)
    cached, plain = eval_mapper([], cache_frames=5), eval_mapper([])
    samples = [cached(r, 0, scene) for r in scene]
    assert len(reads) == len(scene) and len(cached.cache) == 5
    for record, sample in zip(scene, samples, strict=True):
        for frame, same in zip(sample["clip"], plain(record, 0, scene)["clip"], strict=True):
            assert torch.equal(frame["image"], same["image"])


def test_writing_to_a_sample_does_not_reach_the_cache(scene: list[dict]) -> None:
    mapper = eval_mapper([], num_frames=1, cache_frames=1)
    image = mapper(scene[0], 0)["image"]
    before = image.clone()
    image.zero_()
    assert torch.equal(mapper(scene[0], 0)["image"], before)


def test_mapper_is_picklable_without_its_frames(scene: list[dict]) -> None:
    mapper = train_mapper(CHAIN, cache_frames=4)
    expected = mapper(scene[3], 1, scene)["image"]
    copy = pickle.loads(pickle.dumps(mapper))
    assert len(mapper.cache) > 0 and len(copy.cache) == 0
    assert torch.equal(copy(scene[3], 1, scene)["image"], expected)


def test_mapper_can_be_built_from_a_lazy_config(scene: list[dict]) -> None:
    config = LazyCall(ClipMapper)(
        sampler=LazyCall(WindowSampler)(num_frames=3, window=2, sampling="random"),
        is_train=True,
        augmentations=[
            LazyCall(horizontal_flip)(probability=0.5),
            LazyCall(ScaleJitter)(width=64, height=48, scale=[0.8, 1.5]),
            LazyCall(color_jitter)(),
        ],
    )
    mapper = pickle.loads(pickle.dumps(instantiate(config)))
    assert mapper(scene[3], 0, scene)["image"].shape == (3, 48, 64)


# Bad input


def test_unreadable_frames_are_named(tmp_path: Path) -> None:
    def read(path: Path) -> np.ndarray:
        return read_frame(path, height=HEIGHT, width=WIDTH)

    with pytest.raises(ValueError, match=r"gone\.png: no such file"):
        read(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.png: cannot be read"):
        read(tmp_path / "text.png")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty\.jpg: cannot be read"):
        read(tmp_path / "empty.jpg")
    Image.new("RGB", (64, 48)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small\.png: is 64 x 48 px .* says 128 x 96"):
        read(tmp_path / "small.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: has more than 8 bits"):
        read(tmp_path / "deep.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_truncated_frames_are_named(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    write_frame(whole, None, seed=0)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for share in np.linspace(0.02, 0.9, 30):
        cut.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ValueError, match=rf"cut\.{suffix}: cannot be read"):
            read_frame(cut, height=HEIGHT, width=WIDTH)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_picture_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "frame.tif"
    Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255)).convert(mode).save(path)
    frame = read_frame(path, height=HEIGHT, width=WIDTH)
    assert frame.shape == (HEIGHT, WIDTH, 3) and (frame == 255).all()


def test_frames_of_two_sizes_in_one_scene_are_named(scene: list[dict]) -> None:
    odd = [{**r, "width": 64 if i == 5 else WIDTH} for i, r in enumerate(scene)]
    with pytest.raises(ValueError, match=r"1\.png is 128 x 96 px, but .*5\.png"):
        eval_mapper([])(odd[3], 0, odd)


@pytest.mark.parametrize(
    "augmentation", [horizontal_flip(1.0), vertical_flip(1.0), T.RandomCrop("relative", (0.5, 0.5))]
)
def test_evaluation_refuses_augmentations_that_move_boxes(scene, augmentation) -> None:
    with pytest.raises(ValueError, match="in evaluation they may only resize"):
        eval_mapper([augmentation], num_frames=1)(scene[0], 0)


def test_augmentations_that_carry_pixels_of_a_frame_are_refused(scene: list[dict]) -> None:
    with pytest.raises(ValueError, match="color_jitter"):
        train_mapper([T.RandomSaturation(0.5, 1.5)])(scene[3], 0, scene)


def test_a_clip_needs_its_video(scene: list[dict]) -> None:
    with pytest.raises(ValueError, match="num_frames=3 needs the video"):
        train_mapper([])(scene[3], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_visible": 1.5}, "min_visible=1.5"),
        ({"cache_frames": -1}, "cache_frames=-1"),
    ],
)
def test_nonsense_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_mapper([], **settings)
