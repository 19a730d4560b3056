"""Preprocessing as data gives the sizes and the pixels of a run's evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st

from configs.data import buv, clinicdb, sun, synthetic
from v2i_runtime.preprocess import FixedSize, NoResize, Preprocess, ShortestEdge
from v2idetr.config.load import load_config, to_plain
from v2idetr.config.preprocess import preprocess_of
from v2idetr.data.augmentation import ResizeShortEdge, resize_fixed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIDES = st.integers(1, 3000)
SMALL_SIDES = st.integers(1, 90)
SEEDS = st.integers(0, 2**32 - 1)
SHORT_EDGE = "v2idetr.data.augmentation.ResizeShortEdge"
FIXED = "v2idetr.data.augmentation.resize_fixed"


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def size_in_evaluation(augmentation: T.Augmentation, height: int, width: int) -> tuple[int, int]:
    image = np.broadcast_to(np.uint8(0), (height, width, 3))  # takes no memory
    resize: Any = augmentation.get_transform(image)
    return getattr(resize, "new_h", height), getattr(resize, "new_w", width)  # a no-op has none


def config_of(test: list[dict[str, Any]], **model: Any) -> dict[str, Any]:
    return {"data": {"augmentations": {"test": test}}, "model": model}


@given(SIDES, SIDES, st.integers(1, 900), st.integers(0, 700), st.integers(1, 64))
def test_the_shortest_edge_is_resized_as_in_evaluation(
    height: int, width: int, short: int, more: int, multiple: int
) -> None:
    multiple = min(multiple, short)
    node = {"short_edges": short, "max_size": short + more, "size_divisor": multiple}
    preprocess = preprocess_of(config_of([{"_target_": SHORT_EDGE, **node}]))
    assert preprocess.resize == ShortestEdge(short, short + more, multiple)
    want = size_in_evaluation(ResizeShortEdge(**node), height, width)
    assert preprocess.resized_size(height, width) == want


@given(SIDES, SIDES, st.integers(1, 900), st.integers(1, 900))
def test_a_fixed_size_is_that_of_evaluation(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    node = {"height": new_height, "width": new_width}
    preprocess = preprocess_of(config_of([{"_target_": FIXED, **node}]))
    want = size_in_evaluation(resize_fixed(**node), height, width)
    assert preprocess.resized_size(height, width) == want == (new_height, new_width)


@given(SMALL_SIDES, SMALL_SIDES, SMALL_SIDES, st.integers(0, 40), st.integers(1, 8), SEEDS)
def test_pixels_of_the_shortest_edge_are_those_of_evaluation(
    height: int, width: int, short: int, more: int, multiple: int, seed: int
) -> None:
    node = {"short_edges": short, "max_size": short + more, "size_divisor": min(multiple, short)}
    image = noise(height, width, seed)
    resize = ResizeShortEdge(**node).get_transform(image)
    own = preprocess_of(config_of([{"_target_": SHORT_EDGE, **node}])).resized(image)
    np.testing.assert_array_equal(own, resize.apply_image(image))


@given(SMALL_SIDES, SMALL_SIDES, SMALL_SIDES, SMALL_SIDES, SEEDS)
def test_pixels_of_a_fixed_size_are_those_of_evaluation(
    height: int, width: int, new_height: int, new_width: int, seed: int
) -> None:
    node = {"height": new_height, "width": new_width}
    image = noise(height, width, seed)
    resize = resize_fixed(**node).get_transform(image)
    own = preprocess_of(config_of([{"_target_": FIXED, **node}])).resized(image)
    np.testing.assert_array_equal(own, resize.apply_image(image))


@pytest.mark.parametrize("of", [np.flipud, np.fliplr, np.asfortranarray, lambda x: x[1::2, ::3]])
def test_pixels_of_a_view_are_those_of_evaluation(of: Callable) -> None:
    image = of(noise(45, 61, seed=0))
    resize = resize_fixed(width=40, height=30).get_transform(image)
    own = Preprocess(FixedSize(30, 40)).resized(image)
    np.testing.assert_array_equal(own, resize.apply_image(image))


@pytest.mark.parametrize(
    ("data", "size"),
    [(sun, (480, 640)), (buv, (480, 640)), (clinicdb, (144, 192)), (synthetic, (96, 128))],
)
def test_the_resize_of_every_dataset_is_known(data: Any, size: tuple[int, int]) -> None:
    config = {"data": data.data, "model": {"size_divisor": 16}}
    assert preprocess_of(config).resized_size(960, 1280) == size


def test_without_augmentations_images_keep_their_size() -> None:
    preprocess = preprocess_of(config_of([]))
    assert preprocess.resize == NoResize()
    assert preprocess.resized_size(31, 47) == (31, 47)


def test_statistics_are_those_of_the_detector_that_the_stage_trains() -> None:
    config = config_of([], pixel_mean=[1, 2, 3], pixel_std=[4, 5, 6], size_divisor=16)
    config["teacher"] = {"model": {"pixel_mean": [7, 8, 9]}}
    plain, teacher = preprocess_of(config), preprocess_of(config, "teacher.model")
    assert (plain.pixel_mean, plain.pixel_std) == ((1, 2, 3), (4, 5, 6))
    assert (plain.size_divisor, teacher.size_divisor) == (16, 32)
    assert teacher.pixel_mean == (7, 8, 9)


def test_statistics_of_a_detectron2_detector_are_those_of_its_network() -> None:
    config = load_config(CONFIGS / "baselines" / "faster_rcnn_synthetic.yaml")
    preprocess = preprocess_of(to_plain(config))
    assert (preprocess.pixel_mean, preprocess.pixel_std) == ((127.0,) * 3, (128.0,) * 3)


ONE, DRAWN = ({"_target_": SHORT_EDGE, "short_edges": n, "max_size": 9} for n in (3, [3, 4]))
FOREIGN = {"_target_": "detectron2.data.transforms.Resize", "shape": 3}


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        ([FOREIGN], r" is detectron2\.data\.transforms\.Resize, which .* use one of"),
        ([ONE, ONE], r" is .*ShortEdge, .*ShortEdge, which .* use one of"),
        ([DRAWN], r"\[0\]\.short_edges is \[3, 4\].* set a single length"),
    ],
)
def test_a_resize_that_is_not_known_is_refused_with_its_key(
    test: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(ValueError, match=rf"^data\.augmentations\.test{sentence}"):
        preprocess_of(config_of(test))
