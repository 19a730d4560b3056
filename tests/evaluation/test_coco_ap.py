"""COCO AP: equal to pycocotools, and defined where there is nothing to average."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from v2idetr.evaluation.coco_ap import coco_ap
from v2idetr.evaluation.frames import LabelledFrame, Video
from v2idetr.evaluation.predictions import FramePrediction, coco_results

VIDEO = Video("test", 1, "one")


def random_boxes(rng, count):
    corner = rng.uniform(0, 300, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(10, 200, (count, 2))], 1).round(2)


def random_frames(seed, *, num_frames=40, num_classes=3):
    """Frames with 0 to 3 lesions; some detections near a lesion, some anywhere, scores tied."""
    rng = np.random.default_rng(seed)
    frames = []
    for image_id in range(num_frames):
        lesions = random_boxes(rng, rng.integers(0, 4))
        classes = rng.integers(0, num_classes, len(lesions))
        near = np.repeat(lesions, 3, axis=0) + rng.normal(0, 12, (3 * len(lesions), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found = np.concatenate([near, random_boxes(rng, rng.integers(0, 8))]).round(2)
        labels = np.concatenate(
            [np.repeat(classes, 3), rng.integers(0, num_classes, len(found) - 3 * len(lesions))]
        )
        scores = rng.uniform(0, 1, len(found)).round(2)
        frames.append(
            LabelledFrame(VIDEO, lesions, classes, FramePrediction(image_id, found, scores, labels))
        )
    return frames


def by_pycocotools(frames, num_classes):
    """AP, AP50, AP75 of the reference implementation."""
    annotations = [
        {"image_id": f.prediction.image_id, "category_id": int(c) + 1, "iscrowd": 0}
        | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        for f in frames
        for (x1, y1, x2, y2), c in zip(f.lesions_xyxy_px.tolist(), f.lesion_classes, strict=True)
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": f.prediction.image_id} for f in frames],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(num_classes)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes([entry for f in frames for entry in coco_results(f.prediction)])
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[:3]


@pytest.mark.parametrize(("seed", "num_classes"), [(0, 1), (1, 3), (2, 2)])
def test_equals_pycocotools_on_random_data(seed, num_classes):
    frames = random_frames(seed, num_classes=num_classes)
    ours = coco_ap(frames, [str(k) for k in range(num_classes)])
    reference = by_pycocotools(frames, num_classes)
    assert 0.1 < reference[0] < 0.9
    assert [ours["AP"], ours["AP50"], ours["AP75"]] == pytest.approx(list(reference), abs=1e-12)


def test_equals_pycocotools_above_a_hundred_detections_a_frame():
    rng = np.random.default_rng(3)
    lesions = random_boxes(rng, 4)
    found = np.concatenate([random_boxes(rng, 250), lesions])
    scores = rng.uniform(0, 1, len(found)).round(4)
    prediction = FramePrediction(1, found, scores, np.zeros(len(found), np.int64))
    frames = [LabelledFrame(VIDEO, lesions, np.zeros(4, np.int64), prediction)]
    ours = coco_ap(frames, ["lesion"])
    assert ours["AP50"] == pytest.approx(by_pycocotools(frames, 1)[1], abs=1e-12)


def test_mean_over_classes_leaves_out_those_without_ground_truth():
    lesion = np.array([[10.0, 10, 60, 60]])
    zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    frames = [
        LabelledFrame(VIDEO, lesion, zero, FramePrediction(1, lesion, np.array([0.9]), zero)),
        LabelledFrame(
            VIDEO,
            np.zeros((0, 4)),
            np.zeros(0, np.int64),
            FramePrediction(2, lesion, np.array([0.8]), one),
        ),
    ]
    result = coco_ap(frames, ["benign", "malignant"])
    assert result["AP"] == pytest.approx(1.0)
    assert result["per_class"]["benign"]["AP50"] == pytest.approx(1.0)
    assert result["per_class"]["malignant"] == {"AP": None, "AP50": None, "AP75": None}


def test_without_ground_truth_ap_is_undefined_not_minus_one():
    empty = np.zeros((0, 4))
    nothing = np.zeros(0, np.int64)
    alarm = FramePrediction(1, np.array([[0.0, 0, 9, 9]]), np.ones(1), np.zeros(1, np.int64))
    for prediction in (alarm, FramePrediction.empty(1)):
        result = coco_ap([LabelledFrame(VIDEO, empty, nothing, prediction)], ["lesion"])
        assert result["AP"] is result["AP50"] is result["AP75"] is None


def test_without_detections_ap_is_zero():
    lesion = np.array([[10.0, 10, 60, 60]])
    frames = [LabelledFrame(VIDEO, lesion, np.zeros(1, np.int64), FramePrediction.empty(1))]
    assert coco_ap(frames, ["lesion"])["AP"] == 0.0


def test_equal_ids_of_pooled_splits_stay_different_frames():
    lesion = np.array([[10.0, 10, 60, 60]])
    zero = np.zeros(1, np.int64)
    found = FramePrediction(7, lesion, np.array([0.9]), zero)
    frames = [
        LabelledFrame(VIDEO, lesion, zero, found),
        LabelledFrame(Video("other", 1, "one"), lesion, zero, found),
    ]
    assert coco_ap(frames, ["lesion"])["AP"] == pytest.approx(1.0)
