"""COCO JSON, with or without ``videos`` (COCO-VID)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycocotools import mask as coco_mask

from v2idetr.data.ground_truth import LESION_KEYS
from v2idetr.prepare.labels.label_set import (
    LabelledBox,
    LabelledFrame,
    LabelSet,
    number_of,
    whole_number_of,
)
from v2idetr.prepare.labels.media_names import name_in_file
from v2idetr.prepare.labels.shapes import box_of_points, box_of_rotated

IDS = ("id", "image_id", "category_id", "video_id")


def read_coco(
    content: Mapping[str, Any], source: str, hints: tuple[str, ...], found: LabelSet
) -> None:
    """Add the frames of one file; arguments as those of `read_cvat`, the file's object instead."""
    names: dict[Any, str] = {}
    videos: dict[Any, str] = {}
    frames: dict[Any, LabelledFrame] = {}
    tracks: dict[str, int] = {}
    for category in _entries(content, "categories", source):
        names[category.get("id")] = str(category.get("name"))
        found.add_class(str(category.get("name")))
    for video in _entries(content, "videos", source):
        videos[video.get("id")] = name_in_file(str(video.get("name", video.get("file_name", ""))))
    for image in _entries(content, "images", source):
        where = f"{source}: image {image.get('id')}"
        try:
            frame = _frame(image, videos, where, source, hints)
        except ValueError as error:
            found.problems.add("image that cannot be read", str(error))
            continue
        if image.get("id") in frames:
            found.problems.add("image id is used twice", where)
        frames[image.get("id")] = frame
    for annotation in _entries(content, "annotations", source):
        where = f"{source}: annotation {annotation.get('id')}"
        frame, name = (
            frames.get(annotation.get("image_id")),
            names.get(annotation.get("category_id")),
        )
        if frame is None or name is None:
            what = "image_id" if frame is None else "category_id"
            value = f"{where}: {what} {annotation.get(what)}"
            found.problems.add(f"annotation whose {what} the file does not list", value)
            continue
        try:
            frame.boxes.append(_box(annotation, frame, name, where, found, tracks))
        except ValueError as error:
            found.problems.add("annotation that cannot be read", str(error))
    found.frames += frames.values()


def _entries(content: Mapping[str, Any], key: str, source: str) -> list[Mapping[str, Any]]:
    entries = content.get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{source}: {key} is not a list of objects; export the labels again")
    for place, entry in enumerate(entries):
        for name in IDS:
            if isinstance(entry.get(name), (list, dict)):
                raise ValueError(
                    f"{source}: {key}[{place}]: its {name} is {entry[name]!r}, not a number or "
                    "text; export the labels again"
                )
    return entries


def _frame(
    image: Mapping[str, Any],
    videos: Mapping[Any, str],
    where: str,
    source: str,
    hints: tuple[str, ...],
) -> LabelledFrame:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} has no file_name")
    sides = [
        whole_number_of(image[k], f"{where}: {k}") for k in ("width", "height") if image.get(k)
    ]
    number = next((image[k] for k in ("frame_index", "frame_id") if image.get(k) is not None), None)
    return LabelledFrame(
        source,
        name=name_in_file(name),
        video=videos.get(image.get("video_id"), ""),
        number=None if number is None else whole_number_of(number, f"{where}: frame_index"),
        size=(sides[0], sides[1]) if len(sides) == 2 else None,
        hints=hints,
    )


def _box(
    annotation: Mapping[str, Any],
    frame: LabelledFrame,
    name: str,
    where: str,
    found: LabelSet,
    tracks: dict[str, int],
) -> LabelledBox:
    further = annotation.get("attributes")
    further = further if isinstance(further, dict) else {}
    track = _track(annotation, further, where, tracks)
    mask, bbox = annotation.get("segmentation"), annotation.get("bbox")
    if annotation.get("iscrowd") and not isinstance(mask, dict):
        return LabelledBox(name, None, track, "crowd")  # a region, not one lesion
    if bbox:
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise ValueError(f"{where}: bbox {bbox} is not a list of four numbers")
        xywh = [number_of(value, f"{where}: bbox") for value in bbox]
        degrees = number_of(further.get("rotation") or 0, f"{where}: rotation")
        if degrees and not mask:  # CVAT writes the box before its rotation
            found.notes.add("rotated box: the box around it is used", where)
            xywh = box_of_rotated(xywh, degrees)
        if mask:
            found.notes.add("mask or polygon: its box in the file is used", where)
        return LabelledBox(name, xywh, track)
    if not mask:
        return LabelledBox(name, None, track, "annotation without bbox")
    found.notes.add("mask or polygon without bbox: the box around it is used", where)
    return LabelledBox(name, _box_of_mask(mask, frame, where), track, "mask")


def _track(
    annotation: Mapping[str, Any], attributes: Mapping[str, Any], where: str, named: dict[str, int]
) -> int | None:
    """Number of its lesion, under any of the usual keys; texts are numbered in their order."""
    given = [attributes.get("track_id"), *(annotation.get(key) for key in LESION_KEYS)]
    track = next((value for value in given if value is not None), None)
    if isinstance(track, str):
        return named.setdefault(track, len(named) + 1)
    return None if track is None else whole_number_of(track, f"{where}: its track")


def _box_of_mask(mask: Any, frame: LabelledFrame, where: str) -> list[float] | None:
    try:
        if isinstance(mask, list):
            values = [float(value) for polygon in mask for value in polygon]
            return box_of_points(list(zip(values[::2], values[1::2], strict=True)))
        if isinstance(mask["counts"], list):
            mask = coco_mask.frPyObjects(mask, *mask["size"])
        box = [float(value) for value in coco_mask.toBbox(mask)]
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{where}: its segmentation cannot be read ({error})") from None
    return box if box[2] and box[3] else None
