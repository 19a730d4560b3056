"""An exported file says what it is and what it was made from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.exports import SIZE, Export
from tools.convert_checkpoint import main as convert
from tools.export import main
from v2i_runtime.backends import open_backend
from v2i_runtime.model_info import ModelInfo
from v2i_runtime.preprocess import FixedSize, Preprocess
from v2idetr.checkpoints.files import sha256


def info_of(path: Path) -> ModelInfo:
    return open_backend(path, device="CPU", threads=1).info


def export(weights: Path, *options: str) -> ModelInfo:
    output = weights.with_name("exported.onnx")
    arguments = ["--format", "onnx", "--output", str(output), "--overwrite", *options]
    assert main([str(weights), *arguments]) == 0
    return info_of(output)


def write_evaluation(weights: Path, **changes: Any) -> None:
    """As training writes it, as far as it is read."""
    rules = {"endovis_center": {"f1": 0.75}, "iou50": {"f1": 0.5}}
    split = {"coco": {"AP50": 0.25}, "rules": rules}
    content = {
        "checkpoint": f"elsewhere/{weights.name}",
        "thresholds": {"endovis_center": 0.3, "iou50": 0.4},
        "val": split,
        "tests": {"held_out": split},
    }
    weights.with_name("evaluation.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_file_has_class_names_and_preprocessing(form: str, exported: Export) -> None:
    info = info_of(exported("detr", form))
    assert (info.network, info.class_names) == ("DETR", ["polyp"])
    assert info.preprocess == Preprocess(FixedSize(*SIZE))
    assert (info.size, info.precision) == (SIZE, "fp32")


def test_a_detector_without_deformable_attention_names_no_reads(exported: Export) -> None:
    assert info_of(exported("detr", "onnx")).attention == ""
    assert info_of(exported("deformable_detr", "onnx")).attention == "grid_sample"


def test_a_file_has_the_checksum_of_its_checkpoint(exported: Export, student) -> None:
    info = info_of(exported("detr", "onnx"))
    assert info.checkpoint == "best.pth"
    assert info.checkpoint_sha256 == sha256(student("detr"))


def test_a_file_has_the_versions_of_the_libraries_that_made_it(exported: Export) -> None:
    versions = info_of(exported("detr", "openvino")).versions
    assert versions.keys() == {"v2idetr", "torch", "openvino"}
    assert versions["openvino"] == version("openvino")


def test_a_file_has_its_differences_from_torch(exported: Export) -> None:
    parity = info_of(exported("detr", "onnx")).parity
    assert parity.keys() == {"score", "box"} and 0 <= max(parity.values()) <= 1e-5


def test_a_file_has_a_probe_of_its_own_best_detections(exported: Export) -> None:
    probe = info_of(exported("detr", "onnx")).probe
    assert probe.size == SIZE and len(probe.scores) == 5
    assert probe.scores == sorted(probe.scores, reverse=True)


@pytest.mark.usefixtures("quick")
def test_the_threshold_is_that_of_the_evaluation_of_these_weights(detr: Path) -> None:
    write_evaluation(detr)
    info = export(detr)
    assert info.score_threshold == 0.4
    assert info.threshold_source == "highest F1 (0.500) by the rule iou50 on the validation split"


@pytest.mark.usefixtures("quick")
def test_the_threshold_of_another_rule_can_be_taken(detr: Path) -> None:
    write_evaluation(detr)
    assert export(detr, "--threshold-rule", "endovis_center").score_threshold == 0.3


@pytest.mark.usefixtures("quick")
def test_a_run_that_was_not_evaluated_by_iou_has_the_threshold_of_its_first_rule(
    detr: Path,
) -> None:
    write_evaluation(detr, thresholds={"endovis_center": 0.3})
    assert export(detr).score_threshold == 0.3


@pytest.mark.usefixtures("quick")
def test_a_given_threshold_is_taken_and_said_to_be_given(detr: Path) -> None:
    write_evaluation(detr)
    info = export(detr, "--threshold", "0")
    assert (info.score_threshold, info.threshold_source) == (0.0, "given at export")


@pytest.mark.usefixtures("quick")
def test_an_evaluation_of_another_checkpoint_gives_no_threshold(detr: Path) -> None:
    write_evaluation(detr, checkpoint="run/final.pth")
    info = export(detr)
    assert info.score_threshold is None
    assert info.card["validation"] == {} and info.card["tests"] == {}


@pytest.mark.usefixtures("quick")
def test_weights_that_are_newer_than_their_evaluation_have_no_threshold(detr: Path) -> None:
    write_evaluation(detr)
    time_s = detr.with_name("evaluation.json").stat().st_mtime
    os.utime(detr, (time_s + 30, time_s + 30))  # copied behind it
    assert export(detr).score_threshold == 0.4
    os.utime(detr, (time_s + 3600, time_s + 3600))
    info = export(detr)
    assert info.score_threshold is None and info.card["validation"] == {}
    assert "the weights are newer than evaluation.json beside them" in info.threshold_source


def test_a_rule_that_the_evaluation_lacks_is_refused(
    detr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(detr)
    arguments = ["--format", "onnx", "--output", str(detr.with_name("a.onnx"))]
    assert main([str(detr), *arguments, "--threshold-rule", "iou75"]) == 2
    assert "has endovis_center, iou50; choose one of them" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"checkpoint": "best.pth"}', '{"checkpoint": 3}'])
def test_a_damaged_evaluation_is_named(
    text: str, detr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detr.with_name("evaluation.json").write_text(text)
    arguments = ["--format", "onnx", "--output", str(detr.with_name("a.onnx"))]
    assert main([str(detr), *arguments]) == 2
    assert "evaluation.json: is damaged" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_the_model_card_has_stage_data_metrics_and_intended_use(detr: Path) -> None:
    write_evaluation(detr)
    card = export(detr).card
    metrics = {"AP50": 0.25, "F1 endovis_center": 0.75, "F1 iou50": 0.5}
    assert card["stage"] == "plain" and card["training_data"].endswith("train.json")
    assert card["validation"] == metrics and card["tests"] == {"held_out": metrics}
    assert "not a medical device" in card["intended_use"]


@pytest.mark.usefixtures("quick")
def test_published_weights_are_exported_by_the_config_in_them(detr: Path, tmp_path: Path) -> None:
    published = tmp_path / "alone" / "polyps.safetensors"
    assert convert([str(detr), "--output", str(published)]) == 0
    info = export(published)
    assert info.preprocess == Preprocess(FixedSize(*SIZE))
    assert info.checkpoint == "polyps.safetensors" and info.card["stage"] == ""


@pytest.mark.usefixtures("quick")
def test_a_config_of_something_else_beside_published_weights_is_not_taken(
    detr: Path, tmp_path: Path
) -> None:
    published = tmp_path / "alone" / "polyps.safetensors"
    assert convert([str(detr), "--output", str(published)]) == 0
    published.with_name("config.yaml").write_text("nothing: 3\n")
    assert export(published).network == "DETR"


@pytest.mark.usefixtures("quick")
def test_without_validation_data_patterns_are_compared_and_that_is_said(
    detr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(detr, "data.val.json=missing.json")
    assert "compared on patterns; --frames takes real frames" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_frames_to_compare_on_can_be_given(
    detr: Path, tiny_data: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = str(Path(tiny_data["train"]["image_root"]) / "train")  # 12 frames, 8 are taken
    export(detr, "data.val.json=missing.json", "--frames", frames)
    # 8 frames alone and two in a batch, 6 detections each, compared both ways
    assert f"{(8 + 2) * 6 * 2} detections" in capsys.readouterr().out


def test_the_file_is_read_where_torch_cannot_be_imported(exported: Export) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from v2i_runtime.detector import Detector\n"
        f"found = Detector({str(exported('detr', 'onnx'))!r})(np.zeros((48, 64, 3), np.uint8))\n"
        "print(len(found))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_descriptions_of_equal_exports_differ_in_nothing(
    detr: Path, exported: Export, quick: None
) -> None:
    again, first = export(detr), info_of(exported("detr", "onnx"))
    card = again.card | {"training_data": first.card["training_data"]}
    assert replace(again, card=card, file_sha256=first.file_sha256) == first
