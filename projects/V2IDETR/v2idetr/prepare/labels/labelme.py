"""LabelMe's JSON: a file an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from v2idetr.prepare.labels.label_set import (
    LabelledBox,
    LabelledFrame,
    LabelSet,
    number_of,
    whole_number_of,
)
from v2idetr.prepare.labels.media_names import name_in_file
from v2idetr.prepare.labels.shapes import box_of_points

AREAS = ("rectangle", "polygon", "mask", "rotation", "oriented_rectangle", "circle")
NO_BOX = ("point", "points", "line", "linestrip")


def read_labelme(
    content: Mapping[str, Any], source: str, hints: tuple[str, ...], found: LabelSet
) -> None:
    """Add the frame of one file; arguments as those of `read_cvat`, the file's object instead."""
    name = name_in_file(str(content.get("imagePath") or "")) or source.rpartition(".")[0]
    try:
        sides = [
            whole_number_of(content[key], f"{source}: {key}")
            for key in ("imageWidth", "imageHeight")
            if content.get(key)
        ]
        boxes = [_box(shape, source, found) for shape in content["shapes"]]
    except (KeyError, TypeError, AttributeError) as error:
        found.problems.add("file that is not LabelMe's", f"{source}: {error}")
        return
    except ValueError as error:
        found.problems.add("file that cannot be read", str(error))
        return
    size = (sides[0], sides[1]) if len(sides) == 2 else None
    found.frames.append(LabelledFrame(source, name=name, size=size, boxes=boxes, hints=hints))


def _box(shape: Mapping[str, Any], source: str, found: LabelSet) -> LabelledBox:
    name, kind = str(shape.get("label") or ""), shape.get("shape_type") or "polygon"
    where = f"{source}: {kind} {name}"
    points = [(number_of(x, where), number_of(y, where)) for x, y in shape["points"]]
    if kind in NO_BOX or not points:
        return LabelledBox(name, None, None, kind)
    if kind not in AREAS:
        raise ValueError(f"{where}: this shape is not known; known are {', '.join(AREAS + NO_BOX)}")
    if kind != "rectangle":
        found.notes.add(f"{kind}: the box around it is used", where)
    if kind == "circle":  # centre, and a point on it
        (cx, cy), (x, y) = points
        r = math.hypot(x - cx, y - cy)
        return LabelledBox(name, [cx - r, cy - r, 2 * r, 2 * r], None, kind)
    return LabelledBox(name, box_of_points(points), None, kind)
