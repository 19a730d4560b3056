"""Checks across the splits of one data set.

check_training_boxes   a training split needs boxes, of every class
check_same_classes     all splits need the same classes
check_shared_files     splits must not share frames
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import combinations

from v2idetr.data.audit import Findings
from v2idetr.data.coco_vid import SplitData

Pair = tuple[str, str]


def check_training_boxes(split: SplitData, problems: Findings, notes: Findings) -> None:
    """Check that a training split has boxes; note classes without any."""
    boxes = split.report.boxes_per_class
    if not any(boxes.values()):
        problems.add(
            "no box to train on: if there should be some, export the annotations again (some "
            "programs leave out what was drawn with a brush) as boxes",
            str(split.json_path),
        )
        return
    for name, count in boxes.items():
        if not count:
            notes.add("class without a box to train on, which cannot be learned", name)


def check_same_classes(splits: Mapping[str, SplitData], problems: Findings) -> None:
    """Check that all splits with classes have those of the first one, in its order."""
    names = [name for name, split in splits.items() if split.class_names]
    for name in names[1:]:
        first, other = (", ".join(splits[n].class_names) for n in (names[0], name))
        if first != other:
            problems.add(
                "splits have different categories, or another order of them: make them equal",
                f"{names[0]} has {first}; {name} has {other}",
            )


def check_shared_files(
    splits: Mapping[str, SplitData], problems: Findings, apart: Iterable[Pair] = ()
) -> None:
    """Check that no file is a frame of two splits; links are resolved.

    Args:
        splits: splits by name.
        problems: receives a message for each file and pair of splits.
        apart: pairs of splits that may share files.
    """
    folders: dict[str, str] = {}

    def resolved(path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    files = {n: {resolved(r["file_name"]) for r in s.records} for n, s in splits.items()}
    for a, b in combinations(files, 2):
        if (a, b) not in apart:
            for path in sorted(files[a] & files[b]):
                problems.add(
                    f"file is a frame of {a} and of {b}: keep it in one of them, and split by "
                    "patient or video",
                    path,
                )
