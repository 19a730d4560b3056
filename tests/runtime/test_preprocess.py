"""Preprocessing as data: it comes back from JSON as it was, and resizes what it must."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from v2i_runtime.preprocess import FixedSize, NoResize, Preprocess, ShortestEdge


@pytest.mark.parametrize(
    "resize", [None, NoResize(), FixedSize(48, 64), ShortestEdge(480, 800, 32)], ids=str
)
def test_json_gives_back_the_same_preprocessing(resize: Any) -> None:
    preprocess = Preprocess(resize, (1.5, 2.0, 3.25), (4.0, 5.0, 6.0), size_divisor=16)
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


def test_a_size_is_not_guessed_where_the_resize_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"unknown.*convert_checkpoint\.py"):
        Preprocess(None).resized_size(48, 64)


@pytest.mark.parametrize("resize", [NoResize(), FixedSize(30, 40), ShortestEdge(30, 90)], ids=str)
def test_an_image_that_has_its_size_keeps_its_pixels(resize: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Preprocess(resize).resized(pixels), pixels)


def test_a_resized_image_has_the_size_that_was_said() -> None:
    preprocess = Preprocess(ShortestEdge(16, 40, 8))
    for height, width in ((90, 31), (31, 90), (7, 7)):
        resized = preprocess.resized(np.zeros((height, width, 3), np.uint8))
        assert resized.shape == (*preprocess.resized_size(height, width), 3)
        assert resized.dtype == np.uint8


def test_what_is_no_preprocessing_is_refused() -> None:
    for content in (None, [], {}, Preprocess(NoResize()).to_json() | {"resize": {"kind": "crop"}}):
        with pytest.raises(ValueError, match="is not a preprocessing"):
            Preprocess.from_json(content)
