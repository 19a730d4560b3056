"""Label Studio's JSON export of image and video tasks (not JSON-MIN).

Boxes are in percent of the frame. Frames of a video count from 1; a keyframe with ``enabled`` false
ends the lesion's appearance there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from v2idetr.prepare.labels.label_set import (
    LabelledBox,
    LabelledFrame,
    LabelSet,
    frame_number_of,
    number_of,
)
from v2idetr.prepare.labels.media_names import name_in_file
from v2idetr.prepare.labels.shapes import (
    box_of_brush,
    box_of_points,
    box_of_rotated,
    box_of_rotated_ellipse,
)
from v2idetr.prepare.labels.tracks import Keyframe, boxes_of_track

CLASS_KEYS = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "keypointlabels")
CLASS_KEYS += ("videolabels", "labels")
SHAPES = ("rectangle", "polygon", "ellipse", "brush", "keypoint", "vector", "videorectangle")


def read_label_studio(
    tasks: Sequence[Any], source: str, hints: tuple[str, ...], found: LabelSet
) -> None:
    """Add the frames of one file; arguments as those of `read_cvat`, the file's list instead."""
    for place, task in enumerate(tasks):
        where = f"{source}: task {task.get('id', place) if isinstance(task, dict) else place}"
        try:
            _read_task(task, where, source, hints, found)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            reason = f"{where}: {type(error).__name__}: {error}"
            found.problems.add("task that is not Label Studio's", reason)
        except ValueError as error:
            found.problems.add("shape that cannot be read", str(error))


def _read_task(
    task: Mapping[str, Any], where: str, source: str, hints: tuple[str, ...], found: LabelSet
) -> None:
    given = task.get("annotations", task.get("completions")) or []
    done = [one for one in given if not one.get("was_cancelled")]
    if not done:
        kind = "task without an annotation is not labelled"
        if task.get("predictions"):
            kind = "task with predictions alone, which are no labels, is not labelled"
        found.notes.add(kind, where)
        return
    if len(done) > 1:
        found.notes.add("task with several annotations: the last one is used", where)
    results = done[-1].get("result") or []
    name = name_in_file(_media(task["data"], where))
    regions = [
        r for r in results if str(r.get("type", "")).lower().removesuffix("labels") in SHAPES
    ]
    labelled = [r for r in results if r.get("type") == "labels" and _is_region(r["value"])]
    named = {r["id"] for r in labelled if "id" in r}  # each stands there without its names, too
    regions = [r for r in regions if r.get("id") not in named] + labelled
    of_video = [r for r in regions if "sequence" in r["value"]]
    if of_video or _counts_frames(results):
        found.frames += _video(of_video, results, name, where, source, hints, found)
        return
    sizes = {(r["original_width"], r["original_height"]) for r in regions}
    if len(sizes) > 1:
        raise ValueError(f"{where}: its regions are for images of different sizes")
    size = next(iter(sizes), None)
    boxes = [_region(region, where, found) for region in regions]
    found.frames.append(LabelledFrame(source, name=name, size=size, boxes=boxes, hints=hints))


def _media(data: Mapping[str, Any], where: str) -> str:
    """Path or address of the task's image or video."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    for key in ("image", "video", "img", "url"):
        if texts.get(key):
            return texts[key]
    files = [text for text in texts.values() if "/" in text or "." in text]
    if len(files) != 1:
        raise ValueError(f"{where}: which of its data ({', '.join(data)}) is the image or video?")
    return files[0]


def _is_region(value: Mapping[str, Any]) -> bool:
    return any(key in value for key in ("width", "points", "rle", "radiusX", "sequence"))


def _counts_frames(results: Sequence[Mapping[str, Any]]) -> bool:
    return any("framesCount" in r.get("value", {}) for r in results)


def _names(value: Mapping[str, Any]) -> Sequence[str]:
    """Names of a region's classes."""
    return next((value[key] for key in CLASS_KEYS if value.get(key)), ())


def _class_of(region: Mapping[str, Any], where: str, found: LabelSet) -> str:
    value = region["value"]
    names = _names(value)
    if not names:
        raise ValueError(f"{where}: region {region.get('id')} has no label")
    if len(names) > 1:
        found.notes.add("region with several labels: the first one is used", where)
    found.add_class(names[0])
    return names[0]


