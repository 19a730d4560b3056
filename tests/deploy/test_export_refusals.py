"""An export that cannot be right is refused in words and leaves no file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.deploy.exports import write_student, write_student_config
from tests.tiny_fixtures import ROOT, write_tiny_config
from tools.convert_checkpoint import main as convert
from tools.export import main
from v2i_runtime.backends import OnnxBackend
from v2i_runtime.model_info import Outputs
from v2idetr.checkpoints.published import read_header
from v2idetr.deploy import export as files
from v2idetr.deploy import exporting
from v2idetr.deploy.exporting import check_loss

NO_RESIZE = "data.augmentations.test=[]"
SHORT_EDGE = (
    "data.augmentations.test=[{_target_: v2idetr.data.augmentation.ResizeShortEdge, "
    "short_edges: [48], max_size: 100}]"
)

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Exports and returns the message of a refusal, after which nothing must be there."""

    def get(weights: Path, *options: str, name: str = "out/a.onnx", code: int = 2) -> str:
        output = tmp_path / name
        before = sorted(tmp_path.rglob("*"))
        form = "openvino" if output.suffix == ".xml" else "onnx"
        capsys.readouterr()
        assert main([str(weights), "--format", form, "--output", str(output), *options]) == code
        assert sorted(tmp_path.rglob("*")) == before
        error = capsys.readouterr().err
        assert error.startswith("export: ") and "Traceback" not in error
        return error

    return get


def change_weights(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content["model"])
    torch.save(content, path)


def test_a_teacher_is_refused(tmp_path: Path, tiny_data: dict, refused: Refused) -> None:
    teacher = write_student(write_student_config(tmp_path, tiny_data, "detr"), "teacher")
    assert "is a teacher, which looks at 3 frames at once" in refused(teacher)


def test_a_detector_of_detectron2_is_refused(
    tmp_path: Path, tiny_data: dict, refused: Refused
) -> None:
    path = write_tiny_config(tmp_path, tiny_data)
    config = yaml.safe_load(path.read_text())
    parts = ("recipes/paper.py", "models/faster_rcnn_small.py", "data/sun.py")
    config["_base_"] = [str(ROOT / "configs" / part) for part in parts]
    del config["teacher"]
    bottom_up = {"backbone": {"_target_": "tiny_parts.TinyBackbone", "width": 8}}
    backbone = {"bottom_up": bottom_up, "in_features": ["c0", "c1", "c2"]}
    config["model"] = {"weights": "", "net": {"backbone": backbone}}
    path.write_text(yaml.safe_dump(config))
    error = refused(write_student(path))
    assert "only DETR, Deformable DETR and SAM-DETR can be exported" in error


def test_a_checkpoint_without_its_config_is_refused(detr: Path, refused: Refused) -> None:
    detr.with_name("config.yaml").unlink()
    assert "its architecture is unknown" in refused(detr)


def test_a_config_of_other_weights_is_refused(detr: Path, refused: Refused) -> None:
    error = refused(detr, "model.net.num_queries=7")
    assert "query_embed.weight (6, 32), the model has (7, 32)" in error


def misspelt(config: str) -> str:
    assert "meta_arch.Detector" in config
    return config.replace("meta_arch.Detector", "meta_arch.Detecter")


def test_a_broken_config_is_named(detr: Path, refused: Refused) -> None:
    config = detr.with_name("config.yaml")
    config.write_text(misspelt(config.read_text()))
    assert f"{config}: the configuration has" in refused(detr)


