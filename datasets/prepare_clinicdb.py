#!/usr/bin/env python3
"""CVC-ClinicDB -> train.json, val.json, test.json, one video per sequence.

    python datasets/prepare_clinicdb.py --source data/cvc_clinicdb --output data/clinicdb
    python datasets/prepare_clinicdb.py --source data/cvc_clinicdb --fold 1/4 --output data/fold1

By default, test is sequences 17-23 and validation 15-16. Sequences are not split, because their
frames are near copies. Sequences 15 and 16 have the two camera geometries of the set, and their
lesions (17 to 48 % of the image side) cover the middle of the range; the few small flat lesions,
such as in 14, stay in training. For cross-validation, `--fold 1/4` to
`--fold 4/4` test on every fourth sequence, each once, and validate on every sixth of the others.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from v2idetr.data.audit import Findings
from v2idetr.data.text_files import read_text
from v2idetr.prepare.annotations import Frame, Lesion, Video, numbered_images
from v2idetr.prepare.command_line import check_folder, converter_parser, numbers_of, run_converter
from v2idetr.prepare.mask_boxes import boxes_by_mask
from v2idetr.wording import counted

LAYOUT = """\
  Original/1.tif ... and "Ground Truth"/1.tif ...   as released; .png too, also in PNG/ or TIF/
