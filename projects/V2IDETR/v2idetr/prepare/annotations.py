"""Videos read by a converter -> one COCO-VID JSON per split, and an audit.

    Lesion, Frame, Video   a converter's output
    Conversion             frame sizes, bad boxes, ids, files and their counts
    evenly_spaced          a fixed choice of cases or videos by number; even_share: by share

Everything that a converter drops is noted in ``audit.json`` and ``audit.md``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from tabulate import tabulate

from v2i_runtime.image_files import ImageFileError, image_names, image_size
from v2i_runtime.progress import progress_bar
from v2idetr.atomic_file import write_text_atomically
from v2idetr.data.audit import AuditReport, Findings, audit_boxes
from v2idetr.data.coco_vid import RAW, split_text
from v2idetr.wording import counted

# Note for a frame without a usable file.
LEFT_OUT = "frame cannot be used and is left out"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Lesion:
    """A box [x, y, w, h] in px; ``area`` only to keep a published value that is not w * h."""

    bbox: Sequence[Any]
    category_id: int = 1
    instance_id: int | None = None
    area: int | float | None = None


@dataclass
class Frame:
    """An image, ``file_name`` relative to the image root. No lesions: a lesion-free frame.

    ``frame_index`` is by default the position in the video's list. ``boxes_for`` is the (width,
    height) for which the boxes were made, if known. ``further`` are keys to add to its entry.
    """

    file_name: str
    lesions: list[Lesion] = field(default_factory=list)
    scene_id: int = 0
    frame_index: int | None = None
    boxes_for: tuple[int, int] | None = None
    further: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Video:
    """Frames in temporal order. ``further`` are keys to add to its entry."""

    name: str
    frames: list[Frame]
    group: str | None = None
    further: Mapping[str, Any] = field(default_factory=dict)


class Conversion:
    """Writer of a data set's splits, ``audit.json`` and ``audit.md``.

    Args:
        name: name of the data set.
        converter: file name of the script, for ``info`` in the files.
        output: output folder, created if missing.
        image_root: base folder of each frame's ``file_name``.
        class_names: names of categories 1..K; none for frames without boxes.
        further: keys to add to each file, for other tasks than detection.
        boxes: "clip" normalises swapped corners, clips boxes to their frame and drops empty ones;
            "raw" writes every box as published.
    """

    def __init__(
        self,
        *,
        name: str,
        converter: str,
        output: Path,
        image_root: Path,
        class_names: Sequence[str],
        boxes: Literal["clip", "raw"] = "clip",
        further: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.converter = converter
        self.output = output
        self.image_root = image_root
        self.class_names = list(class_names)
        self.boxes = boxes
        self.further = dict(further or {})
        self.notes = Findings()
        self.reports: dict[str, AuditReport] = {}
        self._box_sizes: dict[str, list[float]] = {}
        self._videos = self._images = self._annotations = 0

    def write(self, splits: Mapping[str, Sequence[Video]]) -> None:
        """Write ``<split>.json`` for each split, then the audit.

        Raises:
            ValueError: a split is empty or invalid; nothing is written.
        """
        for split, videos in splits.items():
            if not any(video.frames for video in videos):
                raise ValueError(
                    f"{self.name}: split {split!r} has no frames; choose other cases or videos "
                    f"for it. {'; '.join(self.notes.lines())}"
                )
        self._check_names(splits)
        sizes = self._read_sizes(splits)
        texts = {name: self._split_text(name, videos, sizes) for name, videos in splits.items()}
        for split, text in texts.items():
            write_text_atomically(self.output / f"{split}.json", text)
        self.write_audit()

    def write_audit(self) -> None:
        """Write ``audit.json`` and ``audit.md``; again after further notes."""
        audit = {
            "data_set": self.name,
            "converter": self.converter,
            "boxes": self.boxes,
            "splits": {split: report.as_dict() for split, report in self.reports.items()},
            "notes": self.notes.as_dict(),
        }
        write_text_atomically(self.output / "audit.json", json.dumps(audit, indent=1) + "\n")
        write_text_atomically(self.output / "audit.md", "\n".join(self.markdown()) + "\n")

    def _check_names(self, splits: Mapping[str, Sequence[Video]]) -> None:
        """Reject file names that are not UTF-8: a JSON file cannot hold them."""
        problems = Findings()
        for videos in splits.values():
            for frame in (frame for video in videos for frame in video.frames):
                if printable(frame.file_name) != frame.file_name:
                    problems.add("file name is not UTF-8: rename it", printable(frame.file_name))
        problems.raise_if_any(self.name)

    def _read_sizes(self, splits: Mapping[str, Sequence[Video]]) -> dict[str, tuple[int, int]]:
        """Width and height by file name; unusable frames are noted and left out.

        Raises ValueError for images of another size than their boxes were made for, and for splits
        without a usable frame.
        """

        def size_of(frame: Frame) -> tuple[int, int] | str:
            try:
                return image_size(self.image_root / frame.file_name)
            except ImageFileError as error:
                return error.reason

        problems = Findings()
        sizes: dict[str, tuple[int, int]] = {}
        for split, videos in splits.items():
            frames = [frame for video in videos for frame in video.frames]
            unusable = []
            for frame, size in zip(
                frames, in_threads(size_of, frames, f"sizes of {split}"), strict=True
            ):
                if isinstance(size, str):
                    unusable.append(f"{frame.file_name} {size}")
                    continue
                sizes[frame.file_name] = size
                if frame.boxes_for not in (None, size):
                    problems.add(
                        "image is not of the size its boxes were made for (was it resized?)",
                        f"{frame.file_name} is {size}, its boxes are for {frame.boxes_for}",
                    )
            for example in unusable:
                self.notes.add(LEFT_OUT, example)
                if len(unusable) == len(frames):
                    kind = f"split {split!r} is empty: none of its frames can be used"
                    problems.add(kind, example)
        problems.raise_if_any(self.name)
        return sizes

    def _split_text(
        self, split: str, videos: Sequence[Video], sizes: Mapping[str, tuple[int, int]]
    ) -> str:
        entries: dict[str, list[dict[str, Any]]] = {"videos": [], "images": [], "annotations": []}
        for video in videos:
            self._number(video, sizes, entries)
        report = AuditReport(source=split)
        frames = {image["id"]: image for image in entries["images"]}
        clipped = audit_boxes(entries["annotations"], frames, report, "clip")
        if self.boxes == "clip":
            entries["annotations"] = clipped
        self._count(split, report, entries, frames)
        self.reports[split] = report
        return split_text(
            self.output / f"{split}.json",
            **entries,
            categories=[{"id": k, "name": name} for k, name in enumerate(self.class_names, 1)],
            info={
                "description": f"{self.name}, {split}",
                "source": self.name,
                "box_policy": RAW if self.boxes == "raw" else "clip",
                "converter": self.converter,
                "image_root_hint": str(self.image_root.resolve()),
            },
            further=self.further,
        )

    def _number(
        self,
        video: Video,
        sizes: Mapping[str, tuple[int, int]],
        entries: dict[str, list[dict[str, Any]]],
    ) -> None:
        """Append entries with ids that are unique over all splits, so that splits can be pooled."""
        self._videos += 1
        group = {} if video.group is None else {"group": video.group}
        entries["videos"].append({"id": self._videos, "name": video.name, **group, **video.further})
        for place, frame in enumerate(video.frames):
            if frame.file_name not in sizes:
                continue
            self._images += 1
            width, height = sizes[frame.file_name]
            entries["images"].append(
                {
                    "id": self._images,
                    "file_name": frame.file_name,
                    "width": width,
                    "height": height,
                    "video_id": self._videos,
                    "frame_index": place if frame.frame_index is None else frame.frame_index,
                    "scene_id": frame.scene_id,
                    **frame.further,
                }
            )
            for lesion in frame.lesions:
                self._annotations += 1
                entries["annotations"].append(self._annotation(lesion))

    def _annotation(self, lesion: Lesion) -> dict[str, Any]:
        area = lesion.area
        if area is None and len(lesion.bbox) == 4:
            area = lesion.bbox[2] * lesion.bbox[3]
        instance = {} if lesion.instance_id is None else {"instance_id": lesion.instance_id}
        return {
            "id": self._annotations,
            "image_id": self._images,
            "category_id": lesion.category_id,
            "bbox": list(lesion.bbox),
            "area": area,
            "iscrowd": 0,
            **instance,
        }

    def _count(
        self,
        split: str,
        report: AuditReport,
        entries: Mapping[str, Sequence[Mapping[str, Any]]],
        frames: Mapping[int, Mapping[str, Any]],
    ) -> None:
        annotations = entries["annotations"]
        report.videos, report.frames = len(entries["videos"]), len(frames)
        report.lesion_free_frames = len(frames) - len({a["image_id"] for a in annotations})
        labels = [annotation["category_id"] for annotation in annotations]
        report.boxes_per_class = {
            name: labels.count(k) for k, name in enumerate(self.class_names, start=1)
        }
        shares = [
            abs(a["bbox"][2] * a["bbox"][3])
            / (frames[a["image_id"]]["width"] * frames[a["image_id"]]["height"])
            for a in annotations
            if len(a["bbox"]) == 4
        ]
        self._box_sizes[split] = np.sqrt(shares).tolist()
        raw = self.boxes == "raw"
        outcome = "kept as published" if raw else "clipped, or dropped if nothing is left"
        self.notes.extend(report.notes, f" ({outcome})")
        if report.frames_left_without_box and not raw:
            self.notes.add(
                "frames lost all their boxes and count as lesion-free",
                f"{report.frames_left_without_box} in {split}",
            )

    def lines(self) -> list[str]:
        """Table of splits and notes, for the terminal."""
        lines = tabulate(self._table(), headers="keys", disable_numparse=True).splitlines()
        lines += [f"note: {line}" for line in self.notes.lines()]
        lines.append(f"written to {self.output}: {', '.join(f'{s}.json' for s in self.reports)}")
        unusable = sum(n for kind, n in self.notes.counts.items() if "cannot be used" in kind)
        if unusable:
            lines.append(
                f"WITHOUT {counted(unusable, 'frame')} that cannot be used (see the notes)"
            )
        return [printable(line) for line in lines]

    def markdown(self) -> list[str]:
        """The audit as a Markdown page."""
        table = tabulate(self._table(), headers="keys", tablefmt="github", disable_numparse=True)
        lines = [f"# Audit of {self.name}", ""]
        if self.class_names:
            kept = "as published (raw)" if self.boxes == "raw" else "clipped to their frames"
            lines += [f"Written by `{self.converter}`; boxes {kept}."]
            lines += ["Box size is sqrt(box area / frame area), in percent.", "", table, ""]
        else:
            lines += [f"Written by `{self.converter}`; frames without boxes.", "", table, ""]
        lines += ["## Notes", ""]
        if not self.notes:
            return [*lines, "Nothing was left out or changed."]
        for kind, count in self.notes.counts.items():
            lines.append(f"- {kind}: {count}")
            lines += [f"    - {example}" for example in self.notes.examples[kind]]
            rest = count - len(self.notes.examples[kind])
            lines += [f"    - ... and {rest} more"] if rest else []
        return [printable(line) for line in lines]

    def _table(self) -> list[dict[str, object]]:
        rows = []
        for split, report in self.reports.items():
            if not self.class_names:
                counts = {"videos": report.videos, "frames": report.frames}
                rows.append({"split": split, **counts})
                continue
            sizes = self._box_sizes[split] or [0.0]
            quantiles = [f"{100 * q:.0f}" for q in np.quantile(sizes, [0.05, 0.5, 0.95])]
            rows.append(
                {
                    "split": split,
                    "videos": report.videos,
                    "frames": report.frames,
                    "lesion-free": report.lesion_free_frames,
                    **{f"boxes: {name}": n for name, n in report.boxes_per_class.items()},
                    "size % (5th, median, 95th)": ", ".join(quantiles),
                    "bad boxes": sum(report.bad_boxes.values()),
                    "dropped": report.dropped if self.boxes == "clip" else 0,
                }
            )
        return rows


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], what: str
) -> list[Result]:
    """``function`` of every item, in order, in threads with a progress bar."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(progress_bar(pool.map(function, items), total=len(items), desc=what))


def printable(text: str) -> str:
    """The text, with undecodable bytes of file names as ``\\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def numbered_images(folder: Path) -> dict[int, str]:
    """Names of a folder's numbered images by number; empty without the folder."""
    names = image_names(folder) if folder.is_dir() else []
    return {int(Path(name).stem): name for name in names if Path(name).stem.isdecimal()}


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` items at even distances; the same on every run."""
    if not 0 <= count <= len(items):
        raise ValueError(f"cannot take {count} of {len(items)}")
    return [items[int((k + 0.5) * len(items) / count)] for k in range(count)]


def even_share(items: Sequence[Item], share: float, total: int | None = None) -> list[Item]:
    """``share`` * ``total`` (default: all) evenly spaced items: at least one, never all."""
    wanted = max(1, round(share * (len(items) if total is None else total)))
    return evenly_spaced(items, min(wanted, max(len(items) - 1, 0)))