def _region(region: Mapping[str, Any], where: str, found: LabelSet) -> LabelledBox:
    value, size = region["value"], (region["original_width"], region["original_height"])
    class_name = _class_of(region, where, found)
    if "rle" in value:
        found.notes.add("brush: the box around it is used", where)
        try:
            return LabelledBox(class_name, box_of_brush(value["rle"], size), None, "brush")
        except ValueError as error:
            raise ValueError(f"{where}: brush {region.get('id')}: {error}") from None
    scale_x, scale_y = size[0] / 100, size[1] / 100

    def px(key: str, scale: float) -> float:
        return number_of(value[key], f"{where}: {key} of region {region.get('id')}") * scale

    if "points" in value:
        found.notes.add("polygon: the box around it is used", where)
        points = [(number_of(x, where) * scale_x, number_of(y, where) * scale_y)
                  for x, y in value["points"]]  # fmt: skip
        return LabelledBox(class_name, box_of_points(points), None, "polygon")
    if "radiusX" in value:
        found.notes.add("ellipse: the box around it is used", where)
        radii = px("radiusX", scale_x), px("radiusY", scale_y)
        centre = px("x", scale_x), px("y", scale_y)
        degrees = _degrees(value, where)
        return LabelledBox(class_name, box_of_rotated_ellipse(centre, radii, degrees))
    if "height" not in value:  # a key point has a width
        return LabelledBox(class_name, None, None, "key point")
    xywh = [px("x", scale_x), px("y", scale_y), px("width", scale_x), px("height", scale_y)]
    degrees = _degrees(value, where)
    if degrees:
        found.notes.add("rotated box: the box around it is used", where)
        xywh = box_of_rotated(xywh, degrees, (xywh[0], xywh[1]))
    return LabelledBox(class_name, xywh)


def _degrees(value: Mapping[str, Any], where: str) -> float:
    """Rotation: of a box about its top left corner, of an ellipse about its centre."""
    return number_of(value.get("rotation") or 0, f"{where}: rotation")


def _video(
    regions: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    name: str,
    where: str,
    source: str,
    hints: tuple[str, ...],
    found: LabelSet,
) -> list[LabelledFrame]:
    counts = [r["value"]["framesCount"] for r in results if r.get("value", {}).get("framesCount")]
    total = frame_number_of(max(counts), f"{where}: framesCount") if counts else None
    boxes: dict[int, list[LabelledBox]] = {frame: [] for frame in range(total or 0)}
    for place, region in enumerate(regions):
        class_name = _class_of(region, where, found)
        keyframes: dict[int, Keyframe] = {}
        for entry in region["value"]["sequence"]:
            frame = frame_number_of(entry["frame"], f"{where}: frame of its sequence") - 1
            xywh = [number_of(entry[key], where) / 100 for key in ("x", "y", "width", "height")]
            if number_of(entry.get("rotation") or 0, where):
                found.problems.add(
                    "rotated box in a video, whose sides Label Studio gives in percent of the "
                    "frame, so that the box around it depends on the frame's size: straighten it",
                    f"{where}, frame {frame + 1}",
                )
            keyframes[frame] = Keyframe(frame, xywh, goes_on=bool(entry.get("enabled", True)))
        if not keyframes:
            continue
        ordered = [keyframes[frame] for frame in sorted(keyframes)]
        if ordered[0].frame < 0:
            raise ValueError(f"{where}: frame 0, but Label Studio counts frames from 1")
        known, held = boxes_of_track(ordered, last=total - 1 if total else None)
        if held:
            kind = "track without an end: its last box is held, as in Label Studio"
            found.notes.add(kind, where)
        for frame, xywh in known.items():
            boxes.setdefault(frame, []).append(LabelledBox(class_name, xywh, place))
    return [
        LabelledFrame(
            source,
            video=name,
            number=frame,
            boxes=boxes[frame],
            relative=True,
            hints=hints,
            frames_counted=total,
        )
        for frame in sorted(boxes)
    ]
