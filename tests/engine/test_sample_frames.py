"""Frames drawn at every validation: always the same, with boxes where they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from tests.tiny_runs import make_run
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.engine import sample_frames as drawing
from v2idetr.engine.sample_frames import SampleFrames, chosen, sample_frames_of
from v2idetr.evaluation.predictions import FramePrediction

WIDTH = drawing.PANEL_WIDTH


def frame(image_id: int, boxes: list[list[float]]) -> dict:
    """A grey frame of 96 x 128 px, of a file twice as large."""
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    image = torch.full((3, 96, 128), 90, dtype=torch.uint8)
    ids = {"image_id": image_id, "height": 192, "width": 256}
    return {"image": image, "instances": instances, **ids}


def found(image_id: int, boxes: list[list[float]], scores: list[float]) -> FramePrediction:
    return FramePrediction(
        image_id,
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.array(scores),
        np.zeros(len(scores), dtype=np.int64),
    )


def drawn(samples: SampleFrames, *predictions: FramePrediction, threshold: float = 0.5):
    samples.watch(predictions)
    metrics = {"AP50": 0.1, "endovis_center/threshold": 0.99, "iou50/threshold": threshold}
    path = samples.write(300, metrics)
    return path, cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(pixels.astype(int) - np.array(colour)).max(-1) < 60


def panel(samples: SampleFrames, image: np.ndarray) -> np.ndarray:
    """The first frame, below the heading."""
    top = 2 * samples._text.height_px + drawing.GAP
    return image[top : top + WIDTH * 96 // 128, :WIDTH]


def test_a_detection_is_drawn_where_it_is_in_the_original_frame(tmp_path: Path) -> None:
    samples = SampleFrames("plain", tmp_path, [frame(1, [])], class_names=["polyp"])
    path, image = drawn(samples, found(1, [[64, 48, 192, 144]], [0.8]))
    assert path == tmp_path / "samples" / "000300.jpg"
    cyan = near(panel(samples, image), drawing.FOUND)
    rows, columns = np.flatnonzero(cyan.sum(1) > WIDTH / 3), np.flatnonzero(cyan.sum(0) > WIDTH / 4)
    height = WIDTH * 96 // 128
    assert rows[-1] == pytest.approx(height * 0.75, abs=2)
    assert (columns[0], columns[-1]) == pytest.approx((WIDTH * 0.25, WIDTH * 0.75), abs=2)


def test_detections_below_the_threshold_are_not_drawn(tmp_path: Path) -> None:
    samples = SampleFrames("plain", tmp_path, [frame(1, [])], class_names=["polyp"])
    below = found(1, [[64, 48, 192, 144]], [0.4])
    assert not near(panel(samples, drawn(samples, below)[1]), drawing.FOUND).any()
    assert near(panel(samples, drawn(samples, below, threshold=0.3)[1]), drawing.FOUND).any()


def test_an_undefined_threshold_and_a_hundred_boxes_can_be_drawn(tmp_path: Path) -> None:
    samples = SampleFrames("plain", tmp_path, [frame(1, [])], class_names=["polyp", "cyst"])
    many = found(1, [[64, 48, 192, 144]] * 100, [0.9] * 100)
    assert near(drawn(samples, many, threshold=float("nan"))[1], drawing.FOUND).any()


def test_ground_truth_and_the_mask_lie_on_the_lesion(tmp_path: Path) -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=8, teacher_dim=8)
    samples = SampleFrames(
        "student", tmp_path, [frame(1, [[32, 32, 64, 64]])], class_names=["polyp"], tfd=tfd
    )
    _, image = drawn(samples)
    height = WIDTH * 96 // 128
    top = 2 * samples._text.height_px + drawing.GAP
    above, below = image[top : top + height], image[top + height : top + 2 * height]
    white = np.argwhere(near(above, drawing.TRUTH))
    assert white.min(0) == pytest.approx([height / 3, WIDTH / 4], abs=2)
    assert white.max(0) == pytest.approx([2 * height / 3, WIDTH / 2], abs=2)
    yellow = below[..., 0].astype(int) - below[..., 2] > 80
    inside = yellow[height // 3 + 4 : 2 * height // 3 - 4, WIDTH // 4 + 4 : WIDTH // 2 - 4]
    assert inside.all()
    assert yellow.sum() < 1.3 * (height / 3) * (WIDTH / 4)  # its cell alone


def test_frames_are_spread_over_the_split_and_one_has_no_lesion() -> None:
    records = [{"image_id": n, "annotations": [{"iscrowd": 0}] * (n % 10 > 0)} for n in range(100)]
    ids = [record["image_id"] for record in chosen(records, 5)]
    assert sum(n % 10 == 0 for n in ids) == 1
    assert [n // 25 for n in ids if n % 10] == [0, 1, 2, 3]
    assert len(chosen(records[:1], 6)) == 1
    assert len(chosen([r for r in records if not r["annotations"]], 6)) == 6
    assert len(chosen(records, 1)) == 1 and chosen(records, 1)[0]["annotations"]


def test_the_mask_is_shown_for_a_student_alone_and_zero_frames_switch_it_off(tiny_config) -> None:
    run = make_run(tiny_config, "train.sample_frames=2")
    for name, has_mask in (("plain", False), ("student", True)):
        stage = run.stages[name]
        samples = sample_frames_of(run, stage, stage.build(run.config))
        assert samples is not None and len(samples.samples) == 2
        assert (samples.tfd is not None) == has_mask
        assert stage.watch == samples.watch
    off = make_run(tiny_config, "train.sample_frames=0")
    stage = off.stages["plain"]
    assert sample_frames_of(off, stage, stage.build(off.config)) is None
    assert stage.watch is None
