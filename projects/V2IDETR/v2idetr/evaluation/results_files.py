"""COCO results of any detector -> predictions of the frames of a ground truth.

Entries need ``image_id, category_id, bbox [x, y, w, h] px, score``. ``image_id`` is that of the
ground truth, or, as Ultralytics writes it, the name of the file with or without its folder and
extension; of a name that is a number, it writes the number, and the name as ``file_name``.
``category_id`` is that of the ground truth. Where an entry has a ``file_name``, it must be the
frame's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from v2idetr.data.ground_truth import GroundTruth
from v2idetr.evaluation.predictions import FramePrediction, predictions_of, read_entries

MOST_DIGITS = 18  # of a number in a name


def read_results(path: str | os.PathLike[str], truth: GroundTruth) -> list[FramePrediction]:
    """One prediction per frame of the ground truth; frames without an entry have no detection.

    Raises:
        ValueError: the file is no COCO results list, names unknown frames or classes, or its
            ``file_name`` is of another frame, or is needed to tell frames apart.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file; give a detector's COCO results.")
    entries = read_entries(path)
    if not isinstance(entries, list):
        raise ValueError(
            f"{path}: holds a {type(entries).__name__}, not a list of detections; give a COCO "
            "results list (of a file with images and annotations: its annotations)."
        )
    frames = {r["image_id"]: _spellings(r["file_name"], truth) for r in truth.split.records}
    known = Counter(name for names in frames.values() for name in names)
    by_name = {name: i for i, names in frames.items() for name in names if known[name] == 1}
    _check_ids(entries, frames, path, truth)
    classes = {category_id: k for k, category_id in enumerate(truth.category_ids, start=1)}
    return predictions_of(
        (_joined(entry, path, frames, by_name, known, classes, truth) for entry in entries),
        path,
        truth.split,
    )


def _joined(
    entry: Any,
    path: str | os.PathLike[str],
    frames: Mapping[int, tuple[str, ...]],
    by_name: Mapping[str, int],
    known: Mapping[str, int],
    classes: Mapping[int, int],
    truth: GroundTruth,
) -> Any:
    """An entry with our ids of its frame and class; damaged ones as they are."""
    if not isinstance(entry, dict) or "image_id" not in entry or "category_id" not in entry:
        return entry
    image_id, category_id, score = entry["image_id"], entry["category_id"], entry.get("score")
    name = entry.get("file_name")
    if isinstance(score, int | float) and not 0 <= score <= 1:
        raise ValueError(
            f"score {score!r:.40} of a detection in {image_id!r:.200} is not in [0, 1]; give "
            "scores from 0 to 1 (of percent: divide by 100; of logits: their sigmoid)."
        )
    if isinstance(image_id, str):
        if image_id not in by_name:
            problem = "names several frames" if known.get(image_id) else "is no frame"
            raise ValueError(
                f"image_id {image_id!r:.200} {problem} of {truth.split.json_path}; give the ids of "
                "its images, or paths as in file_name."
            )
        image_id = by_name[image_id]
    elif type(image_id) is int and isinstance(name, str):
        if image_id == _number(name) and name in by_name:
            image_id = by_name[name]
        elif image_id in frames:
            _check_name(name, image_id, frames[image_id], truth)
    if type(category_id) is not int:
        return entry
    if category_id not in classes:
        listed = zip(classes, truth.split.class_names, strict=True)
        raise ValueError(
            f"category_id {category_id} is not under `categories` of {truth.split.json_path}, "
            f"which has {', '.join(f'{i} ({name})' for i, name in listed)}."
        )
    return {**entry, "image_id": image_id, "category_id": classes[category_id]}


def _check_ids(
    entries: list[Any],
    frames: Mapping[int, tuple[str, ...]],
    path: str | os.PathLike[str],
    truth: GroundTruth,
) -> None:
    """Refuse integer ids that may as well be the numbers in the names of other frames."""
    numbers = {image_id: _number(names[-1]) for image_id, names in frames.items()}
    if set(numbers.values()) != frames.keys():  # each number then is that of one frame
        return
    for entry in entries:
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if type(image_id) is not int or isinstance(entry.get("file_name"), str):
            continue
        if numbers.get(image_id, image_id) != image_id:
            raise ValueError(
                f"{path}: image_id {image_id} is {frames[image_id][0]!r:.200} in "
                f"{truth.split.json_path}, but another frame has this number as its name, and "
                "Ultralytics writes that. Give each detection the file_name of its frame."
            )


def _number(file_name: Any) -> int | None:
    """The number that a name without folder is, but for its extension."""
    stem = os.path.splitext(file_name)[0] if isinstance(file_name, str) else ""
    return int(stem) if stem.isdecimal() and len(stem) <= MOST_DIGITS else None


def _check_name(
    file_name: str, image_id: int, spellings: tuple[str, ...], truth: GroundTruth
) -> None:
    if _stem(file_name) != spellings[-1]:
        raise ValueError(
            f"image_id {image_id} is {file_name!r:.200} here and {spellings[0]!r:.200} in "
            f"{truth.split.json_path}: they do not belong together."
        )


def _spellings(file_name: str, truth: GroundTruth) -> tuple[str, ...]:
    """A frame's path and its name alone, each with and without extension."""
    path = os.path.relpath(file_name, truth.split.image_root.resolve())
    base = os.path.basename(path)
    stem = _stem(path)
    names = dict.fromkeys([path, os.path.splitext(path)[0], base])
    return *(name for name in names if name != stem), stem


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path.replace("\\", "/")))[0]
