"""Exported students find what torch finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from tests.deploy.exports import SIZE, SUFFIXES, Export
from tests.tiny_runs import make_run
from tools.export import main
from v2i_runtime.detections import Detections
from v2i_runtime.detector import Detector
from v2idetr.data.frame_files import read_frame
from v2idetr.deploy.torch_detector import TorchDetector
from v2idetr.engine.stage_graph import build_stage
from v2idetr.runs.checkpoint import load_detector

STUDENTS = ("deformable_detr", "detr", "sam_detr")


def frames(number: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Noise of several brightnesses, none of it seen in an export."""
    rng = np.random.default_rng(7)
    return [rng.integers(0, 60 * (i + 1), (*size, 3), dtype=np.uint8) for i in range(number)]


def difference(some: list[Detections], others: list[Detections], side_px: int) -> float:
    """Largest difference of a score, or of a box coordinate in [0, 1] of the longer side."""
    pairs = list(zip(some, others, strict=True))
    scores = max(np.abs(a.scores - b.scores).max() for a, b in pairs)
    boxes = max(np.abs(a.boxes_xyxy_px - b.boxes_xyxy_px).max() for a, b in pairs)
    return max(float(scores), float(boxes) / side_px)


def of_torch(weights: Path, images: list[np.ndarray]) -> list[Detections]:
    found = TorchDetector(weights)(images)
    assert found[0].scores.min() > 0.01
    assert difference(found[:1], found[-1:], SIZE[1]) > 1e-3, "detections depend on the frame"
    return found


@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", STUDENTS)
def test_new_frames_have_the_detections_of_torch_alone_and_in_a_batch(
    kind: str, form: str, exported: Export, student
) -> None:
    images = frames(4)
    expected, detector = of_torch(student(kind), images), Detector(exported(kind, form))
    alone, batch = [detector(image) for image in images], detector(images)
    assert difference(alone, expected, SIZE[1]) <= 1e-5
    assert difference(batch, expected, SIZE[1]) <= 1e-5


@pytest.mark.parametrize("form", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_reads_by_indices_find_the_same(form: str, exported: Export, student) -> None:
    images = frames(2)
    detector = Detector(exported("one_level", form, "gather"))
    expected = of_torch(student("one_level"), images)
    assert detector.info.attention == "gather"
    assert difference(detector(images), expected, SIZE[1]) <= 1e-5


def test_a_file_has_grid_sample_unless_its_reads_are_by_indices(exported: Export) -> None:
    def kinds(path: Path) -> set[str]:
        return {node.op_type for node in onnx.load(path).graph.node}

    assert "GridSample" in kinds(exported("deformable_detr", "onnx"))
    assert "GridSample" not in kinds(exported("one_level", "onnx", "gather"))


@pytest.fixture
def half(quick: None, detr: Path) -> Callable[[str], Path]:
    """The tiny DETR with weights in float16."""

    def get(form: str) -> Path:
        path = detr.with_name(f"half{SUFFIXES[form]}")
        options = ["--format", form, "--precision", "fp16", "--output", str(path)]
        assert main([str(detr), *options]) == 0
        return path

    return get


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_half_precision_is_close_to_float32_alone_and_in_a_batch(
    form: str, half: Callable[[str], Path], detr: Path
) -> None:
    images = frames(3)
    expected, detector = of_torch(detr, images), Detector(half(form))
    assert 1e-7 < difference([detector(image) for image in images], expected, SIZE[1]) < 0.01
    assert difference(detector(images), expected, SIZE[1]) < 0.01


def test_half_precision_takes_less_space(half: Callable[[str], Path], exported: Export) -> None:
    """OpenVINO keeps weights apart from the graph, which is most of a tiny file."""
    whole = exported("detr", "openvino").with_suffix(".bin").stat().st_size
    assert half("openvino").with_suffix(".bin").stat().st_size < 0.7 * whole


def test_the_size_of_a_batch_is_free_and_that_of_frames_is_fixed(exported: Export) -> None:
    shape = ov.Core().read_model(exported("detr", "openvino")).inputs[0].partial_shape
    assert [d.to_string() for d in shape] == ["?", "56", "80", "3"]
    first = onnx.load(exported("detr", "onnx")).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in first] == [0, 56, 80, 3]


def test_frames_of_another_size_have_the_detections_of_an_evaluation(
    exported: Export, student
) -> None:
    weights = student("deformable_detr")
    run = make_run(weights.parent / "config.yaml")
    detector = build_stage(run.config, "plain").model
    load_detector(detector, weights)
    samples = [s for b in run.eval_loader(run.splits["val"], detector) for s in b]
    evaluated = [
        Detections(
            found.scores.numpy(), found.pred_classes.numpy(), found.pred_boxes.tensor.numpy()
        )
        for found in (out["instances"] for out in detector.eval()(samples))
    ]
    images = [read_frame(s["file_name"], height=s["height"], width=s["width"]) for s in samples]
    assert images[0].shape[:2] == (48, 64)
    for others in (Detector(exported("deformable_detr", "onnx")), TorchDetector(weights)):
        assert difference(others(images), evaluated, 64) <= 1e-5
