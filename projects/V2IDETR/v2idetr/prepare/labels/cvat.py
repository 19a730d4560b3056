"""CVAT's "CVAT for video 1.1" and "CVAT for images 1.1" (XML).

A video file lists tracks, with boxes on keyframes or on every frame; ``outside="1"`` is where the
lesion is not seen. The video is what ``<source>`` says, else the task's name or the file's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

from v2idetr.prepare.labels.label_set import (
    LabelledBox,
    LabelledFrame,
    LabelSet,
    frame_number_of,
    number_of,
    whole_number_of,
)
from v2idetr.prepare.labels.shapes import (
    box_of_corners,
    box_of_points,
    box_of_rotated,
    box_of_rotated_ellipse,
)
from v2idetr.prepare.labels.tracks import Keyframe, boxes_of_track

NO_BOX = ("points", "polyline", "skeleton", "cuboid")
SHAPES = ("box", "polygon", "ellipse", "mask", *NO_BOX)


@dataclass(frozen=True)
class Task:
    """What ``<meta>`` says about a task: names of the video, frame size, labelled frames."""

    names: tuple[str, ...]
    size: tuple[int, int] | None
    start: int
    stop: int | None
    step: int


def read_cvat(root: Element, source: str, hints: tuple[str, ...], found: LabelSet) -> None:
    """Add the frames of one file.

    Args:
        root: element ``<annotations>``.
        source: the file's name, for messages.
        hints: names of the file and its folders.
        found: receives frames, classes, notes and problems.
    """
    for label in root.iterfind("meta//label"):
        found.add_class((label.findtext("name") or "").strip())
    tasks = _tasks(root, source, found)
    for image in root.iterfind("image"):
        with_task = tasks.get(image.get("task_id", ""), tasks[""])
        found.frames.append(_image(image, with_task, source, hints, found))
    tracks = root.findall("track")
    if not tracks and (root.find("image") is not None or root.findtext("meta//mode") is None):
        return
    for key, task in tasks.items():
        if key or len(tasks) == 1:
            own = [t for t in tracks if not key or t.get("task_id", "") == key]
            found.frames += _video(own, task, source, hints, found)
    lost = [t.get("task_id") for t in tracks if len(tasks) > 1 and t.get("task_id") not in tasks]
    for task_id in lost:
        found.problems.add("track of a task that the file does not list", f"{source}: {task_id}")


def _tasks(root: Element, source: str, found: LabelSet) -> dict[str, Task]:
    """Tasks of a project by id; "" is the only task, or what all of them share."""
    tasks = {}
    for element in root.iterfind("meta/project/tasks/task"):
        tasks[element.findtext("id") or ""] = _task(element, source, found)
    meta = root.find("meta")
    meta = Element("meta") if meta is None else meta
    return {"": _task(meta, source, found), **tasks}


def _task(meta: Element, source: str, found: LabelSet) -> Task:
    def whole(tag: str) -> int | None:
        text = meta.findtext(f".//{tag}")
        if text is None or not text.strip():
            return None
        return _number(frame_number_of, text, f"<{tag}>", source, found)

    names = [meta.findtext(path) for path in (".//source", "name", "task/name", "job/name")]
    width, height = whole("original_size/width"), whole("original_size/height")
    step = re.search(r"step\s*=\s*(\d+)", meta.findtext(".//frame_filter") or "")
    return Task(
        names=tuple(name.strip() for name in names if name and name.strip()),
        size=(width, height) if width and height else None,
        start=whole("start_frame") or 0,
        stop=whole("stop_frame"),
        step=max(int(step[1]), 1) if step else 1,
    )


def _image(
    image: Element, task: Task, source: str, hints: tuple[str, ...], found: LabelSet
) -> LabelledFrame:
    name = image.get("name", "")
    where = f"{source}: image {name or image.get('id')}"
    size = [
        _number(whole_number_of, image.get(side), f"{side} of {name}", source, found)
        for side in ("width", "height")
    ]
    boxes = [
        LabelledBox(shape.get("label", ""), _box(shape, where, found), None, shape.tag)
        for shape in image
        if shape.tag in SHAPES
    ]
    # CVAT's name of a frame of a video; images that are called so have a suffix, and no size there.
    own = PurePosixPath(name).stem if task.size else name
    number = re.fullmatch(r"frame_(\d+)", own)
    return LabelledFrame(
        source,
        name=name,
        video=task.names[0] if number and task.names else "",
        number=int(number[1]) if number else None,
        size=(size[0], size[1]) if size[0] and size[1] else None,
        boxes=boxes,
        hints=(*hints, *task.names),
    )


def _video(
    tracks: list[Element], task: Task, source: str, hints: tuple[str, ...], found: LabelSet
) -> list[LabelledFrame]:
    boxes: dict[int, list[LabelledBox]] = {}
    if task.stop is not None:
        boxes = {frame: [] for frame in range(task.start, task.stop + 1, task.step)}
    for place, track in enumerate(tracks):
        name = track.get("label", "")
        where = f"{source}: track {track.get('id', place)}"
        keyframes, kind, unusable = _keyframes(track, where, source, found)
        for frame in unusable:
            boxes.setdefault(frame, []).append(LabelledBox(name, None, place, kind))
        if not keyframes:
            continue
        known, held = boxes_of_track(keyframes, last=task.stop, step=task.step)
        if held:
            found.notes.add("track without an end: its last box is held, as in CVAT", where)
        for frame, xywh in known.items():
            boxes.setdefault(frame, []).append(LabelledBox(name, xywh, place, kind))
    names = task.names[:1] or hints[-1:]
    return [
        LabelledFrame(
            source,
            video=names[0] if names else "",
            number=frame,
            size=task.size,
            boxes=boxes[frame],
            hints=(*hints, *task.names),
        )
        for frame in sorted(boxes)
    ]


def _keyframes(
    track: Element, where: str, source: str, found: LabelSet
) -> tuple[list[Keyframe], str, list[int]]:
    """Keyframes in order, the kind of their shape, and frames whose shape has no box."""
    keyframes: dict[int, Keyframe] = {}
    kind, unusable = "box", []
    for shape in track:
        if shape.tag not in SHAPES:
            continue
        kind = shape.tag
        frame = _number(frame_number_of, shape.get("frame"), f"frame of {where}", source, found)
        if frame is None:
            continue
        outside = shape.get("outside") == "1"
        xywh = _box(shape, f"{where}, frame {frame}", found)
        if xywh is None:
            if not outside:
                unusable.append(frame)
            continue
        if frame in keyframes:
            found.notes.add("frame is listed twice in a track: the last box is used", where)
        keyframes[frame] = Keyframe(frame, xywh, visible=not outside, goes_on=not outside)
    return [keyframes[frame] for frame in sorted(keyframes)], kind, unusable


def _box(shape: Element, where: str, found: LabelSet) -> list[float] | None:
    """Bounding box of a shape; None for one without, or with numbers that are none (a problem)."""

    def numbers(*keys: str) -> list[float]:
        return [number_of(shape.get(key), f"{where}: {key} of its {shape.tag}") for key in keys]

    try:
        rotation = number_of(shape.get("rotation") or 0, f"{where}: rotation of its {shape.tag}")
        if shape.tag == "box":
            xywh = box_of_corners(*numbers("xtl", "ytl", "xbr", "ybr"))
            if not rotation:
                return xywh
            found.notes.add("rotated box: the box around it is used", where)
            return box_of_rotated(xywh, rotation)
        if shape.tag in NO_BOX:
            return None
        found.notes.add(f"{shape.tag}: the box around it is used", where)
        if shape.tag == "mask":
            return numbers("left", "top", "width", "height")
        if shape.tag == "ellipse":
            cx, cy, rx, ry = numbers("cx", "cy", "rx", "ry")
            return box_of_rotated_ellipse((cx, cy), (rx, ry), rotation)
        points = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
        what = f"{where}: points of its {shape.tag}"
        return box_of_points([(number_of(x, what), number_of(y, what)) for x, y in points])
    except ValueError as error:
        found.problems.add("shape that cannot be read", str(error))
        return None


def _number(
    parse: Callable[[Any, str], int],
    text: str | None,
    what: str,
    source: str,
    found: LabelSet,
) -> int | None:
    try:
        return parse(text, f"{source}: {what}")
    except ValueError as error:
        found.problems.add("number that cannot be read", str(error))
        return None
