"""Pascal VOC: an XML file an image. Corners are taken as they are, whether they count from 0 or 1.

Also read: ``<robndbox>`` of roLabelImg, and the polygons of LabelMe's old XML files.
"""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element

from v2idetr.prepare.labels.label_set import (
    LabelledBox,
    LabelledFrame,
    LabelSet,
    number_of,
    whole_number_of,
)
from v2idetr.prepare.labels.media_names import name_in_file
from v2idetr.prepare.labels.shapes import box_of_corners, box_of_points, box_of_rotated


def read_pascal_voc(root: Element, source: str, hints: tuple[str, ...], found: LabelSet) -> None:
    """Add the frame of one file; arguments as those of `read_cvat`, element ``<annotation>``."""
    name = name_in_file(root.findtext("filename") or "")
    folder = name_in_file(root.findtext("folder") or "")  # of the labeller's machine: a hint alone
    name = name or source.rpartition(".")[0]
    hints = (folder, *hints) if folder else hints
    try:
        sides = [
            whole_number_of(root.findtext(f"size/{side}"), f"{source}: <{side}>")
            for side in ("width", "height")
            if root.findtext(f"size/{side}")
        ]
        boxes = [_box(element, source, found) for element in root.findall("object")]
    except ValueError as error:
        found.problems.add("file that cannot be read", str(error))
        return
    size = (sides[0], sides[1]) if len(sides) == 2 and all(sides) else None
    found.frames.append(LabelledFrame(source, name=name, size=size, boxes=boxes, hints=hints))


def _box(element: Element, source: str, found: LabelSet) -> LabelledBox:
    name = (element.findtext("name") or "").strip()
    where = f"{source}: object {name}"

    def numbers(parent: str, *keys: str) -> list[float]:
        return [number_of(element.findtext(f"{parent}/{k}"), f"{where}: <{k}>") for k in keys]

    if element.find("bndbox") is not None:
        return LabelledBox(name, box_of_corners(*numbers("bndbox", "xmin", "ymin", "xmax", "ymax")))
    if element.find("robndbox") is not None:
        cx, cy, w, h, angle = numbers("robndbox", "cx", "cy", "w", "h", "angle")
        found.notes.add("rotated box: the box around it is used", where)
        xywh = box_of_rotated([cx - w / 2, cy - h / 2, w, h], math.degrees(angle))
        return LabelledBox(name, xywh)
    points = [
        (number_of(p.findtext("x"), f"{where}: <x>"), number_of(p.findtext("y"), f"{where}: <y>"))
        for p in element.iterfind("polygon/pt")
    ]
    if not points:
        return LabelledBox(name, None, None, "object without <bndbox>")
    found.notes.add("polygon: the box around it is used", where)
    return LabelledBox(name, box_of_points(points), None, "polygon")
