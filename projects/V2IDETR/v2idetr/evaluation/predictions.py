"""From a detector and frames to detections, kept apart from every metric.

Detections are rounded where they enter (boxes to 1/100 px, scores to 1e-6), so that metrics
computed now, and metrics computed from the written file later, are the same to the last digit.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from jaxtyping import Float, Int
from torch import nn

from v2i_runtime.progress import progress_bar
from v2idetr.atomic_file import write_atomically
from v2idetr.data.coco_vid import SplitData

logger = logging.getLogger(__name__)

BOX_DECIMALS = 2
SCORE_DECIMALS = 6
MOST_CLASSES = 2**31 - 1
LARGEST = 1e12  # bound of coordinates and scores, which are rounded without overflow below it


@dataclass(frozen=True)
class FramePrediction:
    """All detections of one frame, in no particular order.

    Attributes:
        image_id: id of the frame in its split.
        boxes_xyxy_px: corners in pixels of the original frame.
        scores: in [0, 1].
        classes: 0-based.
    """

    image_id: int
    boxes_xyxy_px: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    classes: Int[np.ndarray, "n"]

    @classmethod
    def from_instances(cls, sample: dict[str, Any], instances: Instances) -> FramePrediction:
        """Convert Detectron2's output for one sample.

        Raises:
            ValueError: a box or score is not finite; names the frame.
        """
        boxes = instances.pred_boxes.tensor.detach().double().cpu().numpy()
        scores = instances.scores.detach().double().cpu().numpy()
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(
                f"The model's output for {sample.get('file_name', sample['image_id'])} is not "
                "finite. Its weights are probably damaged: evaluate an earlier checkpoint."
            )
        return cls(
            image_id=int(sample["image_id"]),
            boxes_xyxy_px=boxes.round(BOX_DECIMALS),
            scores=scores.round(SCORE_DECIMALS),
            classes=instances.pred_classes.detach().cpu().numpy().astype(np.int64),
        )

    @classmethod
    def empty(cls, image_id: int) -> FramePrediction:
        """Prediction without detections."""
        return cls(image_id, np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each submodule's mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def predict(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    *,
    progress: bool = False,
) -> list[FramePrediction]:
    """Run a detector over a split.

    Every rank must call this with its own share of the split; each gets all predictions.

    Args:
        model: detector with Detectron2's contract, batch of samples ->
            ``[{"instances": Instances}]``. One with ``order = "video"`` keeps state between frames:
            it gets the frames of a video one by one in temporal order, after ``model.reset()``.
        loader: batches of samples (see ``build_eval_loader``), with ``whole_videos`` for such a
            model.
        progress: whether the main rank reports the progress.

    Returns:
        One prediction per frame, from all ranks, sorted by ``image_id``.

    Raises:
        ValueError: the model needs whole videos and the loader splits them; an output is not
            finite.
    """
    in_order = getattr(model, "order", "any") == "video"
    mine: list[FramePrediction] = []
    if progress and comm.is_main_process():
        loader = progress_bar(loader, desc="evaluation", unit="batch", say=logger.info)
    with evaluating(model):
        for batch in loader:
            outputs = _in_order(model, batch) if in_order else model(batch)
            assert len(outputs) == len(batch), "one output per sample"
            mine += [
                FramePrediction.from_instances(sample, output["instances"])
                for sample, output in zip(batch, outputs, strict=True)
            ]
    shares = cast(list[list[FramePrediction]], comm.all_gather(mine))
    return sorted(chain.from_iterable(shares), key=lambda prediction: prediction.image_id)


def _in_order(model: Any, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
    """Outputs of a model that takes the frames of a video one by one."""
    outputs = []
    for sample in batch:
        if "starts_video" not in sample:
            raise ValueError(
                f"{type(model).__name__} needs whole videos in order, but the loader splits them: "
                "use build_eval_loader(..., whole_videos=True)"
            )
        if sample["starts_video"]:
            model.reset()
        outputs += model([sample])
    return outputs


def write_predictions(
    path: str | os.PathLike[str], split: SplitData, predictions: list[FramePrediction]
) -> None:
    """Write a COCO results list, one detection per line; compressed if ``path`` ends in .gz.

    Every entry has ``image_id, category_id (1-based), bbox [x, y, w, h] in pixels, score`` and
    ``file_name`` relative to the split's image root. Frames without a detection have no entry.
    """
    root = split.image_root.resolve()
    names = {r["image_id"]: os.path.relpath(r["file_name"], root) for r in split.records}

    def write(file: BinaryIO) -> None:
        with _packed(file) if _is_packed(path) else nullcontext(file) as text:
            separator = "[\n"
            for prediction in predictions:
                for entry in coco_results(prediction):
                    entry["file_name"] = names[prediction.image_id]
                    line = separator + json.dumps(entry, separators=(",", ":"))
                    text.write(line.encode("utf-8"))
                    separator = ",\n"
            text.write(b"[]\n" if separator == "[\n" else b"\n]\n")

    write_atomically(path, write)


def read_predictions(path: str | os.PathLike[str], split: SplitData) -> list[FramePrediction]:
    """Read a file of :func:`write_predictions`, or any COCO results list of boxes.

    Frames of ``split`` without an entry have no detection.

    Raises:
        ValueError: the file is not a COCO results list, a number in it is not finite or has the
            wrong type, or it names frames that the split lacks.
    """
    return predictions_of(read_entries(path), path, split)


def read_entries(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; unpacked if it ends in .gz.

    Raises:
        ValueError: the file is damaged or not JSON. OSError: it cannot be read.
    """
    try:
        with gzip.open(path) if _is_packed(path) else open(path, "rb") as file:
            return json.load(file)
    except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a COCO results list of boxes: {error}") from error


