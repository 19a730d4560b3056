"""Description of an exported file: complete in JSON, and a probe that recognises other results."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.tiny_models import SIZE, expected, tiny_info
from v2i_runtime.model_info import ModelInfo, largest_difference, probe_image


@pytest.mark.parametrize("dynamic", [False, True])
def test_json_gives_back_the_same_description(dynamic: bool) -> None:
    info = tiny_info(dynamic=dynamic)
    assert ModelInfo.from_json(info.to_json(), "a.onnx") == info


@pytest.mark.parametrize("key", [field.name for field in fields(ModelInfo)])
def test_a_description_without_one_of_its_keys_is_refused(key: str) -> None:
    content = json.loads(tiny_info().to_json())
    del content[key]
    with pytest.raises(ValueError, match=rf"^a\.onnx: its description is damaged \('{key}'\)"):
        ModelInfo.from_json(json.dumps(content), "a.onnx")


def test_a_probe_image_depends_on_nothing_but_its_size() -> None:
    image = probe_image(48, 64)
    assert image.shape == (48, 64, 3) and image.dtype == np.uint8
    assert int(image.astype(np.int64).sum()) == 1003296


@given(st.permutations([0, 1, 2, 3]), st.floats(0, 0.5))
def test_order_of_detections_makes_no_difference_and_values_do(order, change: float) -> None:
    scores, classes, boxes = (
        np.concatenate([x[0], x[0]]) for x in expected(probe_image(*SIZE)[None])
    )
    probe = tiny_info().probe
    scores, classes, boxes = scores[order], classes[order], boxes[order]
    assert largest_difference(probe, scores, classes, boxes) < 1e-6
    moved = largest_difference(probe, scores, classes, boxes + np.float32(change))
    assert moved == pytest.approx(change, abs=1e-6)


def test_a_class_that_is_gone_is_an_infinite_difference() -> None:
    scores, classes, boxes = (output[0] for output in expected(probe_image(*SIZE)[None]))
    assert largest_difference(tiny_info().probe, scores, classes * 0, boxes) == float("inf")
    none = largest_difference(tiny_info().probe, scores[:0], classes[:0], boxes[:0])
    assert none == float("inf")
