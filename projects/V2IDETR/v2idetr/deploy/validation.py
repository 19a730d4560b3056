"""Metrics of an exported detector on a labelled split, as training computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from v2i_runtime.detections import Detections
from v2i_runtime.progress import progress_bar
from v2idetr.data.coco_vid import SplitData, load_split
from v2idetr.data.frame_files import read_frame
from v2idetr.evaluation.evaluator import validation_metrics
from v2idetr.evaluation.predictions import BOX_DECIMALS, SCORE_DECIMALS, FramePrediction

Frame = np.ndarray
Detect = Callable[[Frame], Detections]


def read_data(config: dict[str, Any], split: str, class_names: Sequence[str]) -> SplitData:
    """A split of a run's data, "train" or "val".

    Raises:
        ValueError: its files are missing or unusable; names the key.
    """
    entry, key = config["data"][split], f"data.{split}"
    for name in ("json", "image_root"):
        if not Path(entry[name]).exists():
            raise ValueError(
                f"{key}.{name} is {entry[name]}, which does not exist here; give the place of the "
                f"data that the student was trained with: {key}.json=FILE {key}.image_root=FOLDER"
            )
    return load_split(
        entry["json"],
        entry["image_root"],
        on_bad_box=config["data"].get("on_bad_box", "raise"),
        class_names=list(class_names),
        together="frame",
    )


def frame_of(record: dict[str, Any]) -> Frame:
    """The pixels of a frame of a split, RGB."""
    return read_frame(record["file_name"], height=record["height"], width=record["width"])


def evenly(records: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """At most this number of records, spread over the split."""
    index = np.linspace(0, len(records) - 1, min(number, len(records))).round().astype(int)
    return [records[i] for i in index]


def predict_split(split: SplitData, detect: Detect, title: str) -> list[FramePrediction]:
    """Detections of every frame of a split, rounded as in training.

    Args:
        split: ground truth.
        detect: detector of one frame.
        title: title of the progress.
    """
    predictions = []
    with progress_bar(total=len(split.records), desc=title, unit="frame") as bar:
        for record in split.records:
            found = detect(frame_of(record))
            predictions.append(
                FramePrediction(
                    record["image_id"],
                    found.boxes_xyxy_px.astype(np.float64).round(BOX_DECIMALS),
                    found.scores.astype(np.float64).round(SCORE_DECIMALS),
                    found.classes,
                )
            )
            bar.update()
    return predictions


def metrics(
    split: SplitData, detect: Detect, rules: Sequence[str], title: str
) -> tuple[dict[str, float], dict[str, float]]:
    """AP50 and the F1 of each rule at its best threshold, and these thresholds by rule."""
    predictions = predict_split(split, detect, title)
    values = validation_metrics(split, predictions, rules=rules, coco_ap=True)
    found = {"AP50": values["AP50"]} | {f"F1 {rule}": values[f"{rule}/f1"] for rule in rules}
    return found, {rule: values[f"{rule}/threshold"] for rule in rules}
