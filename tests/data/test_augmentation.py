import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from v2idetr.data.augmentation import (
    ResizeShortEdge,
    ScaleJitter,
    color_jitter,
    horizontal_flip,
    numpy_seeded,
    resize_fixed,
    resize_or_crop_resize,
    vertical_flip,
)

AUGMENTATIONS = {
    "horizontal_flip": [horizontal_flip(1.0)],
    "vertical_flip": [vertical_flip(1.0)],
    "resize_fixed_down": [resize_fixed(96, 64, size_divisor=32)],
    "resize_fixed_up": [resize_fixed(300, 280)],
    "resize_short_edge": [ResizeShortEdge([72, 110, 190], max_size=260, size_divisor=16)],
    "crop_resize": [resize_or_crop_resize(resize_fixed(160, 160), probability=1.0)],
    "zoom_in": [ScaleJitter(128, 96, scale=(1.2, 2.0))],
    "zoom_out": [ScaleJitter(128, 96, scale=(0.5, 0.9))],
    "color_jitter": [color_jitter(0.3, 0.3, 0.5, 0.05)],
    "everything": [
        horizontal_flip(),
        vertical_flip(),
        resize_or_crop_resize(ResizeShortEdge(120, 240, 8), min_fraction=0.5),
        ScaleJitter(144, 112, scale=(0.7, 1.4)),
        color_jitter(),
    ],
}


