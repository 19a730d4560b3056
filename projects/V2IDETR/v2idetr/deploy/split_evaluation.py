"""Detector of frames + ground truth of a split -> metrics and predictions.

A detector in a notebook, a checkpoint or an exported file is judged by the code that judges in
training: the same frames, resize, rules and rounding.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from v2i_runtime.detections import FrameDetector
from v2i_runtime.lesion_detector import LesionDetector
from v2idetr.data.audit import BoxPolicy
from v2idetr.data.coco_vid import SplitData, load_split
from v2idetr.deploy.validation import predict_split
from v2idetr.evaluation.evaluator import metrics_at
from v2idetr.evaluation.frames import label_frames
from v2idetr.evaluation.lesion_metrics import choose_threshold, get_rule, judge
from v2idetr.evaluation.predictions import FramePrediction, write_predictions
from v2idetr.evaluation.rule_names import RULE_NAMES

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Evaluation of a detector on one split.

    Attributes:
        metrics: AP, precision, recall and F1 by rule, per video and by group of videos: an entry
            of ``evaluation.json``, see ``evaluator.evaluate_predictions``; undefined ones are None.
        thresholds: score threshold of each rule.
        predictions: detections of every frame, of any score.
        split: ground truth.
    """

    metrics: dict[str, Any]
    thresholds: dict[str, float]
    predictions: list[FramePrediction]
    split: SplitData

    def write_predictions(self, path: PathLike) -> None:
        """Write the detections as COCO results, ``.json`` or ``.json.gz``, whole or not at all."""
        write_predictions(path, self.split, self.predictions)

    def __repr__(self) -> str:
        coco, rules = self.metrics["coco"] or {}, self.metrics["rules"]
        rows = [
            {"rule": rule, "threshold": f"{values['threshold']:.3f}"}
            | {key: _percent(values[key]) for key in ("f1", "precision", "recall")}
            for rule, values in rules.items()
        ]
        ap = ", ".join(f"{key} {_percent(coco[key])}" for key in ("AP", "AP50") if key in coco)
        size = ", ".join(f"{self.metrics[key]} {key}" for key in ("videos", "frames", "lesions"))
        table = tabulate(rows, headers="keys", disable_numparse=True)
        return f"{self.split.json_path}: {size}\n{ap}\n{table}"


def evaluate(
    detector: LesionDetector | FrameDetector,
    ground_truth: PathLike,
    image_root: PathLike,
    *,
    thresholds: Mapping[str, float] | float | None = None,
    rules: Sequence[str] = RULE_NAMES,
    coco_ap: bool = True,
    on_bad_box: BoxPolicy = "raise",
    name: str | None = None,
) -> Evaluation:
    """Evaluate a detector on a split as ``train_net.py --eval-only`` does.

    Thresholds come from validation data: evaluate the validation split, then the test split with
    ``thresholds`` of that result. Without them, each rule takes the threshold with the highest F1
    on this same split, which is too favourable to a detector on test data.

    Args:
        detector: a detector of :func:`v2idetr.load`, or any detector of frames.
        ground_truth: COCO-VID JSON of the split.
        image_root: base folder of its frames.
        thresholds: score threshold of each rule, or one for all rules, such as the detector's own.
        rules: names in ``lesion_metrics.RULES``; with thresholds by rule, only those are evaluated.
        coco_ap: whether to compute COCO AP.
        on_bad_box: policy for boxes that are negative, empty, not finite or outside the frame.
        name: name of the split in the per-video metrics; None for the name of the file.

    Raises:
        ValueError: unusable ground truth, other classes than the detector's, an unknown rule, a
            threshold outside [0, 1].

    Examples:
        ```python
        val = v2idetr.evaluate(student, "data/val.json", "data")
        test = v2idetr.evaluate(student, "data/test.json", "data", thresholds=val.thresholds)
        print(test.metrics["coco"]["AP50"], test.metrics["rules"]["iou50"]["f1"])
        ```
    """
    given = _given(thresholds, rules)
    frame_detector = detector.detector if isinstance(detector, LesionDetector) else detector
    names = list(frame_detector.class_names)
    split = load_split(
        ground_truth, image_root, on_bad_box=on_bad_box, class_names=names, together="frame"
    )
    title = Path(ground_truth).stem if name is None else name
    predictions = predict_split(split, lambda frame: frame_detector([frame])[0], title)
    frames = label_frames(split, predictions, name=title)
    chosen = given or {rule: choose_threshold(judge(frames, rule)) for rule in rules}
    result = metrics_at(chosen, {title: frames}, names, coco_ap=coco_ap)
    metrics = result["val"] if title == "val" else result["tests"][title]
    return Evaluation(metrics, chosen, predictions, split)


def _given(
    thresholds: Mapping[str, float] | float | None, rules: Sequence[str]
) -> dict[str, float]:
    """Threshold by rule; none where they are to be chosen.

    Raises:
        ValueError: an unknown rule, no rule, or a threshold outside [0, 1].
    """
    evaluated = list(thresholds if isinstance(thresholds, Mapping) else rules)
    if not evaluated:
        raise ValueError("there is no rule to evaluate by; name one, such as 'iou50'")
    for rule in evaluated:
        get_rule(rule)
    if thresholds is None:
        return {}
    if not isinstance(thresholds, Mapping):
        thresholds = dict.fromkeys(rules, thresholds)
    given = {rule: float(value) for rule, value in thresholds.items()}
    for rule, value in given.items():
        if not 0 <= value <= 1:
            raise ValueError(f"thresholds[{rule!r}]={value} is not in [0, 1]")
    return given


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
