"""Annotations -> counts, faults and usable boxes.

    Findings      problems or notes by kind: a count and the first few examples
    AuditReport   counts of one split, its bad boxes and their treatment
    audit_boxes   boxes -> boxes inside their frame, by policy raise | clip | drop

Boxes are [x, y, w, h] in px of the original frame, as in COCO.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from v2idetr.wording import counted

BoxPolicy = Literal["raise", "clip", "drop"]
BoxFault = Literal["malformed", "not_finite", "negative", "empty", "outside"]
BoxXYWH = tuple[float, float, float, float]

FAULT_WORDS: dict[BoxFault, str] = {
    "malformed": "is not a list of four numbers",
    "not_finite": "has NaN or infinite numbers",
    "negative": "has a negative width or height",
    "empty": "has no width or no height",
    "outside": "reaches outside its frame",
}

# Files round to one or two decimals: a box that overshoots by less counts as inside.
ROUNDING_PX = 0.05
# Smallest width and height of a clipped box.
MIN_CLIPPED_SIDE_PX = 1.0


class Findings:
    """Messages by kind: all are counted, the first few of a kind are kept as examples."""

    def __init__(self, examples_per_kind: int = 5) -> None:
        self._examples_per_kind = examples_per_kind
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one message of ``kind``; keep ``example`` if it is among the first."""
        self.counts[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < self._examples_per_kind:
            kept.append(example)

    def extend(self, other: Findings, suffix: str = "") -> None:
        """Add the findings of ``other``, their kinds with ``suffix`` appended."""
        for kind, count in other.counts.items():
            for example in other.examples[kind]:
                self.add(kind + suffix, example)
            self.counts[kind + suffix] += count - len(other.examples[kind])

    def __len__(self) -> int:
        return self.counts.total()

    def lines(self) -> list[str]:
        """One line a kind: ``kind: count (example; example; ... and 7 more)``."""
        lines = []
        for kind, count in self.counts.items():
            rest = count - len(self.examples[kind])
            more = f"; ... and {rest} more" if rest else ""
            lines.append(f"{kind}: {count} ({'; '.join(self.examples[kind])}{more})")
        return lines

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """``{kind: {"count", "examples"}}``, for a JSON file."""
        return {
            kind: {"count": count, "examples": list(self.examples[kind])}
            for kind, count in self.counts.items()
        }

    def raise_if_any(self, source: str, hint: str = "") -> None:
        """Raise one ValueError with all lines and ``hint``, if there are any messages."""
        if self:
            lines = [f"{source}: {counted(len(self), 'problem')}"]
            lines += [f"  - {line}" for line in self.lines()]
            raise ValueError("\n".join([*lines, hint] if hint else lines))


@dataclass
class AuditReport:
    """Counts and faults of one split, and the treatment of its bad boxes.

    Attributes:
        source: the JSON file, or the name of the split.
        boxes_per_class: number of used boxes by class name, 0 included.
        bad_boxes: number of bad boxes in the file by fault, under any policy.
        clipped, dropped: number of clipped and of unused boxes.
        frames_left_without_box: number of frames that lost all boxes to the policy; they count
            as lesion-free.
        missing_frames: names of frames without a usable image file.
        problems: faults that make the split unusable.
        notes: other remarks.
    """

    source: str
    policy: BoxPolicy = "raise"
    videos: int = 0
    frames: int = 0
    lesion_free_frames: int = 0
    boxes_per_class: dict[str, int] = field(default_factory=dict)
    bad_boxes: dict[BoxFault, int] = field(default_factory=dict)
    clipped: int = 0
    dropped: int = 0
    frames_left_without_box: int = 0
    frames_decoded: int = 0
    missing_frames: list[str] = field(default_factory=list)
    problems: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)

    @property
    def boxes(self) -> int:
        """Boxes that are used."""
        return sum(self.boxes_per_class.values())

    def summary(self) -> str:
        """The counts in one line, for a log."""
        if not self.boxes_per_class:  # frames alone
            frames = f"{counted(self.videos, 'video')}, {counted(self.frames, 'frame')}"
            return f"{self.source}: {frames}, without classes"
        classes = ", ".join(f"{name} {n}" for name, n in self.boxes_per_class.items())
        text = (
            f"{self.source}: {counted(self.videos, 'video')}, {counted(self.frames, 'frame')} "
            f"({self.lesion_free_frames} lesion-free), {counted(self.boxes, 'box', 'boxes')} "
            f"({classes})"
        )
        if self.bad_boxes:
            faults = ", ".join(f"{fault} {n}" for fault, n in self.bad_boxes.items())
            text += (
                f"; bad boxes {sum(self.bad_boxes.values())} ({faults}): policy {self.policy}, "
                f"{self.clipped} clipped, {self.dropped} dropped"
            )
        if self.frames_left_without_box:
            text += f", {counted(self.frames_left_without_box, 'frame')} without any box left"
        return text

    def lines(self) -> list[str]:
        """The summary, then problems and notes, one line each."""
        return [
            self.summary(),
            *(f"problem: {line}" for line in self.problems.lines()),
            *(f"note: {line}" for line in self.notes.lines()),
        ]

    def as_dict(self) -> dict[str, Any]:
        """All of it in plain types, for a JSON file."""
        return {
            "source": self.source,
            "box_policy": self.policy,
            "videos": self.videos,
            "frames": self.frames,
            "lesion_free_frames": self.lesion_free_frames,
            "boxes": self.boxes,
            "boxes_per_class": dict(self.boxes_per_class),
            "bad_boxes": dict(self.bad_boxes),
            "clipped": self.clipped,
            "dropped": self.dropped,
            "frames_left_without_box": self.frames_left_without_box,
            "missing_frames": len(self.missing_frames),
            "problems": self.problems.as_dict(),
            "notes": self.notes.as_dict(),
        }


