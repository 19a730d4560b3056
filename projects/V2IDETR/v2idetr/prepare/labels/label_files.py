"""Files below a folder -> their format, and the frames that they label.

FORMATS        the formats, by name
read_labels    folder or file -> LabelSet
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from v2i_runtime.image_files import natural_key
from v2i_runtime.progress import progress_bar
from v2idetr.data.text_files import read_text
from v2idetr.prepare.labels.coco import read_coco
from v2idetr.prepare.labels.cvat import read_cvat
from v2idetr.prepare.labels.label_set import LabelSet
from v2idetr.prepare.labels.label_studio import read_label_studio
from v2idetr.prepare.labels.labelme import read_labelme
from v2idetr.prepare.labels.pascal_voc import read_pascal_voc
from v2idetr.prepare.labels.yolo import class_names_of, looks_like_yolo, read_yolo
from v2idetr.prepare.video_sources import folders_below
from v2idetr.wording import counted

FORMATS = ("cvat", "label-studio", "coco", "yolo", "pascal-voc", "labelme")
SUFFIXES = (".xml", ".json", ".txt")
LISTS = (".txt", ".names", ".labels", ".yaml", ".yml")  # that may hold the names of YOLO's classes
READERS = {
    "cvat": read_cvat,
    "label-studio": read_label_studio,
    "coco": read_coco,
    "pascal-voc": read_pascal_voc,
    "labelme": read_labelme,
}


def read_labels(
    labels: Path,
    *,
    leave_out: Path,
    only: str | None = None,
    yolo_names: Sequence[str] | None = None,
) -> tuple[str, LabelSet]:
    """All label files, which have one format, and its name.

    Args:
        labels: a label file, or a folder with label files at any depth.
        leave_out: folder to skip, such as an output folder inside `labels`.
        only: the format to read, if there are several; files of others are noted.
        yolo_names: names of YOLO's classes by number, for a folder without a list of them.

    Raises:
        ValueError: no label files, several formats, or files that cannot be read; all at once.
    """
    files, lists = _files(labels, leave_out)
    found: defaultdict[str, LabelSet] = defaultdict(LabelSet)
    rest = LabelSet()
    names = None if yolo_names is None else dict(enumerate(yolo_names))
    if names is None and (only or "yolo") == "yolo" and any(map(_is_yolo, files)):
        names = class_names_of(lists, _lists_beside(labels), rest.notes)
    root = labels if labels.is_dir() else labels.parent
    for path in progress_bar(files, desc="reading labels", unit="file"):
        source = path.relative_to(root).as_posix()
        hints = path.relative_to(root).with_suffix("").parts
        try:
            kind, content = _content(path)
            if kind is None:
                rest.notes.add("file is no label file", source)
            elif only is not None and kind != only:
                rest.notes.add(f"file of the format {kind} is not read (--format)", source)
            elif kind == "yolo":
                read_yolo(path, source, hints, names, found[kind])
            else:
                READERS[kind](content, source, hints, found[kind])
        except ValueError as error:
            rest.problems.add("label file that cannot be read", str(error))
    problems = rest.problems
    for label_set in found.values():
        problems.extend(label_set.problems)
    problems.raise_if_any(str(labels))
    if len(found) > 1:
        counts = ", ".join(f"{name} ({len(s.frames)} frames)" for name, s in found.items())
        raise ValueError(
            f"{labels}: holds labels of several formats: {counts}. Choose one with --format, or "
            "import them one after the other"
        )
    if not found:
        raise ValueError(_nothing(labels, files, rest, only))
    ((kind, label_set),) = found.items()
    label_set.notes.extend(rest.notes)
    if kind == "yolo":
        for name in (names or {}).values():
            label_set.add_class(name)
    for box in (box for frame in label_set.frames for box in frame.boxes):
        label_set.add_class(box.class_name)
    return kind, label_set


def _files(labels: Path, leave_out: Path) -> tuple[list[Path], list[Path]]:
    """Files that may hold labels, and those that may hold names of classes."""
    if labels.is_file():
        return [labels], []
    if not labels.is_dir():
        raise ValueError(f"{labels}: no such file or folder (--labels)")
    below = [
        folder / name
        for folder, names, _ in folders_below(labels, leave_out.resolve())
        for name in names
    ]
    files = [path for path in below if path.suffix.lower() in SUFFIXES]
    lists = [path for path in below if path.suffix.lower() in LISTS]
    return sorted(files, key=lambda path: natural_key(str(path))), sorted(lists)


def _lists_beside(labels: Path) -> list[Path]:
    """Files in the parent folder that may hold names of classes, as data.yaml of labels/ does."""
    if labels.is_file():
        return []
    beside = labels.resolve().parent.iterdir()
    return sorted(p for p in beside if p.suffix.lower() in LISTS and p.is_file())


def _is_yolo(path: Path) -> bool:
    return path.suffix.lower() == ".txt" and looks_like_yolo(path)


def _content(path: Path) -> tuple[str | None, Any]:
    """Format of a file and its parsed content; None for a file without labels.

    Raises:
        ValueError: a file that is damaged, or holds labels in a form that is not read.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return ("yolo" if looks_like_yolo(path) else None), None
    if suffix == ".xml":
        root = _xml(path)
        return {"annotations": "cvat", "annotation": "pascal-voc"}.get(root.tag), root
    if suffix == ".zip":
        raise ValueError(f"{path}: is packed; unpack it first")
    if suffix != ".json":
        raise ValueError(f"{path}: is neither {', '.join(SUFFIXES[:-1])} nor {SUFFIXES[-1]}")
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path}: is empty; export the labels again")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); it may be cut off") from None
    return _json_format(content, path), content if not _is_task(content) else [content]


def _json_format(content: Any, path: Path) -> str | None:
    if isinstance(content, dict):
        if "shapes" in content and isinstance(content["shapes"], list):
            return "labelme"
        if "images" in content and ("annotations" in content or "categories" in content):
            return "coco"
        return "label-studio" if _is_task(content) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return None
    first = content[0]
    if _is_task(first):
        return "label-studio"
    if {"image_id", "bbox", "score"} <= first.keys():
        raise ValueError(f"{path}: holds detections with scores, which are no labels")
    if "annotation_id" in first or "annotator" in first:
        raise ValueError(f"{path}: is Label Studio's JSON-MIN; export as JSON")
    return None


def _is_task(content: Any) -> bool:
    keys = content.keys() if isinstance(content, dict) else set()
    return "data" in keys and bool({"annotations", "completions", "predictions"} & keys)


def _xml(path: Path) -> Element:
    text = read_text(path)
    try:
        return defusedxml.ElementTree.fromstring(text)
    except ParseError as error:
        raise ValueError(f"{path}: is not XML ({error}); it may be cut off") from None
    except DefusedXmlException as error:
        raise ValueError(
            f"{path}: declares entities, which no label file needs and which can fill the memory "
            f"({type(error).__name__}); export the labels again"
        ) from None


def _nothing(labels: Path, files: Sequence[Path], rest: LabelSet, only: str | None) -> str:
    what = f"no labels of the format {only}" if only else "no label files"
    packed = list(labels.glob("*.zip")) if labels.is_dir() else []
    hint = f"unpack {packed[0].name} first" if packed else "say where they are by --labels"
    there = (
        "; ".join(rest.notes.lines()) or f"{counted(len(files), 'file')} of {', '.join(SUFFIXES)}"
    )
    return f"{labels}: {what} ({', '.join(FORMATS)}); {there}: {hint}"
