"""INT8: what is quantized, what is not, and when it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from torch.export import ExportedProgram

from tests.deploy.exports import SIZE, Trace
from tools.export import main
from v2i_runtime.detector import Detector
from v2i_runtime.image_files import read_image
from v2i_runtime.preprocess import FixedSize, Preprocess
from v2idetr.deploy import export as files
from v2idetr.deploy import exporting
from v2idetr.deploy.frames import StudentFrames
from v2idetr.deploy.quantization import QUANTIZED
from v2idetr.deploy.torch_detector import TorchDetector
from v2idetr.output_folder import sole_user

INT8 = ["--format", "openvino", "--precision", "int8"]


@pytest.fixture
def detr_program(traced: Trace) -> ExportedProgram:
    return traced("detr")


@pytest.fixture
def quick_with_program(
    quick: None, detr_program: ExportedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "trace", lambda *arguments: detr_program)


@pytest.fixture(name="int8")
def _int8(
    quick_with_program: None, detr: Path, shared_folder: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """An INT8 file of the tiny DETR; the .txt beside it is what its export printed."""
    path = shared_folder / "int8" / "student.xml"
    with sole_user(path.with_name(".lock"), "Another test", patience_s=300.0):
        if not path.exists():
            assert main([str(detr), *INT8, "--output", str(path)]) == 0
            path.with_suffix(".txt").write_text(capsys.readouterr().out)
    return path


def modules_of(program: ExportedProgram) -> dict[str, str]:
    """The innermost module of every operation of a graph."""
    stacks = {node.name: node.meta.get("nn_module_stack") or {} for node in program.graph.nodes}
    return {name: list(stack.values())[-1][0] for name, stack in stacks.items() if stack}


def test_only_backbone_neck_and_encoder_are_quantized(
    int8: Path, detr_program: ExportedProgram
) -> None:
    modules = modules_of(detr_program)
    quantized = {
        op.get_friendly_name().split("/")[0]
        for op in ov.Core().read_model(int8).get_ordered_ops()
        if op.get_type_name() in ("Convolution", "MatMul")
        and op.input_value(0).get_node().get_type_name() == "FakeQuantize"
    }
    linear = {name for name in quantized if not name.startswith("conv")}
    assert linear and len(quantized) > len(linear)
    assert all(modules[name].startswith(QUANTIZED) for name in linear)


def test_no_operation_of_decoder_and_heads_is_quantized(
    int8: Path, detr_program: ExportedProgram
) -> None:
    modules = modules_of(detr_program)
    float_part = {name for name, module in modules.items() if not module.startswith(QUANTIZED)}
    assert any("decoder" in modules[name] for name in float_part)
    model = ov.Core().read_model(int8)
    inputs = {
        op.get_friendly_name(): {value.get_node().get_type_name() for value in op.input_values()}
        for op in model.get_ordered_ops()
        if op.get_type_name() == "MatMul" and op.get_friendly_name().split("/")[0] in float_part
    }
    assert inputs
    assert not [name for name, kinds in inputs.items() if "FakeQuantize" in kinds]


def test_an_int8_file_is_run_as_others_and_says_what_it_is(int8: Path, detr: Path) -> None:
    detector = Detector(int8)
    assert detector.info.precision == "int8" and "nncf" in detector.info.versions
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    found, expected = detector(frame), TorchDetector(detr)([frame])[0]
    assert 1e-6 < np.abs(found.scores - expected.scores).max() < 0.1


def test_metrics_before_and_after_are_printed_and_kept(int8: Path) -> None:
    printed = int8.with_suffix(".txt").read_text()
    assert "fp32 on val: AP50" in printed and "INT8 on val: AP50" in printed
    assert "calibrating on 12 frames of the training split" in printed
    card = Detector(int8).info.card
    names = {"AP50", "F1 endovis_center", "F1 iou50"}
    assert card["validation_fp32"].keys() == card["validation_int8"].keys() == names


@pytest.mark.usefixtures("quick_with_program")
def test_int8_that_loses_more_than_accepted_leaves_no_file(
    detr: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(exporting, "quantize", lambda model, nodes, frames: model)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--output", str(tmp_path / "out" / "a.xml"), "--accept-loss", "-1"]
    assert main([str(detr), *INT8, *arguments]) == 2
    error = capsys.readouterr().err
    assert "INT8 loses 0.0 points of" in error and "-1 are allowed (--accept-loss)" in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("quick_with_program")
@pytest.mark.parametrize(
    ("given", "threshold", "source"),
    [
        ([], 0.25, "highest F1 (0.500) of INT8 by the rule iou50 on the validation split"),
        (["--threshold-rule", "endovis_center"], 0.125, "highest F1 (0.750) of INT8 by the rule "),
        (["--threshold", "0.7"], 0.7, "given at export"),
    ],
)
def test_the_threshold_of_int8_is_chosen_by_its_own_scores(
    detr: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], threshold: float, source: str
) -> None:
    monkeypatch.setattr(exporting, "quantize", lambda model, nodes, frames: model)
    values = {"AP50": 0.5, "F1 endovis_center": 0.75, "F1 iou50": 0.5}
    thresholds = {"endovis_center": 0.125, "iou50": 0.25}
    monkeypatch.setattr(StudentFrames, "metrics", lambda *_: (values, thresholds))
    output = detr.with_name("a.xml")
    assert main([str(detr), *INT8, "--output", str(output), *given]) == 0
    info = Detector(output).info
    assert info.score_threshold == threshold and info.threshold_source.startswith(source)


@pytest.mark.parametrize("split", ["train", "val"])
def test_int8_needs_frames_for_calibration_and_metrics(
    split: str, detr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = detr.with_name("a.xml")
    changes = [f"data.{split}.json=missing.json"]
    assert main([str(detr), *INT8, "--output", str(output), *changes]) == 2
    error = capsys.readouterr().err
    assert f"data.{split}.json is missing.json, which does not exist here" in error
    assert not output.exists()


@pytest.mark.usefixtures("quick_with_program")
def test_calibration_frames_are_spread_over_the_training_split(
    detr: Path, tiny_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def quantize(model: Any, nodes: object, frames: list[np.ndarray]) -> Any:
        seen.extend(frames)
        return model

    monkeypatch.setattr(exporting, "quantize", quantize)
    arguments = ["--output", str(detr.with_name("a.xml")), "--calibration", "5"]
    assert main([str(detr), *INT8, *arguments]) == 0
    records = json.loads(Path(tiny_data["train"]["json"]).read_text())["images"]
    folder, resize = Path(tiny_data["train"]["image_root"]), Preprocess(FixedSize(*SIZE))
    files = [folder / records[index]["file_name"] for index in (0, 3, 6, 8, 11)]  # of 12
    assert len(seen) == 5
    for frame, file in zip(seen, files, strict=True):
        assert np.array_equal(frame, resize.resized(read_image(file)))
