"""Description of an exported file: complete in JSON, and a probe that recognises other results."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.tiny_models import SIZE, expected, tiny_info
from v2i_runtime.model_info import ModelInfo, Outputs, differences, probe_image


def test_json_gives_back_the_same_description() -> None:
    info = tiny_info()
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
    probe = tiny_info().probe.outputs
    others = Outputs(scores, classes, boxes).where(np.array(order))
    assert max(differences(probe, others)) < 1e-6
    score, box = differences(probe, others._replace(boxes=others.boxes + np.float32(change)))
    assert score < 1e-6 and box == pytest.approx(change, abs=1e-6)


def test_a_class_that_is_gone_is_an_infinite_difference() -> None:
    probe, infinite = tiny_info().probe.outputs, (float("inf"), float("inf"))
    found = Outputs(*expected(probe_image(*SIZE)[None])).of_frame(0)
    assert differences(probe, found._replace(classes=found.classes * 0)) == infinite
    assert differences(probe, found.where(np.zeros(2, bool))) == infinite


def test_a_number_that_is_not_finite_is_an_infinite_difference() -> None:
    probe = tiny_info().probe.outputs
    damaged = probe._replace(scores=np.array([probe.scores[0], np.nan]))
    assert differences(probe, damaged) == (float("inf"), float("inf"))
