"""Recall of a detector by lesion size, blur, glare and motion.

Groups are thirds of the lesions of a split, by their own quantiles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torchvision.ops import box_iou

from v2idetr.data.coco_vid import SplitData
from v2idetr.data.text_files import read_text
from v2idetr.evaluation.frames import LabelledFrame
from v2idetr.evaluation.lesion_metrics import get_rule

BURNT_OUT = 250  # of 255, in all channels
# Names of the thirds of a measure, by ascending value.
THIRDS = {
    "size": ("smallest third", "middle third", "largest third"),
    "sharpness": ("blurriest third", "middle third", "sharpest third"),
    "glare": ("no or least glare", "middle third", "most glare"),
    "motion": ("slowest third", "middle third", "fastest third"),
}
CLEAR = "clear"  # a frame that the synthetic generator has not degraded


@dataclass(frozen=True)
class Lesion:
    """A labelled lesion on a frame, with measures of its difficulty.

    Attributes:
        video: name of the video.
        image_id: id of the frame.
        size: square root of its area over that of the image.
        sharpness: variance of the Laplacian in and around its box, over the variance of the grey
            values there; low if blurred.
        glare: share of saturated pixels in its box.
        motion: 1 - IoU with the lesion's box on the nearest frame of the scene; None without one.
        event: degradation of the frame by the synthetic generator; "" if unknown.
    """

    video: str
    image_id: int
    size: float
    sharpness: float
    glare: float
    motion: float | None
    event: str = ""


def describe_lesions(
    split: SplitData,
    read: Callable[[Mapping[str, Any]], UInt8[np.ndarray, "H W 3"]],
    events: Mapping[str, str] | None = None,
) -> list[Lesion]:
    """All lesions of a split, frame by frame, in the order of its records.

    Args:
        split: split whose frames are on disk.
        read: function that returns the pixels of a record.
        events: degradation of each frame ("" for none), by the end of its path.

    Raises:
        ValueError: a frame cannot be read, or is not in `events`.
    """
    lesions = []
    for record, neighbour in _with_neighbour(split.records):
        event = "" if events is None else _event_of(record, events)
        pixels = read(record)
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        for box in _boxes_xyxy(record):
            lesions.append(
                Lesion(
                    video=str(split.videos[record["video_id"]]["name"]),
                    image_id=record["image_id"],
                    size=_size(box, record),
                    sharpness=_sharpness(grey, box),
                    glare=_glare(pixels, box),
                    motion=None if neighbour is None else _motion(box, neighbour),
                    event=event,
                )
            )
    return lesions


def found_lesions(
    frames: Sequence[LabelledFrame], rule: str, threshold: float
) -> Bool[np.ndarray, " lesions"]:
    """Mask of the lesions found at a threshold, in the order of `describe_lesions`.

    Each lesion is judged as if it were the only one of its frame.
    """
    judge = get_rule(rule)
    found = []
    for frame in frames:
        for index in range(len(frame.lesions_xyxy_px)):
            alone = replace(
                frame,
                lesions_xyxy_px=frame.lesions_xyxy_px[index : index + 1],
                lesion_classes=frame.lesion_classes[index : index + 1],
            )
            found.append(bool((judge(alone)[0] >= threshold).any()))
    return np.array(found, dtype=bool)


def group_lesions(lesions: Sequence[Lesion]) -> dict[str, dict[str, Bool[np.ndarray, " lesions"]]]:
    """Masks of lesions by group: "all", the thirds of each measure, events, videos.

    A lesion whose measure is unknown is in none of its thirds. Empty groups are left out (most
    lesions may have no glare at all), and so are measures that are equal for all lesions.
    """
    groups = {"all": {"all lesions": np.ones(len(lesions), dtype=bool)}}
    for measure, words in THIRDS.items():
        values = np.array(
            [np.nan if (v := getattr(lesion, measure)) is None else v for lesion in lesions]
        )
        if np.isnan(values).all() or np.nanmin(values) == np.nanmax(values):
            continue
        low, high = np.nanquantile(values, [1 / 3, 2 / 3])
        third = [values <= low, (values > low) & (values <= high), values > high]
        groups[measure] = {
            word: members for word, members in zip(words, third, strict=True) if members.any()
        }
    for key in ("event", "video"):
        names = [getattr(lesion, key) for lesion in lesions]
        if any(names):
            groups[key] = {
                name: np.array([n == name for n in names]) for name in sorted(set(names))
            }
    return groups


def read_events(path: Path) -> dict[str, str]:
    """Event by file name, from the synthetic generator's list of frames; "clear" for none.

    Raises:
        ValueError: it is no such list. OSError: it cannot be read.
    """
    try:
        frames = json.loads(read_text(path))
        return {str(frame["file"]): str(frame["event"]) or CLEAR for frame in frames}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is no list of frames of datasets/make_synthetic.py ({error!r}); give its "
            "generator_frames.json."
        ) from error


def _with_neighbour(
    records: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Each record with a lesion, and the nearest other one of its scene or None."""
    labelled = [record for record in records if record["annotations"]]

    def scene(record: Mapping[str, Any]) -> tuple[int, int]:
        return record["video_id"], record["scene_id"]

    for index, record in enumerate(labelled):
        beside = labelled[max(0, index - 1) : index] + labelled[index + 1 : index + 2]
        near = [other for other in beside if scene(other) == scene(record)]
        yield (
            record,
            min(
                near,
                key=lambda other: abs(other["frame_index"] - record["frame_index"]),
                default=None,
            ),
        )


def _boxes_xyxy(record: Mapping[str, Any]) -> Float[np.ndarray, "m 4"]:
    boxes = np.array([a["bbox"] for a in record["annotations"]], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _event_of(record: Mapping[str, Any], events: Mapping[str, str]) -> str:
    parts = Path(record["file_name"]).parts
    for start in range(len(parts)):
        if (event := events.get("/".join(parts[start:]))) is not None:
            return event
    raise ValueError(f"{record['file_name']}: is not in the list of the generator's frames.")


def _size(box: Float[np.ndarray, "4"], record: Mapping[str, Any]) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return float(np.sqrt(area / (record["width"] * record["height"])))


def _cut(pixels: np.ndarray, box: Float[np.ndarray, "4"], margin: float) -> np.ndarray:
    """Non-empty crop of an image to a box, enlarged by `margin` times its sides."""
    h, w = pixels.shape[:2]
    dx, dy = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    x0, y0 = int(np.clip(box[0] - dx, 0, w - 1)), int(np.clip(box[1] - dy, 0, h - 1))
    x1 = int(np.clip(np.ceil(box[2] + dx), x0 + 1, w))
    y1 = int(np.clip(np.ceil(box[3] + dy), y0 + 1, h))
    return pixels[y0:y1, x0:x1]


def _sharpness(grey: UInt8[np.ndarray, "H W"], box: Float[np.ndarray, "4"]) -> float:
    around = _cut(grey, box, margin=0.5)
    return float(cv2.Laplacian(around, cv2.CV_64F).var() / (around.var() + 1.0))


def _glare(pixels: UInt8[np.ndarray, "H W 3"], box: Float[np.ndarray, "4"]) -> float:
    return float((_cut(pixels, box, margin=0.0) >= BURNT_OUT).all(-1).mean())


def _motion(box: Float[np.ndarray, "4"], neighbour: Mapping[str, Any]) -> float:
    """1 - IoU with the most overlapping box on the neighbour."""
    theirs = torch.from_numpy(_boxes_xyxy(neighbour))
    return 1 - float(box_iou(torch.from_numpy(box[None]), theirs).max())