def predictions_of(
    entries: Any, path: str | os.PathLike[str], split: SplitData
) -> list[FramePrediction]:
    """Entries of a COCO results list -> one prediction per frame; see :func:`read_predictions`."""
    entries_by_frame: dict[int, list[dict[str, Any]]] = {r["image_id"]: [] for r in split.records}
    try:
        for number, entry in enumerate(entries):
            _check_entry(number, entry)
            entries_by_frame[entry["image_id"]].append(entry)
        return [_from_coco(image_id, entries_by_frame[image_id]) for image_id in entries_by_frame]
    except KeyError as error:
        raise ValueError(
            f"{path}: {error} is neither a key of every detection nor a frame of {split.json_path};"
            " give the predictions of this split as a COCO results list of boxes."
        ) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is not a COCO results list of boxes: {error}") from error


def coco_results(prediction: FramePrediction) -> list[dict[str, Any]]:
    """The detections of a frame as COCO results (xywh boxes in pixels, 1-based categories)."""
    corners = prediction.boxes_xyxy_px
    boxes_xywh_px = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return [
        {"image_id": prediction.image_id, "category_id": c + 1, "bbox": box, "score": score}
        for box, score, c in zip(
            boxes_xywh_px.round(BOX_DECIMALS).tolist(),
            prediction.scores.tolist(),
            prediction.classes.tolist(),
            strict=True,
        )
    ]


def _check_entry(number: int, entry: dict[str, Any]) -> None:
    """Refuse values that would be truncated, rounded or overflow in arrays.

    Raises:
        ValueError, TypeError, KeyError: names the entry, the key and the value.
    """
    for key in ("image_id", "category_id"):
        if type(entry[key]) is not int:
            raise ValueError(f"entry {number} has {key} {entry[key]!r:.40}, not an integer")
    if not 1 <= entry["category_id"] <= MOST_CLASSES:
        raise ValueError(
            f"entry {number} has category_id {entry['category_id']!r:.40}; classes count from 1"
        )
    numbers = [*entry["bbox"], entry["score"]]
    if len(numbers) != 5 or not all(type(n) in (int, float) and abs(n) < LARGEST for n in numbers):
        raise ValueError(
            f"entry {number} has bbox {entry['bbox']!r:.80} and score {entry['score']!r:.40}; "
            "a bbox needs four finite numbers, a score one"
        )


def _from_coco(image_id: int, entries: list[dict[str, Any]]) -> FramePrediction:
    if not entries:
        return FramePrediction.empty(image_id)
    boxes = np.array([entry["bbox"] for entry in entries], dtype=float).reshape(len(entries), 4)
    boxes[:, 2:] += boxes[:, :2]
    return FramePrediction(
        image_id=image_id,
        boxes_xyxy_px=boxes.round(BOX_DECIMALS),
        scores=np.array([entry["score"] for entry in entries], dtype=float).round(SCORE_DECIMALS),
        classes=np.array([entry["category_id"] - 1 for entry in entries], dtype=np.int64),
    )


def _is_packed(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).endswith(".gz")


def _packed(file: BinaryIO) -> gzip.GzipFile:
    """A gzip stream without time and name: equal predictions give equal files."""
    return gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0)
