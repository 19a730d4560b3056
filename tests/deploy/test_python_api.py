"""``import v2idetr``: cheap to import, one loader for every file, an evaluation like the run's."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import v2idetr
from tests.deploy.exports import Export
from tests.tiny_runs import make_run
from tools.convert_checkpoint import main as convert
from v2i_runtime.detector import Detector
from v2idetr.deploy.torch_detector import TorchDetector
from v2idetr.engine.stages import evaluate_only

FRAME = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def test_the_package_is_imported_without_libraries() -> None:
    program = "import sys, v2idetr; dir(v2idetr); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert not {"torch", "detectron2", "numpy", "cv2", "v2i_runtime"} & set(done.stdout.split())


def test_names_of_the_package_are_there_and_others_are_not() -> None:
    for name in v2idetr.__all__:
        assert getattr(v2idetr, name).__name__ == name and name in dir(v2idetr)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = v2idetr.train


def test_all_files_of_a_student_find_the_same(exported: Export, student, tmp_path: Path) -> None:
    published = tmp_path / "polyps.safetensors"
    assert convert([str(student("detr")), "--output", str(published)]) == 0
    paths = [exported("detr", "onnx"), exported("detr", "openvino"), published]
    wanted = v2idetr.load(student("detr"), score_threshold=0.3)(FRAME)
    assert len(wanted) > 0
    for path in paths:
        found = v2idetr.load(path, score_threshold=0.3)(FRAME)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes_xyxy_px, wanted.boxes_xyxy_px, atol=1e-2)


def test_the_kind_of_file_decides_what_computes(exported: Export, detr: Path) -> None:
    assert isinstance(v2idetr.load(detr).detector, TorchDetector)
    assert isinstance(v2idetr.load(exported("detr", "onnx")).detector, Detector)


def test_settings_reach_what_computes(detr: Path, exported: Export, tmp_path: Path) -> None:
    config = detr.with_name("config.yaml").rename(tmp_path / "elsewhere.yaml")
    before = torch.get_num_threads()
    try:
        assert v2idetr.load(detr, config_file=config, threads=2).class_names == ["polyp"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="device is 'cuda:77'"):
        v2idetr.load(detr, config_file=config, device="CUDA:77")
    with pytest.raises(ValueError, match=r"student\.onnx: takes no config"):
        v2idetr.load(exported("detr", "onnx"), config_file=config)
    with pytest.raises(ValueError, match="is no exported detector"):
        v2idetr.load("student.txt")


def with_own_boxes(split: dict, detector: v2idetr.LesionDetector, folder: Path) -> dict:
    """The split with the detector's best box in each frame as ground truth, but for the first."""
    content = json.loads(Path(split["json"]).read_text())
    for annotation in content["annotations"][1:]:
        image = content["images"][annotation["image_id"] - 1]
        found = detector(Path(split["image_root"]) / image["file_name"])
        x1, y1, x2, y2 = map(float, found.boxes_xyxy_px[0])
        annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
    path = folder / Path(split["json"]).name
    path.write_text(json.dumps(content))
    return {"json": str(path), "image_root": split["image_root"]}


