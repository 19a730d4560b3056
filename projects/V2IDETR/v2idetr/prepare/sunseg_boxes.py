"""SUN-SEG's boxes: from ``Detection/bbox_annotation.json``, or from the masks of ``GT/``.

The order of a box's four numbers in the JSON depends on the release: files from before
2023-01-30 have x and y swapped, without a mark. The order is therefore measured: of all known
orders, the one with the highest IoU of boxes and masks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2i_runtime.image_files import ImageFileError
from v2idetr.data.audit import Findings
from v2idetr.data.text_files import read_text
from v2idetr.prepare.annotations import Frame, Lesion, Video, evenly_spaced
from v2idetr.prepare.mask_boxes import boxes_by_mask, boxes_of_mask, read_mask
from v2idetr.prepare.sun_names import case_number

# Known orders of a box's four numbers -> x, y, w, h.
ORDERS = {
    "xywh": lambda a, b, c, d: [a, b, c, d],
    "yxwh": lambda a, b, c, d: [b, a, c, d],  # until 2023-01-30
    "yxhw": lambda a, b, c, d: [b, a, d, c],
    "xyxy": lambda a, b, c, d: [a, b, c - a, d - b],  # in an earlier documentation
}
SAMPLE = 60  # masks for the measurement of the order
# Thresholds for the mean IoU of the best order and its lead over the next; above SURE_IOU no lead
# is required (boxes on the diagonal).
MIN_IOU, MIN_LEAD, SURE_IOU = 0.5, 0.01, 0.8

Key = tuple[str, str]  # clip, frame stem


@dataclass
class Labels:
    """Boxes of one frame, and the (width, height) of the image they were made for."""

    boxes: list[list[Any]]
    size: tuple[int, int]


def add_boxes(
    videos: Sequence[Video], folder: Path, where: str, *, kind: str, order: str, notes: Findings
) -> None:
    """Add lesions to the frames of a folder's clips; remove frames without labels.

    A case of SUN has one polyp, so all boxes of a frame are of one instance, such as the parts of
    a polyp behind an instrument.

    Args:
        videos: clips of the folder.
        folder: folder with Detection/ and GT/.
        where: name of the folder in notes.
        kind: "json", with the masks as a fallback for a missing JSON, or "mask".
        order: order of the numbers in the JSON: one of ORDERS, or "auto" to measure it.
        notes: receives the notes.

    Raises:
        ValueError: the JSON has another format, or its order cannot be measured.
    """
    keys = [_key(video, frame) for video in videos for frame in video.frames]
    path = find_json(folder) if kind == "json" else None
    if path is not None:
        labels = labels_from_json(path, keys, folder / "GT", order, notes)
    else:
        if kind == "json":
            notes.add("no Detection/bbox_annotation.json: boxes from masks", where)
        labels = labels_from_masks(keys, folder / "GT", where, notes)
    for video in videos:
        video.frames = [frame for frame in video.frames if _key(video, frame) in labels]
        for frame in video.frames:
            found = labels[_key(video, frame)]
            frame.boxes_for = found.size
            case = case_number(video.name)
            frame.lesions = [Lesion(box, instance_id=case) for box in found.boxes]


def _key(video: Video, frame: Frame) -> Key:
    return video.name, Path(frame.file_name).stem


def find_json(folder: Path) -> Path | None:
    """bbox_annotation.json of a folder, or of its parent, as in the first release."""
    paths = [base / "Detection" / "bbox_annotation.json" for base in (folder, folder.parent)]
    return next(filter(Path.is_file, paths), None)


def labels_from_json(
    path: Path, keys: Sequence[Key], masks: Path, order: str, notes: Findings
) -> dict[Key, Labels]:
    """Boxes xywh of the frames ``keys``; frames missing in the file are noted.

    A frame under ``images`` without an entry under ``annotation`` is lesion-free.
    """
    listed = read_json(path, notes)
    where = f"{path.parent.parent.name}/Detection/bbox_annotation.json"
    for key in keys:
        if key not in listed:
            notes.add("frame that the JSON does not list is left out", f"{where}: {'/'.join(key)}")
    found = {key: listed[key] for key in keys if key in listed}
    to_xywh = ORDERS[measure_order(path, found, masks, notes) if order == "auto" else order]
    for labels in found.values():
        labels.boxes = [to_xywh(*box) if len(box) == 4 else box for box in labels.boxes]
    return found


def read_json(path: Path, notes: Findings) -> dict[Key, Labels]:
    """Boxes in the file's order of numbers; their key is ``annotation``, singular."""
    text = read_text(path)
    try:
        content = json.loads(text)
        images = {image["id"]: image for image in content["images"]}
        key = "annotation" if "annotation" in content else "annotations"
        found = {
            _image_key(image): Labels([], (int(image["width"]), int(image["height"])))
            for image in images.values()
        }
        for annotation in content[key]:
            image = images.get(annotation["id"])
            if image is None:
                notes.add("box of a frame that the JSON does not list", str(annotation))
                continue
            found[_image_key(image)].boxes.append(list(annotation["bbox"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is not SUN-SEG's bbox_annotation.json ({type(error).__name__}: {error}); "
            "unpack it again, or take the boxes from the masks with --boxes mask"
        ) from None
    return found


def _image_key(image: Mapping[str, Any]) -> Key:
    return image["case_name"], image["file_name"].removesuffix(".jpg")


def measure_order(path: Path, labels: Mapping[Key, Labels], masks: Path, notes: Findings) -> str:
    """The order of the four numbers with the highest IoU of boxes and masks.

    Raises ValueError if there are no masks, or no order fits.
    """
    keys = [key for key, found in labels.items() if [len(box) for box in found.boxes] == [4]]
    sample = [key for key in keys if _mask_path(masks, key).is_file()]
    scores = dict.fromkeys(ORDERS, 0.0)
    compared = 0
    for key in evenly_spaced(sample, min(SAMPLE, len(sample))):
        try:
            parts, _ = boxes_of_mask(read_mask(_mask_path(masks, key)))
        except ImageFileError:
            continue  # the other masks suffice
        if len(parts) == 1:
            compared += 1
            for order, to_xywh in ORDERS.items():
                scores[order] += _iou(to_xywh(*labels[key].boxes[0]), parts[0])
    remedy = "set it with --box-order, or take the boxes from the masks with --boxes mask"
    if not compared:
        if not keys:
            return "xywh"
        raise ValueError(
            f"{path}: whether its boxes are [x, y, w, h] or [y, x, w, h] depends on the release, "
            f"and there are no masks under {masks} to measure it: {remedy}"
        )
    (order, best), (_, second) = sorted(scores.items(), key=lambda item: -item[1])[:2]
    iou, lead = best / compared, (best - second) / compared
    if iou < MIN_IOU or (iou < SURE_IOU and lead < MIN_LEAD):
        found = ", ".join(f"{name} {score / compared:.2f}" for name, score in scores.items())
        raise ValueError(
            f"{path}: the order of the numbers of its boxes is not clear from {compared} masks "
            f"(mean IoU: {found}): {remedy}"
        )
    notes.add(
        f"order of the boxes is {order}{'' if order == 'xywh' else ': corrected'}",
        f"{path.parent.parent.name}: mean IoU with {compared} masks {iou:.2f}, "
        f"of the next order {iou - lead:.2f}",
    )
    return order


def _iou(a: Sequence[Any], b: Sequence[Any]) -> float:
    """IoU of two boxes xywh; 0 if ``a`` has no area."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / max(a[2] * a[3] + b[2] * b[3] - common, 1e-9) if a[2] > 0 < a[3] else 0.0


def _mask_path(masks: Path, key: Key) -> Path:
    return masks / key[0] / f"{key[1]}.png"


def labels_from_masks(
    keys: Sequence[Key], masks: Path, where: str, notes: Findings
) -> dict[Key, Labels]:
    """One box per connected part of a frame's mask; frames without a usable mask are noted."""
    files = {f"{where}/{'/'.join(key)}": _mask_path(masks, key) for key in keys}
    found = boxes_by_mask(files, f"masks of {where}", notes)
    return {key: Labels(*boxes) for key, boxes in zip(keys, found, strict=True) if boxes}