def is_number(value: object) -> bool:
    """Whether a value read from JSON is a number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def box_fault(bbox: object, *, width: int, height: int) -> BoxFault | None:
    """The fault of a box in a frame of ``width`` x ``height`` px; None for a valid box."""
    if not isinstance(bbox, Sequence) or len(bbox) != 4 or not all(map(is_number, bbox)):
        return "malformed"
    if not all(map(math.isfinite, bbox)):
        return "not_finite"
    x, y, w, h = bbox
    if w < 0 or h < 0:
        return "negative"
    if w == 0 or h == 0:
        return "empty"
    slack = ROUNDING_PX if min(w, h) > 2 * MIN_CLIPPED_SIDE_PX else 0.0
    if x < -slack or y < -slack or x + w > width + slack or y + h > height + slack:
        return "outside"
    return None


def clip_box(bbox: Sequence[int | float], *, width: int, height: int) -> BoxXYWH | None:
    """The part of a box inside its frame, negative sizes read as swapped corners.

    None for a box that is not four finite numbers, has no width or height, or is less than a
    pixel wide or high after clipping.
    """
    if box_fault(bbox, width=width, height=height) in ("malformed", "not_finite", "empty"):
        return None
    x, y, w, h = map(float, bbox)
    if not w or not h:  # one side negative, the other zero
        return None
    left, right = min(x, x + w), max(x, x + w)
    top, bottom = min(y, y + h), max(y, y + h)
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return left, top, abs(w), abs(h)
    left, top = max(left, 0.0), max(top, 0.0)
    w, h = min(right, float(width)) - left, min(bottom, float(height)) - top
    if w < MIN_CLIPPED_SIDE_PX or h < MIN_CLIPPED_SIDE_PX:
        return None
    return left, top, w, h


def audit_boxes(
    annotations: Iterable[Mapping[str, Any]],
    frames: Mapping[int, Mapping[str, Any]],
    report: AuditReport,
    policy: BoxPolicy,
) -> list[dict[str, Any]]:
    """Copies of the usable annotations, their ``bbox`` inside the frame.

    Args:
        annotations: dicts with ``image_id`` and ``bbox``.
        frames: ``image_id`` -> ``width``, ``height``, ``file_name``, for every annotation.
        report: receives the counts and, with policy "raise", problems.
        policy: for bad boxes: "raise" reports them, "clip" clips them to the frame or drops them,
            "drop" drops them.
    """
    assert policy in get_args(BoxPolicy), policy
    report.policy = policy
    kept: list[dict[str, Any]] = []
    touched: set[int] = set()
    for annotation in annotations:
        frame = frames[annotation["image_id"]]
        bbox, width, height = annotation["bbox"], frame["width"], frame["height"]
        fault = box_fault(bbox, width=width, height=height)
        clipped = clip_box(bbox, width=width, height=height) if fault != "malformed" else None
        if fault is not None:
            report.bad_boxes[fault] = report.bad_boxes.get(fault, 0) + 1
            example = f"annotation {annotation.get('id')} of {frame['file_name']}: bbox {bbox}"
            example += f" in {width} x {height} px" if fault == "outside" else ""
            (report.problems if policy == "raise" else report.notes).add(
                f"box {FAULT_WORDS[fault]}", example
            )
        if clipped is None or (fault is not None and policy == "drop"):
            report.dropped += 1
            touched.add(annotation["image_id"])
            continue
        report.clipped += fault is not None
        kept.append({**annotation, "bbox": list(clipped), "area": clipped[2] * clipped[3]})
    left = {annotation["image_id"] for annotation in kept}
    report.frames_left_without_box = len(touched - left)
    return kept