def test_a_broken_config_in_published_weights_is_named_by_their_file(
    detr: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "polyps.safetensors"
    assert convert([str(detr), "--output", str(published)]) == 0

    def broken(*arguments: Any) -> Any:
        header = read_header(*arguments)
        assert header is not None
        return replace(header, config=misspelt(header.config))

    monkeypatch.setattr("v2idetr.deploy.student.read_header", broken)
    error = refused(published)
    assert f"config in {published}: the configuration has" in error


@pytest.mark.parametrize("name", ["missing.pth", "config.yaml"])
def test_what_is_no_checkpoint_is_named(name: str, detr: Path, refused: Refused) -> None:
    assert name in refused(detr.with_name(name))


def test_a_truncated_checkpoint_is_refused(detr: Path, refused: Refused) -> None:
    detr.write_bytes(detr.read_bytes()[:-200])
    assert f"{detr}: is truncated or damaged" in refused(detr)


def test_a_weight_that_is_no_number_is_refused_with_its_name(detr: Path, refused: Refused) -> None:
    def spoil(state: dict[str, Any]) -> None:
        state["net.query_embed.weight"][0, 0] = float("nan")

    change_weights(detr, spoil)
    assert "net.query_embed.weight" in refused(detr)


def test_a_size_with_too_few_cells_for_the_queries_is_refused(
    tmp_path: Path, tiny_data: dict, refused: Refused
) -> None:
    config = write_student_config(tmp_path, tiny_data, "deformable_detr")
    changes = ("model.net.two_stage=true", "model.net.box_refine=true", NO_RESIZE)
    weights = write_student(config, "plain", *changes)
    error = refused(weights, "--size", "20", "32", "data.val.json=missing.json")
    assert "num_queries=6 but the image has only 5 tokens" in error


def test_a_size_for_a_student_that_resizes_to_one_is_refused(detr: Path, refused: Refused) -> None:
    error = refused(detr, "--size", "48", "64")
    assert "resizes every frame to 56 x 80 px; leave it out" in error


@pytest.mark.parametrize("resize", [NO_RESIZE, SHORT_EDGE])
def test_a_missing_size_is_asked_for(resize: str, detr: Path, refused: Refused) -> None:
    assert "give that of the video, such as --size 1080 1350" in refused(detr, resize)


def test_a_size_beyond_memory_is_named(
    detr: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "torch_outputs", lambda *arguments: torch.empty(2**50))
    error = refused(detr)
    assert "--size: the network needs more memory for an input of 56 x 80 px" in error
    assert "allocate" in error


def test_a_device_that_the_runtime_lacks_is_refused_before_the_work(
    detr: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*arguments: Any, **options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(exporting, "load_student", unexpected)
    for name, form in (("a.onnx", "onnx"), ("a.xml", "openvino")):
        error = refused(detr, "--device", "abacus", name=name)
        assert f"--device abacus: the runtime of --format {form} has only" in error
        assert "CPU" in error


def test_a_size_that_compared_frames_do_not_have_is_refused(detr: Path, refused: Refused) -> None:
    error = refused(detr, SHORT_EDGE, "--size", "60", "60")
    assert "becomes 48 x 64 px, but --size gives an input of 48 x 48" in error


@pytest.mark.parametrize("name", ["a.onnx", "a.xml", "a.bin"])
def test_an_existing_file_is_not_replaced(name: str, detr: Path, refused: Refused) -> None:
    there = detr.with_name(name)
    there.write_text("precious")
    output = "detr/a.onnx" if name == "a.onnx" else "detr/a.xml"
    assert f"{there}: exists; give another --output, or --overwrite" in refused(detr, name=output)
    assert there.read_text() == "precious"


@pytest.mark.usefixtures("quick")
def test_an_existing_file_is_replaced_on_request(detr: Path) -> None:
    output = detr.with_name("a.onnx")
    output.write_text("old")
    arguments = ["--format", "onnx", "--output", str(output), "--overwrite"]
    assert main([str(detr), *arguments]) == 0
    assert output.stat().st_size > 1000


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody may write")
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    detr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(detr), "--format", "onnx", "--output", "/proc/a.onnx"]) == 2
    assert "nothing can be written to /proc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("library", "form"), [("onnxscript", ".onnx"), ("onnxruntime", ".onnx"), ("openvino", ".xml")]
)
def test_a_missing_library_is_named_with_the_way_to_install_it(
    library: str, form: str, detr: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    absent = lambda name: None if name == library else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    error = refused(detr, name=f"a{form}")
    assert f"needs {library}: pip install -r requirements-deploy.txt" in error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "onnx", "--output", "a.xml"], "must end in .onnx for --format onnx"),
        (["--format", "openvino", "--output", "a.onnx"], "must end in .xml for --format openvino"),
        (["--format", "onnx", "--output", "a.onnx", "--precision", "int8"], "needs --format openv"),
        (["--format", "onnx", "--output", "a.onnx", "--size", "0", "5"], "must be at least 1 px"),
        (["--format", "onnx", "--output", "a.onnx", "--size", "9", "65536"], "at most 65535 px"),
        (["--format", "onnx", "--output", "a.onnx", "--threshold", "1.5"], "must be in [0, 1]"),
        (["--format", "onnx", "--output", "a.onnx", "--tolerance", "-1"], "must be at least 0"),
        (["--format", "onnx", "--output", "a.onnx", "--tolerance", "nan"], "must be at least 0"),
        (["--format", "onnx", "--output", "a.onnx", "--calibration", "0"], "at least 1 frame"),
        (["--format", "onnx", "--output", "a.onnx", "--accept-loss", "nan"], "must be a number"),
    ],
)
def test_options_that_make_no_sense_are_explained(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["best.pth", *options])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["out/a.onnx", "out/a.xml"])
def test_a_difference_above_the_tolerance_leaves_no_file(
    name: str, detr: Path, refused: Refused
) -> None:
    error = refused(detr, "--tolerance", "0", name=name)
    assert "finds other detections than torch" in error and "0.0e+00 is allowed" in error


@pytest.mark.usefixtures("quick")
def test_results_that_are_not_finite_are_refused_whatever_is_tolerated(
    detr: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxBackend.run

    def spoiled(self: OnnxBackend, images: np.ndarray) -> Outputs:
        return run(self, images)._replace(scores=np.full((len(images), 6), np.nan, np.float32))

    monkeypatch.setattr(OnnxBackend, "run", spoiled)
    assert "other detections than torch" in refused(detr, "--tolerance", "inf")


@pytest.mark.usefixtures("quick")
def test_weights_of_another_training_are_not_what_the_file_computes(
    detr: Path, refused: Refused
) -> None:
    def turn(state: dict[str, Any]) -> None:
        state["net.query_embed.weight"].mul_(-1)

    change_weights(detr, turn)  # `quick` has the graph of the original weights
    assert "finds other detections than torch" in refused(detr)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", ["save_onnx", "describe"])
def test_an_interrupted_export_leaves_no_file(
    step: str, detr: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        unchanged(*arguments, **options)
        raise KeyboardInterrupt

    unchanged = getattr(files, step)
    monkeypatch.setattr(files, step, interrupted)
    assert "interrupted; nothing was written" in refused(detr, code=130)


@pytest.mark.usefixtures("quick")
def test_a_full_disk_leaves_no_file(
    detr: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, info: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(exporting.files, "describe", full)
    assert "No space left on device" in refused(detr)


def test_a_metric_that_is_undefined_is_no_loss() -> None:
    check_loss({"AP50": float("nan"), "F1": 0.5}, {"AP50": float("nan"), "F1": 0.5}, 0.0)


def test_a_quantized_detector_without_any_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="has no lesions"):
        check_loss({"AP50": float("nan")}, {"AP50": float("nan")}, 1.0)
