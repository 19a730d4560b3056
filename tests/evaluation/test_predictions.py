"""Predicting over a split, from one process and from two, and the predictions file."""

import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from v2idetr.data.audit import AuditReport
from v2idetr.data.coco_vid import SplitData
from v2idetr.evaluation.frames import label_frames
from v2idetr.evaluation.predictions import (
    FramePrediction,
    predict,
    read_predictions,
    write_predictions,
)


class BoxAtId(nn.Module):
    """Detects on image i a box at (i, i), with score 1 / (i + 2); nothing on image 3."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Dropout()
        self.calls = []

    def forward(self, batched_inputs):
        self.calls.append((self.training, self.layer.training, torch.is_grad_enabled()))
        return [{"instances": self.detect(sample["image_id"])} for sample in batched_inputs]

    def detect(self, i):
        n = 0 if i == 3 else 1
        instances = Instances((100, 100))
        instances.pred_boxes = Boxes(torch.tensor([[i, i, i + 10.123, i + 20.0]])[:n])
        instances.scores = torch.full((n,), 1 / (i + 2))
        instances.pred_classes = torch.zeros(n, dtype=torch.long)
        return instances


def split_of(num_frames: int, root: Path = Path("/data")) -> SplitData:
    records = [
        {"file_name": str(root / f"clip/{i:03}.png"), "image_id": i, "video_id": 1}
        | {"height": 100, "width": 100, "frame_index": i, "scene_id": 0}
        | {
            "annotations": [
                {"bbox": [i, i, 10.0, 20.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
            ]
        }
        for i in range(num_frames)
    ]
    videos = {1: {"id": 1, "name": "clip"}}
    return SplitData(Path("val.json"), root, ["lesion"], videos, records, AuditReport("val"))


def batches_of(ids, size=2):
    samples = [{"image_id": i, "file_name": f"{i}.png"} for i in ids]
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def same(first: FramePrediction, second: FramePrediction) -> bool:
    return first.image_id == second.image_id and all(
        np.array_equal(getattr(first, key), getattr(second, key))
        for key in ("boxes_xyxy_px", "scores", "classes")
    )


def test_predictions_are_sorted_by_frame_and_keep_empty_frames():
    found = predict(BoxAtId(), batches_of([4, 3, 0, 2, 1]))
    assert [p.image_id for p in found] == [0, 1, 2, 3, 4]
    assert [len(p.scores) for p in found] == [1, 1, 1, 0, 1]
    assert found[1].boxes_xyxy_px.tolist() == [[1.0, 1.0, 11.12, 21.0]]
    assert found[1].scores.tolist() == [0.333333]


def test_model_runs_in_evaluation_mode_and_gets_its_modes_back():
    model = BoxAtId().train()
    model.layer.eval()  # a frozen part must not wake up
    predict(model, batches_of([0]))
    assert model.calls == [(False, False, False)]
    assert model.training and not model.layer.training


def test_output_that_is_not_finite_names_the_frame():
    class Broken(BoxAtId):
        def detect(self, i):
            instances = super().detect(i)
            instances.scores = instances.scores * float("nan")
            return instances

    with pytest.raises(ValueError, match=r"output for 1\.png is not finite"):
        predict(Broken(), batches_of([1]))


def test_progress_without_a_terminal_is_log_lines(monkeypatch, caplog, capsys):
    monkeypatch.setattr("v2i_runtime.progress.LINE_PERIOD_S", 0.0)
    with caplog.at_level(logging.INFO):
        predict(BoxAtId(), batches_of(range(4)), progress=True)
    assert "evaluation: batch 1 of 2, about 00:00 left" in caplog.text
    assert capsys.readouterr().err == ""


# ---- the file


@pytest.mark.parametrize("name", ["predictions.json", "predictions.json.gz"])
def test_file_gives_back_exactly_what_was_predicted(tmp_path, name):
    found = predict(BoxAtId(), batches_of(range(6)))
    write_predictions(tmp_path / name, split_of(6, tmp_path), found)
    again = read_predictions(tmp_path / name, split_of(6, tmp_path))
    assert len(again) == 6
    assert all(same(a, b) for a, b in zip(found, again, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_file_is_a_coco_results_list_with_file_names(tmp_path):
    path = tmp_path / "p.json.gz"
    write_predictions(path, split_of(2, tmp_path), predict(BoxAtId(), batches_of([0, 1])))
    with gzip.open(path, "rt") as file:
        assert json.load(file)[1] == {
            "image_id": 1,
            "category_id": 1,
            "bbox": [1.0, 1.0, 10.12, 20.0],
            "score": 0.333333,
            "file_name": os.path.join("clip", "001.png"),
        }


def test_equal_predictions_give_equal_files(tmp_path):
    found = predict(BoxAtId(), batches_of(range(4)))
    for name in ("a.json.gz", "b.json.gz"):
        write_predictions(tmp_path / name, split_of(4, tmp_path), found)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_file_without_any_detection_reads_back_as_empty_frames(tmp_path):
    write_predictions(tmp_path / "p.json", split_of(2), [FramePrediction.empty(0)])
    assert [len(p.scores) for p in read_predictions(tmp_path / "p.json", split_of(2))] == [0, 0]


def test_an_older_file_survives_a_failed_write(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("[]")
    with pytest.raises(KeyError):
        write_predictions(path, split_of(1), [BoxAtId_prediction(7)])
    assert path.read_text() == "[]"
    assert list(tmp_path.iterdir()) == [path]


def BoxAtId_prediction(i):
    return FramePrediction.from_instances({"image_id": i}, BoxAtId().detect(i))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 9, "bbox": [0, 0, 1, 1], "score": 1, "category_id": 1}]', "9 is neither"),
        ('[{"image_id": 0, "score": 1, "category_id": 1}]', "'bbox' is neither"),
        ("[{", "not a COCO results list"),
        ("3", "not a COCO results list"),
        ('[{"image_id": 0, "bbox": [0, 1], "score": 1, "category_id": 1}]', "not a COCO results"),
    ],
)
def test_foreign_file_is_refused_with_its_name(tmp_path, content, message):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(path, split_of(2))
    assert str(path) in str(error.value)


ENTRY = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ('"category_id": 1180591620717411303424', "entry 1 has category_id 1180591620717411303424"),
        ('"category_id": 0', "entry 1 has category_id 0; classes count from 1"),
        ('"category_id": 1.5', "entry 1 has category_id 1.5, not an integer"),
        ('"category_id": true', "entry 1 has category_id True, not an integer"),
        ('"image_id": 1.0', "entry 1 has image_id 1.0, not an integer"),
        ('"image_id": NaN', "entry 1 has image_id nan, not an integer"),
        (f'"image_id": {2**70}', f"{2**70} is neither a key"),
        ('"score": NaN', "entry 1 has bbox .* and score nan"),
        ('"score": Infinity', "score inf"),
        ('"score": 1e999', "score inf"),
        ('"score": "0.5"', "score '0.5'"),
        ('"score": null', "score None"),
        (f'"score": 1{"0" * 400}', "entry 1 has bbox"),
        ('"bbox": [0, 0, NaN, 1]', r"bbox \[0, 0, nan, 1\]"),
        ('"bbox": [1e308, 0, 1e308, 1]', "entry 1 has bbox"),
        ('"bbox": [0, 0, 1]', "entry 1 has bbox"),
        ('"bbox": ["0", 0, 1, 1]', "entry 1 has bbox"),
        (f'"bbox": {"[" * 100_000}', "is not a COCO results list"),
    ],
)
def test_numbers_that_no_array_holds_are_refused_with_their_entry(tmp_path, changed, message):
    path = tmp_path / "theirs.json"
    good = json.dumps(ENTRY)
    path.write_text(f"[{good}, {good[:-1]}, {changed}}}]")  # the last of equal keys counts
    with pytest.raises(ValueError, match=message) as caught:
        read_predictions(path, split_of(3))
    assert str(path) in str(caught.value)


def test_truncated_archive_is_refused(tmp_path):
    path = tmp_path / "p.json.gz"
    write_predictions(path, split_of(6), predict(BoxAtId(), batches_of(range(6))))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a COCO results list"):
        read_predictions(path, split_of(6))


# ---- joining with the ground truth


def test_frames_carry_lesions_as_corners_and_their_prediction():
    frames = label_frames(split_of(2), predict(BoxAtId(), batches_of([0, 1])), name="test")
    assert frames[1].lesions_xyxy_px.tolist() == [[1.0, 1.0, 11.0, 21.0]]
    assert frames[1].prediction.image_id == 1
    assert (frames[1].video.split, frames[1].video.name) == ("test", "clip")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1], "1 frames of split 'test' without a prediction"),
        ([0, 1, 2, 3], "predicted but not in the split"),
        ([0, 1, 2, 2], "predicted more than once"),
    ],
)
def test_every_frame_needs_exactly_one_prediction(ids, message):
    with pytest.raises(ValueError, match=message):
        label_frames(split_of(3), [FramePrediction.empty(i) for i in ids], name="test")


def test_class_that_the_split_lacks_is_an_error():
    wrong = FramePrediction(0, np.zeros((1, 4)), np.ones(1), np.array([1]))
    with pytest.raises(ValueError, match=r"class index 1.*\['lesion'\]"):
        label_frames(split_of(1), [wrong], name="test")


def test_empty_split_is_an_error():
    with pytest.raises(ValueError, match="no frames to evaluate"):
        label_frames(split_of(0), [], name="test")


# ---- two processes

TWO_PROCESSES = """
import importlib.util, json, sys
import torch.distributed as dist
from v2idetr.evaluation.evaluator import validate
from v2idetr.evaluation.predictions import predict

spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
rank, store = int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
share = cases.batches_of([0, 1, 2] if rank == 0 else [3, 4])
found = predict(cases.BoxAtId(), share)
metrics = validate(cases.BoxAtId(), cases.split_of(5), share, rules=["iou50"], coco_ap=True)
print(json.dumps([[[p.image_id, p.scores.tolist()] for p in found], metrics]))
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_get_the_predictions_and_metrics_of_one(tmp_path):
    from v2idetr.evaluation.evaluator import validate

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", TWO_PROCESSES, __file__]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    alone = predict(BoxAtId(), batches_of(range(5)))
    expected = [
        [[p.image_id, p.scores.tolist()] for p in alone],
        validate(BoxAtId(), split_of(5), batches_of(range(5)), rules=["iou50"], coco_ap=True),
    ]
    for out, _ in outputs:
        assert json.loads(out.splitlines()[-1]) == expected
