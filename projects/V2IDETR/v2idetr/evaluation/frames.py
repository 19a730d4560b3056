"""Ground truth and detections of a frame, the input of all metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode
from jaxtyping import Float, Int

from v2idetr.data.coco_vid import SplitData
from v2idetr.evaluation.predictions import FramePrediction


@dataclass(frozen=True)
class Video:
    """A video of a split. ``group`` is that of the JSON, such as "seen" or "unseen"."""

    split: str
    video_id: int
    name: str
    group: str | None = None


@dataclass(frozen=True)
class LabelledFrame:
    """Lesions of a frame (corners in pixels, 0-based classes) and its detections."""

    video: Video
    lesions_xyxy_px: Float[np.ndarray, "m 4"]
    lesion_classes: Int[np.ndarray, "m"]
    prediction: FramePrediction


def label_frames(
    split: SplitData, predictions: Iterable[FramePrediction], *, name: str
) -> list[LabelledFrame]:
    """Join predictions with their split's ground truth, in the split's order.

    Args:
        split: the ground truth.
        predictions: exactly one for every frame of the split.
        name: name of the split in the results.

    Raises:
        ValueError: the split is empty; a frame has no prediction or several, or is unknown; a
            detection has a class that the split lacks.
    """
    predictions = list(predictions)
    by_image = {prediction.image_id: prediction for prediction in predictions}
    _check_one_each(split, [prediction.image_id for prediction in predictions], name)
    _check_classes(split, predictions, name)
    videos = {
        video_id: Video(name, video_id, str(video["name"]), video.get("group"))
        for video_id, video in split.videos.items()
    }
    frames = []
    for record in split.records:
        annotations = record["annotations"]
        assert all(a["bbox_mode"] == BoxMode.XYWH_ABS for a in annotations)
        boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
        frames.append(
            LabelledFrame(videos[record["video_id"]], boxes, classes, by_image[record["image_id"]])
        )
    return frames


def _check_one_each(split: SplitData, predicted: list[int], name: str) -> None:
    if not split.records:
        raise ValueError(f"{split.json_path}: split {name!r} has no frames to evaluate.")
    expected = {record["image_id"] for record in split.records}
    counts = Counter(predicted)
    problems = {
        "without a prediction": sorted(expected - counts.keys()),
        "predicted but not in the split": sorted(counts.keys() - expected),
        "predicted more than once": sorted(i for i, count in counts.items() if count > 1),
    }
    for problem, ids in problems.items():
        if ids:
            raise ValueError(
                f"{split.json_path}: {len(ids)} frames of split {name!r} {problem} "
                f"(first image_id {ids[0]}); metrics need exactly one prediction per frame."
            )


def _check_classes(split: SplitData, predictions: list[FramePrediction], name: str) -> None:
    highest = max((prediction.classes.max(initial=-1) for prediction in predictions), default=-1)
    if highest >= len(split.class_names):
        raise ValueError(
            f"{split.json_path}: a detection on split {name!r} has class index {highest}, but the "
            f"split's classes are {split.class_names}; evaluate a model that has these classes."
        )
