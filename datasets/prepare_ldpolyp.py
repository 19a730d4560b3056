#!/usr/bin/env python3
"""LDPolypVideo -> train.json, val.json, test.json, one video a folder.

    python datasets/prepare_ldpolyp.py --source data/LDPolypVideo --output data/ldpolyp

Test is the Test folder of the release, validation an even tenth of the videos of TrainValid. A text
file with 0 boxes is a lesion-free frame; frames without a text file are left out, with a note.
A folder with Images and Annotations alone is divided 70 : 10 : 20; a single video gives test.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from v2i_runtime.image_files import image_names, natural_key
from v2idetr.data.audit import Findings
from v2idetr.data.text_files import read_text
from v2idetr.prepare.annotations import (
    Frame,
    Lesion,
    Video,
    even_share,
    in_threads,
    numbered_images,
)
from v2idetr.prepare.command_line import check_folder, converter_parser, run_converter

LAYOUT = """\
  TrainValid/Images/<video>/<frame>.jpg   TrainValid/Annotations/<video>/<frame>.txt
  Test/Images/...                         Test/Annotations/...
or Images/ and Annotations/ alone, or one clip: frames/<frame>.jpg and annotations.json"""
VAL_SHARE, TEST_SHARE = 0.1, 0.2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    return converter_parser(__doc__, source="folder with TrainValid/, Test/").parse_args(arguments)


def read_splits(options: argparse.Namespace, notes: Findings) -> dict[str, list[Video]]:
    """Videos by split; omissions are noted."""
    source: Path = options.source
    parts = {name: source / name for name in ("TrainValid", "Test", ".")}
    parts = {n: p for n, p in parts.items() if (p / "Images").is_dir()}
    clip = source / "annotations.json"
    check_folder(source, [*parts, clip.is_file()], LAYOUT)
    if not parts:
        return {"test": [read_clip(clip, notes)]}
    read = {name: read_videos(part, source, notes) for name, part in parts.items()}
    return choose(read)


def read_videos(part: Path, source: Path, notes: Findings) -> list[Video]:
    """Videos of one part of the release: folders in Images with text files in Annotations."""
    videos = []
    folders = [folder for folder in (part / "Images").iterdir() if folder.is_dir()]
    for folder in sorted(folders, key=lambda path: natural_key(path.name)):
        texts = part / "Annotations" / folder.name
        root = folder.relative_to(source)
        names = image_names(folder)
        found = in_threads(
            lambda name, texts=texts: read_boxes(texts / f"{Path(name).stem}.txt"),
            names,
            f"video {folder.name}",
        )
        frames = []
        for place, (name, boxes) in enumerate(zip(names, found, strict=True)):
            if isinstance(boxes, str):
                notes.add(boxes, (root / name).as_posix())
                continue
            lesions = [Lesion(box) for box in boxes]
            frames.append(Frame((root / name).as_posix(), lesions, frame_index=place))
        prefix = "" if part == source else f"{part.name}/"
        if frames:
            videos.append(Video(f"{prefix}{folder.name}", frames))
        else:
            notes.add("video without labelled frames is left out", str(root))
    return videos


def read_boxes(path: Path) -> list[list[int]] | str:
    """Boxes xywh of a text file (line 1: count, then ``x1 y1 x2 y2``), or its fault."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        return "frame without a text file is left out"
    except ValueError:
        return "frame whose text file is not UTF-8 is left out"
    try:
        lines = [line.split() for line in text.splitlines() if line.strip()]
        count, rows = int(lines[0][0]), [[int(float(v)) for v in line] for line in lines[1:]]
    except (ValueError, IndexError, OverflowError):
        return "frame whose text file cannot be read is left out"
    if count != len(rows) or any(len(row) != 4 for row in rows):
        return "frame whose text file does not have the boxes that it counts is left out"
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in rows]


def read_clip(path: Path, notes: Findings) -> Video:
    """The one video of a folder with ``frames/`` and an ``annotations.json`` of boxes_xyxy."""
    files = numbered_images(path.parent / "frames")
    frames = []
    text = read_text(path)
    try:
        content = json.loads(text)
        size = (content["width"], content["height"])
        for entry in sorted(content["frames"], key=lambda entry: entry["frame"]):
            number = entry["frame"]
            if number not in files:
                notes.add("frame is not in frames/ and is left out", f"{number}")
                continue
            lesions = [Lesion([a, b, c - a, d - b]) for a, b, c, d in entry["boxes_xyxy"]]
            name = f"frames/{files[number]}"
            frames.append(Frame(name, lesions, frame_index=number, boxes_for=size))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the expected annotations ({type(error).__name__}: {error}); it needs "
            "width, height and frames with frame and boxes_xyxy"
        ) from None
    return Video("clip", frames)


def choose(read: dict[str, list[Video]]) -> dict[str, list[Video]]:
    """Splits: test as released, else an even fifth; validation an even tenth."""
    videos = read.get("TrainValid", []) + read.get(".", [])
    test = read.get("Test", [])
    if len(videos) + len(test) < 3:
        return {"test": videos + test}
    total = len(videos)
    if not test:
        test = even_share(videos, TEST_SHARE)
        videos = [video for video in videos if video not in test]
    val = even_share(videos, VAL_SHARE, total)
    splits = {"train": [v for v in videos if v not in val], "val": val, "test": test}
    return {split: chosen for split, chosen in splits.items() if chosen}


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, or exit with the reason for a failure."""
    print(run_converter(__file__, parse(arguments), read_splits, "LDPolypVideo", ["polyp"]))


if __name__ == "__main__":
    main()