def draw_rectangle(box_xyxy: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """Dark noise with a bright rectangle that fills the box."""
    image = np.random.default_rng(0).integers(0, 50, (height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box_xyxy
    image[y0:y1, x0:x1] = (230, 220, 210)
    return image


def recover_rectangle(image: np.ndarray) -> np.ndarray:
    """Box around the bright pixels, xyxy px."""
    bright = image.mean(axis=2) > 0.5 * image.mean(axis=2).max()
    ys, xs = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("seed", range(6))
def test_boxes_move_with_the_pixels_they_enclose(name: str, seed: int) -> None:
    box = (60, 50, 110, 85)
    image = draw_rectangle(box, height=120, width=170)
    drawn = T.AugInput(image, boxes=np.array([box], dtype=np.float32))
    with numpy_seeded(seed):
        T.AugmentationList(AUGMENTATIONS[name])(drawn)
    H, W = drawn.image.shape[:2]
    expected = np.clip(drawn.boxes[0], 0, [W, H, W, H])
    assert min(expected[2:] - expected[:2]) > 5, "the test needs a box that stays in the picture"
    np.testing.assert_allclose(recover_rectangle(drawn.image), expected, atol=1.5)


def test_short_edge_sizes_are_multiples_of_the_divisor_and_below_the_maximum() -> None:
    resize = ResizeShortEdge([250, 333], max_size=500, size_divisor=32)
    for height, width in [(1080, 1350), (500, 2000), (288, 384), (400, 300)]:
        for _ in range(4):
            drawn = T.AugInput(np.zeros((height, width, 3), dtype=np.uint8))
            resize(drawn)
            H, W = drawn.image.shape[:2]
            assert H % 32 == 0 and W % 32 == 0 and min(H, W) >= 32 and max(H, W) <= 500
            assert (H < W) == (height < width)


def test_zoom_of_one_is_the_fixed_resize_of_evaluation() -> None:
    image = draw_rectangle((20, 20, 60, 50), height=90, width=120)
    jittered, resized = T.AugInput(image), T.AugInput(image)
    ScaleJitter(64, 48, scale=(1.0, 1.0))(jittered)
    resize_fixed(64, 48)(resized)
    np.testing.assert_array_equal(jittered.image, resized.image)


def test_color_jitter_of_one_frame_leaves_no_ghost_in_another() -> None:
    first = draw_rectangle((10, 10, 50, 50), height=60, width=60)
    flat = np.full((60, 60, 3), (120, 60, 40), dtype=np.uint8)
    transforms = color_jitter(0.3, 0.3, 0.5, 0.1)(T.AugInput(first))
    assert len(np.unique(transforms.apply_image(flat).reshape(-1, 3), axis=0)) == 1


def test_color_jitter_turns_the_hue_within_its_limit() -> None:
    red = np.full((4, 4, 3), (200, 20, 20), dtype=np.uint8)
    seen = set()
    for seed in range(20):
        with numpy_seeded(seed):
            turned = color_jitter(0.0, 0.0, 0.0, 0.05)(T.AugInput(red)).apply_image(red)[0, 0]
        seen.add(tuple(turned))
        # 0.05 of the circle is 18 degrees: red stays the strongest by far.
        assert turned[0] > 150 and max(turned[1:]) < 90
    assert len(seen) > 5


def _colors(height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth colors of every hue, as frames have and noise has not."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(5 * x + 3 * y + phase) for phase in (0.0, 2.1, 4.2)]
    return np.stack([128 + 90 * wave for wave in waves], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("index", "reference"),
    [(2, functional.adjust_saturation), (3, functional.adjust_hue)],
)
def test_saturation_and_hue_change_as_torchvision_changes_them(index, reference) -> None:
    limits = [0.0, 0.0, 0.0, 0.0]
    limits[index] = 0.2
    image = _colors()
    for seed in range(5):
        with numpy_seeded(seed):
            changed = color_jitter(*limits)(T.AugInput(image)).apply_image(image)
        with numpy_seeded(seed):
            drawn = [np.random.uniform(-x, x) for x in limits][index]
        amount = 1 + drawn if index == 2 else drawn
        want = reference(torch.from_numpy(image).permute(2, 0, 1), amount).permute(1, 2, 0)
        difference = np.abs(changed.astype(int) - want.numpy())
        assert difference.mean() < 1.5 and difference.max() <= 12


@given(seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_brightness_and_contrast_are_linear_up_to_rounding_and_the_limits(seed: int) -> None:
    image = _colors()
    with numpy_seeded(seed):
        changed = color_jitter(0.3, 0.4, 0.0, 0.0)(T.AugInput(image)).apply_image(image)
    with numpy_seeded(seed):
        light, contrast = np.random.uniform(0.7, 1.3), np.random.uniform(0.6, 1.4)
    bright = light * image.astype(float)
    want = np.clip(bright.mean() + contrast * (bright - bright.mean()), 0, 255)
    np.testing.assert_allclose(changed, want, atol=0.51)


def test_flipped_and_read_only_frames_are_recolored_too() -> None:
    image = _colors()
    transform = color_jitter()(T.AugInput(image))
    want = transform.apply_image(image)[:, ::-1]
    flipped = image[:, ::-1]
    flipped.flags.writeable = False
    np.testing.assert_array_equal(transform.apply_image(flipped), want)


def test_seeding_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    first = np.random.rand()
    with numpy_seeded(7):
        inside = np.random.rand()
    assert [first, np.random.rand()] == list(expected)
    with numpy_seeded(7):
        assert np.random.rand() == inside
    with pytest.raises(RuntimeError), numpy_seeded(7):
        raise RuntimeError


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: horizontal_flip(1.2), r"horizontal_flip: probability=1.2"),
        (lambda: vertical_flip(-0.1), r"vertical_flip: probability=-0.1"),
        (lambda: resize_fixed(100, 64, size_divisor=32), r"size_divisor=32; nearest: 96 x 64"),
        (lambda: resize_fixed(0, 64), r"width=0"),
        (lambda: ResizeShortEdge([400, 900], max_size=800), r"max_size=800"),
        (lambda: ResizeShortEdge([], max_size=800), r"short_edges=\[\]"),
        (lambda: ResizeShortEdge(16, max_size=800, size_divisor=32), r"size_divisor=32"),
        (lambda: resize_or_crop_resize(resize_fixed(8, 8), min_fraction=0.0), r"min_fraction=0"),
        (lambda: ScaleJitter(64, 64, scale=(1.5, 0.5)), r"scale=\[1.5, 0.5\]"),
        (lambda: color_jitter(hue=0.7), r"hue=0.7 must lie in \[0, 0.5\]"),
    ],
)
def test_nonsense_settings_are_named(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
