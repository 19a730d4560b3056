"""YOLO: a text file an image, a line a lesion; names of the classes in data.yaml and the like.

class cx cy w h                     box, in shares of the image
class cx cy w h track               the same with the number of its track
class x1 y1 x2 y2 x3 y3 ...         polygon, or four corners of a rotated box
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from v2idetr.data.audit import Findings
from v2idetr.data.text_files import read_text
from v2idetr.prepare.labels.label_set import (
    LabelledBox,
    LabelledFrame,
    LabelSet,
    number_of,
    whole_number_of,
)
from v2idetr.prepare.labels.shapes import box_of_points

NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "names.txt")
NO_LABELS = (*NAME_LISTS, "train.txt", "val.txt", "valid.txt", "test.txt", "notes.txt")


def looks_like_yolo(path: Path) -> bool:
    """Whether a text file holds labels: nothing, or lines that begin with a class and a number."""
    if path.name.lower() in NO_LABELS:
        return False
    with path.open("rb") as file:
        start = file.read(200).decode("utf-8-sig", "replace").lstrip()
    return not start or re.match(r"-?\d+(\.0+)?\s+-?[\d.]", start) is not None


def class_names_of(
    files: Sequence[Path], beside: Sequence[Path], notes: Findings
) -> dict[int, str] | None:
    """Class names by number: of the one list or data.yaml among these files; None without any.

    Args:
        files: those below the folder of the labels.
        beside: those beside it, which may be of something else.
        notes: receives the files beside it that cannot be read.

    Raises:
        ValueError: a file with other names than another, one below that cannot be read, or one
            beside where no other has names.
    """
    lists: dict[Path, dict[int, str]] = {}
    unreadable: list[str] = []
    for path in sorted((*files, *beside)):
        try:
            names = _names_of(path)
        except ValueError as error:
            if path in files:
                raise
            unreadable.append(str(error))
            continue
        if names is not None:
            lists[path] = names
    if unreadable and not lists:
        raise ValueError(
            f"no names of classes: {'; '.join(unreadable)}. Mend the file, or give the names in "
            "order by --yolo-names"
        )
    for error in unreadable:
        notes.add("file beside the labels that gives no names of classes", error)
    for path, names in lists.items():
        first, others = next(iter(lists.items()))
        if names != others:
            raise ValueError(
                f"{first} has the classes {_listed(others)}, {path} has {_listed(names)}: "
                "import them one after the other, or remove the wrong one"
            )
    return next(iter(lists.values()), None)


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in names.items())


def _names_of(path: Path) -> dict[int, str] | None:
    if path.name.lower() in NAME_LISTS:
        lines = [line.strip() for line in read_text(path).splitlines()]
        return dict(enumerate(line for line in lines if line))
    if path.suffix.lower() not in (".yaml", ".yml"):
        return None
    try:
        content: Any = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML ({error})") from None
    names = content.get("names") if isinstance(content, dict) else None
    if names is None:
        return None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(type(number) is int for number in names):
        raise ValueError(f"{path}: names is neither a list nor a mapping from numbers")
    return {number: str(names[number]) for number in sorted(names)}


def read_yolo(
    path: Path,
    source: str,
    hints: tuple[str, ...],
    class_names: Mapping[int, str] | None,
    found: LabelSet,
) -> None:
    """Add the frame of one text file.

    Args:
        path: text file, whose name is that of the image.
        source, hints, found: as those of `read_cvat`.
        class_names: names by number; None if there is no list of them.
    """
    frame = LabelledFrame(source, name=source.removesuffix(path.suffix), relative=True, hints=hints)
    for place, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {place}"
        try:
            frame.boxes.append(_box(line.split(), where, class_names, found))
        except ValueError as error:
            found.problems.add("line that is no YOLO label", str(error))
    if not frame.boxes:
        found.notes.add("label file is empty", source)
    found.frames.append(frame)


def _box(
    values: Sequence[str], where: str, class_names: Mapping[int, str] | None, found: LabelSet
) -> LabelledBox:
    number = whole_number_of(values[0], f"{where}: class")
    if class_names is None:
        raise ValueError(
            f"{where}: class {number} has no name: there is no data.yaml or classes.txt; give the "
            "names in order by --yolo-names"
        )
    if number not in class_names:
        raise ValueError(f"{where}: class {number}, but the names are {_listed(class_names)}")
    name = class_names[number]
    shares = [number_of(value, f"{where}: {value!r}") for value in values[1:]]
    if any(abs(share) > 2 for share in shares[:4]):
        raise ValueError(f"{where}: {' '.join(values)} is in px, not in shares of the image")
    if len(shares) == 5 and shares[4] != int(shares[4]):
        raise ValueError(
            f"{where}: has a score, as predictions do; labels are class, centre and size"
        )
    if len(shares) in (4, 5):
        cx, cy, w, h = shares[:4]
        return LabelledBox(
            name, [cx - w / 2, cy - h / 2, w, h], int(shares[4]) if len(shares) == 5 else None
        )
    if len(shares) < 6 or len(shares) % 2:
        raise ValueError(f"{where}: has {len(values)} numbers, not 5 of a box or 7 of a polygon")
    if any(abs(share) > 2 for share in shares) or (len(shares) == 6 and shares[5].is_integer()):
        raise ValueError(
            f"{where}: {' '.join(values)} is no polygon; is it a box with a score and a track, or "
            "with key points? Labels are class, centre and size"
        )
    found.notes.add("polygon or rotated box: the box around it is used", where)
    points = list(zip(shares[::2], shares[1::2], strict=True))
    return LabelledBox(name, box_of_points(points), None, "polygon")