@pytest.fixture(scope="module")
def evaluated(student, tiny_data: dict, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What train_net.py --eval-only writes about the tiny student, and where its data are."""
    folder, weights = tmp_path_factory.mktemp("eval_only"), student("detr")
    detector = v2idetr.load(weights, score_threshold=0.0)
    splits = {"val": tiny_data["val"], "held_out": tiny_data["test"]["held_out"]}
    splits = {name: with_own_boxes(split, detector, folder) for name, split in splits.items()}
    run = make_run(
        weights.parents[2] / "tiny.yaml",
        "train.stages=[plain]",
        f"data.val.json={splits['val']['json']}",
        f"data.test.held_out.json={splits['held_out']['json']}",
    )
    evaluate_only(run, folder / "evaluation", str(weights))
    (file,) = (folder / "evaluation").glob("*/evaluation.json")  # in a folder of its row
    return {"result": json.loads(file.read_text()), "folder": file.parent, **splits}


def rounded(values: object) -> object:
    """To four decimals: frames are detected one by one here, in batches there."""
    return json.loads(json.dumps(values), parse_float=lambda text: round(float(text), 4))


def test_an_evaluation_is_that_of_the_run(student, evaluated: dict, tmp_path: Path) -> None:
    result, detector = evaluated["result"], v2idetr.load(student("detr"))
    val = v2idetr.evaluate(detector, **place(evaluated["val"]))
    test = v2idetr.evaluate(
        detector, **place(evaluated["held_out"]), thresholds=val.thresholds, name="held_out"
    )
    assert result["val"]["rules"]["iou50"]["f1"] > 0 and result["val"]["coco"]["AP50"] > 0
    assert rounded(val.thresholds) == rounded(result["thresholds"])
    assert rounded(val.metrics) == rounded(result["val"])
    assert rounded(test.metrics) == rounded(result["tests"]["held_out"])
    test.write_predictions(tmp_path / "predictions.json.gz")
    ours, theirs = (
        json.loads(gzip.decompress((folder / name).read_bytes()))
        for folder, name in (
            (tmp_path, "predictions.json.gz"),
            (evaluated["folder"], "predictions_held_out.json.gz"),
        )
    )
    assert len(ours) == len(theirs) == 18
    for own, other in zip(ours, theirs, strict=True):
        assert (own["file_name"], own["category_id"]) == (other["file_name"], other["category_id"])
        assert [*own["bbox"], own["score"]] == pytest.approx(
            [*other["bbox"], other["score"]], abs=0.011
        )


def place(split: dict) -> dict:
    return {"ground_truth": split["json"], "image_root": split["image_root"]}


def test_an_exported_file_is_evaluated_as_its_checkpoint(exported: Export, evaluated: dict) -> None:
    found = v2idetr.evaluate(Detector(exported("detr", "onnx")), **place(evaluated["val"]))
    wanted = evaluated["result"]["val"]
    assert found.metrics["coco"]["AP50"] == pytest.approx(wanted["coco"]["AP50"], abs=1e-3)
    assert found.thresholds == pytest.approx(evaluated["result"]["thresholds"], abs=1e-4)


def test_given_thresholds_are_taken_by_rule_or_for_all(student, evaluated: dict) -> None:
    detector, val = v2idetr.load(student("detr")), place(evaluated["val"])
    one = v2idetr.evaluate(detector, **val, thresholds=0.5)
    assert one.thresholds == {"endovis_center": 0.5, "iou50": 0.5}
    assert one.metrics["rules"]["iou50"]["threshold"] == 0.5
    several = v2idetr.evaluate(detector, **val, thresholds={"iou50": 0.25}, coco_ap=False)
    assert several.metrics["rules"].keys() == {"iou50"} and several.metrics["coco"] is None


def test_an_evaluation_prints_its_metrics(student, evaluated: dict) -> None:
    val = evaluated["val"]
    lines = repr(v2idetr.evaluate(v2idetr.load(student("detr")), **place(val))).splitlines()
    assert lines[0] == f"{val['json']}: 1 videos, 3 frames, 2 lesions"
    f1 = evaluated["result"]["val"]["rules"]["iou50"]["f1"]
    assert lines[-1].split()[:3:2] == ["iou50", f"{100 * f1:.1f}"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": ["iou51"]}, "unknown rule 'iou51'"),
        ({"thresholds": {"iou51": 0.5}}, "unknown rule 'iou51'"),
        ({"thresholds": {}}, "there is no rule"),
        ({"thresholds": 1.5}, r"thresholds\['endovis_center'\]=1\.5 is not in \[0, 1\]"),
    ],
)
def test_unusable_settings_are_refused_before_any_file_is_read(
    detr: Path, settings: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        v2idetr.evaluate(v2idetr.load(detr), "missing.json", "missing", **settings)


def test_ground_truth_of_other_classes_is_refused(
    detr: Path, tiny_data: dict, tmp_path: Path
) -> None:
    val = tiny_data["val"]
    other = Path(shutil.copy(val["json"], tmp_path / "other.json"))
    other.write_text(other.read_text().replace('"polyp"', '"ulcer"'))
    with pytest.raises(ValueError, match="ulcer"):
        v2idetr.evaluate(v2idetr.load(detr), other, val["image_root"])