or
  frames/001.jpg ..., annotations.json (sequences, and boxes_xywh by frame)"""
# First frames of the 29 sequences, from the README of the release; the last one ends at 612.
FIRST_FRAMES = (1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298, 318, 343)
FIRST_FRAMES += (364, 384, 409, 429, 448, 467, 479, 504, 529, 547, 572, 592)
LAST_FRAME = 612
DEFAULTS = {"train": "1-14", "val": "15-16", "test": "17-23"}
VALIDATION_STEP = 6  # in a fold, every sixth of the other sequences is for validation

Sequences = dict[int, Video]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    parser = converter_parser(__doc__, source="folder with Original/ and 'Ground Truth'/")
    add = parser.add_argument
    for split, default in DEFAULTS.items():
        add(
            f"--{split}-sequences",
            metavar="LIST",
            help=f"sequences for {split}: numbers or ranges (default {default})",
        )
    add("--fold", metavar="K/N", help="fold K of N of a cross-validation, instead of these lists")
    return parser.parse_args(arguments)


def read_splits(options: argparse.Namespace, notes: Findings) -> dict[str, list[Video]]:
    """Videos by split; omissions are noted."""
    source: Path = options.source
    released = [
        (base / "Original", base / "Ground Truth")
        for base in (source, source / "PNG", source / "TIF")
        if (base / "Original").is_dir() and (base / "Ground Truth").is_dir()
    ]
    listed = source / "annotations.json"
    check_folder(source, [*released, listed.is_file()], LAYOUT)
    if listed.is_file():
        sequences = read_listed(listed, notes)
    else:
        sequences = read_released(*released[0], source, notes)
    for video in sequences.values():
        if not any(frame.lesions for frame in video.frames):
            notes.add(
                "sequence without any lesion: is it annotated?",
                f"{video.name} ({counted(len(video.frames), 'frame')})",
            )
    splits: dict[str, list[Video]] = {}
    used: dict[int, str] = {}
    for split, chosen in _chosen(options, sorted(sequences)).items():
        flag = f"--{split}-sequences {chosen}"
        try:
            numbers = numbers_of(chosen)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
        for number in numbers:
            if number in used:
                raise ValueError(f"{flag}: sequence {number} is in {used[number]} already")
            used[number] = split
        for number in sorted(set(numbers) - sequences.keys()):
            notes.add("sequence does not exist", f"{number} ({split})")
        splits[split] = [sequences[number] for number in numbers if number in sequences]
    for number in sorted(sequences.keys() - used.keys()):
        notes.add(
            "sequence is in no split",
            f"{number} ({len(sequences[number].frames)} frames); see --train-sequences and others",
        )
    return splits


def _chosen(options: argparse.Namespace, numbers: Sequence[int]) -> dict[str, str]:
    """Lists of sequences by split.

    Args:
        options: command-line options.
        numbers: numbers of all sequences, in order.

    Raises:
        ValueError: an invalid fold.
    """
    given = {split: getattr(options, f"{split}_sequences") for split in DEFAULTS}
    if options.fold is None:
        return {split: given[split] or default for split, default in DEFAULTS.items()}
    if any(given.values()):
        raise ValueError(f"--fold {options.fold} chooses the sequences: leave out the lists.")
    found = re.fullmatch(r"(\d+)/(\d+)", options.fold)
    k, n = (int(part) for part in found.groups()) if found else (0, 0)
    if not 1 <= k <= n or n < 2:
        raise ValueError(f"--fold {options.fold}: expected K/N with K from 1 to N, such as 1/4.")
    others = [number for place, number in enumerate(numbers) if place % n != k - 1]
    if len(numbers) < n or len(others) < VALIDATION_STEP:
        raise ValueError(
            f"--fold {options.fold}: there are {counted(len(numbers), 'sequence')}, too few for "
            "so many folds with validation sequences."
        )
    validation = others[VALIDATION_STEP // 2 :: VALIDATION_STEP]
    parts = {
        "train": [number for number in others if number not in validation],
        "val": validation,
        "test": [number for number in numbers if number not in others],
    }
    return {split: ",".join(map(str, part)) for split, part in parts.items()}


def read_listed(path: Path, notes: Findings) -> Sequences:
    """Sequences of ``annotations.json`` with boxes by frame number."""
    files = numbered_images(path.parent / "frames")
    sequences: Sequences = {}
    text = read_text(path)
    try:
        content = json.loads(text)
        entries = sorted(content["frames"], key=lambda f: (f["sequence"], f["index_in_sequence"]))
        for entry in entries:
            number = entry["frame"]
            if number not in files:
                notes.add("frame is not in frames/ and is left out", f"{number}")
                continue
            frame = Frame(
                f"frames/{files[number]}",
                [Lesion(box) for box in entry["boxes_xywh"]],
                frame_index=entry["index_in_sequence"],
                boxes_for=(entry["width"], entry["height"]),
            )
            name = f"sequence{entry['sequence']:02d}"
            sequences.setdefault(entry["sequence"], Video(name, [])).frames.append(frame)
            if not frame.lesions:
                notes.add("frame without a box counts as lesion-free", f"frame {number}")
            if entry.get("dropped_small_components"):
                notes.add("mask with specks, which give no box", f"frame {number}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the expected annotations ({type(error).__name__}: {error}); "
            f"it needs frames with frame, sequence, index_in_sequence, width, height, boxes_xywh"
        ) from None
    return sequences


def read_released(originals: Path, masks: Path, source: Path, notes: Findings) -> Sequences:
    """Sequences of the release: numbered images, one box per connected part of a mask."""
    frames, truths = numbered_images(originals), numbered_images(masks)
    for number in sorted(frames.keys() ^ truths.keys()):
        notes.add("frame without a mask, or the reverse, is left out", f"{number}")
    numbers = sorted(frames.keys() & truths.keys())
    for number in [n for n in numbers if not 1 <= n <= LAST_FRAME]:
        notes.add(f"frame number is not 1..{LAST_FRAME}: left out", f"{number}")
        numbers.remove(number)
    files = {f"frame {number}": masks / truths[number] for number in numbers}
    root = originals.relative_to(source)
    sequences: Sequences = {}
    for number, found in zip(numbers, boxes_by_mask(files, "masks", notes), strict=True):
        if found is None:
            continue
        boxes, size = found
        sequence = sum(first <= number for first in FIRST_FRAMES)
        frame = Frame(
            (root / frames[number]).as_posix(),
            [Lesion(box) for box in boxes],
            frame_index=number - FIRST_FRAMES[sequence - 1],
            boxes_for=size,
        )
        name = f"sequence{sequence:02d}"
        sequences.setdefault(sequence, Video(name, [])).frames.append(frame)
    return sequences


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, or exit with the reason for a failure."""
    print(run_converter(__file__, parse(arguments), read_splits, "CVC-ClinicDB", ["polyp"]))


if __name__ == "__main__":
    main()
