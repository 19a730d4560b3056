"""COCO average precision of boxes, by faster-coco-eval (same numbers as pycocotools)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.faster_eval_api_cpp import COCOevalAccumulate
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
    evaluator = _evaluator(frames, class_names)
    evaluator.evaluate()
    evaluator.accumulate()
    precision = _precision(evaluator.eval)
    per_class = {name: _metrics(precision[:, :, k]) for k, name in enumerate(class_names)}
    return {**_metrics(precision), "per_class": per_class}


class ResampledAP:
    """AP of any choice of frames, for the bootstrap: boxes are matched once.

    Args:
        frames, class_names: see :func:`coco_ap`.
    """

    def __init__(self, frames: Sequence[LabelledFrame], class_names: Sequence[str]) -> None:
        evaluator = _evaluator(frames, class_names, separate_eval=True)
        evaluator.evaluate()
        self._num_frames = len(frames)
        self._params: Any = evaluator._paramsEval
        # all frames of the first class, then of the second, ...
        self._matched = list(evaluator._evalImgs_cpp)

    def __call__(self, indexes: Sequence[int]) -> dict[str, float | None]:
        """``AP, AP50, AP75`` of the frames with these indexes, which may repeat."""
        starts = range(0, len(self._matched), self._num_frames)
        chosen = [self._matched[start + index] for start in starts for index in indexes]
        self._params.imgIds = list(range(1, len(indexes) + 1))
        return _metrics(_precision(COCOevalAccumulate(self._params, chosen)))


def _evaluator(
    frames: Sequence[LabelledFrame], class_names: Sequence[str], *, separate_eval: bool = False
) -> COCOeval_faster:
    ground_truth = COCO(_dataset(frames, class_names), print_function=logger.debug)
    detections = ground_truth.loadRes(
        [
            {**entry, "image_id": index, "segmentation": []}
            for index, frame in enumerate(frames, start=1)
            for entry in coco_results(frame.prediction)
        ]
    )
    evaluator = COCOeval_faster(
        ground_truth,
        detections,
        iouType="bbox",
        print_function=logger.debug,
        separate_eval=separate_eval,
    )
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluator.params.maxDets = [MAX_DETECTIONS]
    return evaluator


def _precision(accumulated: Mapping[str, Any]) -> Float[np.ndarray, "ious recalls classes"]:
    """Precision at each IoU threshold and recall; -1 where a class has no ground truth."""
    return np.asarray(accumulated["precision"])[..., 0, 0]


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
