"""COCO average precision of boxes, by faster-coco-eval (same numbers as pycocotools)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Float

from v2idetr.evaluation.frames import LabelledFrame
from v2idetr.evaluation.predictions import coco_results

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 100  # per frame and class, as COCO


def coco_ap(frames: Sequence[LabelledFrame], class_names: Sequence[str]) -> dict[str, Any]:
    """AP over IoU 0.50:0.95, AP50 and AP75, in [0, 1], all object sizes.

    Classes without ground truth are left out of the mean, as in COCO. A metric without any ground
    truth is None (COCO's -1).

    Returns:
        ``{"AP", "AP50", "AP75", "per_class": {name: {"AP", "AP50", "AP75"}}}``
    """
    ground_truth = COCO(_dataset(frames, class_names), print_function=logger.debug)
    detections = ground_truth.loadRes(
        [
            {**entry, "image_id": index, "segmentation": []}
            for index, frame in enumerate(frames, start=1)
            for entry in coco_results(frame.prediction)
        ]
    )
    evaluator = COCOeval_faster(
        ground_truth, detections, iouType="bbox", print_function=logger.debug
    )
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluator.params.maxDets = [MAX_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    # IoU thresholds x recall levels x classes; -1 where a class has no ground truth
    precision = np.asarray(evaluator.eval["precision"])[..., 0, 0]
    per_class = {name: _metrics(precision[:, :, k]) for k, name in enumerate(class_names)}
    return {**_metrics(precision), "per_class": per_class}


def _metrics(precision: Float[np.ndarray, "ious ..."]) -> dict[str, float | None]:
    return {
        "AP": _mean(precision),
        "AP50": _mean(precision[0]),
        "AP75": _mean(precision[5]),
    }


def _mean(precision: Float[np.ndarray, "..."]) -> float | None:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None


def _dataset(frames: Sequence[LabelledFrame], class_names: Sequence[str]) -> dict[str, Any]:
    """COCO ground truth; images get new ids, because those of pooled splits may collide."""
    annotations = []
    for image_id, frame in enumerate(frames, start=1):
        for (x1, y1, x2, y2), label in zip(
            frame.lesions_xyxy_px.tolist(), frame.lesion_classes.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return {
        "info": {},
        "images": [{"id": image_id} for image_id in range(1, len(frames) + 1)],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)],
    }
