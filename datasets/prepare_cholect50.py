#!/usr/bin/env python3
"""CholecT50 -> train.json, val.json, test.json with the phase of each frame.

    python datasets/prepare_cholect50.py --source data/CholecT50 --output data/cholect50
    python datasets/prepare_cholect50.py --source data/CholecT50 --fold 1 --output data/cholect50_1

The default is the split of the paper on Rendezvous: 35, 5 and 10 videos. `--fold 1` to `--fold 5`
are the official cross-validation (Nwoye and Padoy, arXiv 2204.05235), whose loader validates on
the last five videos of the other folds. The triplets are not read.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from free_lunch.prepare.command_line import Splits, frames_parser, run_program
from free_lunch.prepare.phase_files import PhaseLabels, read_cholect50
from free_lunch.prepare.surgical import add_split_options, chosen, labelled_splits, paired
from v2idetr.data.audit import Findings
from v2idetr.prepare.command_line import check_folder
from v2idetr.prepare.video_sources import numbered_files, numbered_videos

LAYOUT = """\
  labels/VID01.json ...
  videos/VID01/000000.png ..."""
DEFAULTS = {
    "train": "1,2,4,5,13,15,18,22,23,25-27,31,35,36,40,43,47-49,52,56,57,60,62,65,66,68,70,75,79,"
    "92,96,103,110",
    "val": "8,12,29,50,78",
    "test": "6,10,14,32,42,51,73,74,80,111",
}
FOLDS = (
    (79, 2, 51, 6, 25, 14, 66, 23, 50, 111),
    (80, 32, 5, 15, 40, 47, 26, 48, 70, 96),
    (31, 57, 36, 18, 52, 68, 10, 8, 73, 103),
    (42, 29, 60, 27, 65, 75, 22, 49, 12, 110),
    (78, 43, 62, 35, 74, 1, 56, 4, 13, 92),
)
VALIDATION_VIDEOS = 5  # the last ones of the other folds


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    parser = frames_parser(__doc__, source="folder with labels/ and videos/", frame_rate="1")
    add_split_options(parser, DEFAULTS)
    folds = range(1, len(FOLDS) + 1)
    parser.add_argument("--fold", type=int, choices=folds, help="fold that is tested on")
    return parser.parse_args(arguments)


def read_splits(options: argparse.Namespace, notes: Findings) -> tuple[Splits, Sequence[str]]:
    """Videos by split, and the names of the phases."""
    source = options.source
    label_files = numbered_files(source / "labels", r"VID(\d+)\.json")
    videos = numbered_videos(source / "videos")
    check_folder(source, [label_files and videos], LAYOUT)
    splits = chosen(paired(videos, label_files), _lists(options), notes)
    labels: dict[Path, PhaseLabels] = {}
    names: list[str] = []
    for recording in (recording for part in splits.values() for recording in part):
        if recording.label_file is None:
            continue
        labels[recording.label_file], its_names = read_cholect50(recording.label_file)
        names = names or its_names
        if its_names != names:
            raise ValueError(
                f"{recording.label_file}: has the phases {', '.join(its_names)}, others have "
                f"{', '.join(names)}; take all files from one release"
            )
    return labelled_splits(splits, labels, options, notes), names


def _lists(options: argparse.Namespace) -> dict[str, str]:
    """Numbers of each split's videos; ValueError for a fold beside lists."""
    lists = {split: getattr(options, f"{split}_videos") for split in DEFAULTS}
    if options.fold is None:
        return lists
    if lists != DEFAULTS:
        raise ValueError(f"--fold {options.fold} chooses the videos: leave out the lists.")
    others = [n for k, fold in enumerate(FOLDS, 1) if k != options.fold for n in fold]
    parts = {
        "train": others[:-VALIDATION_VIDEOS],
        "val": others[-VALIDATION_VIDEOS:],
        "test": FOLDS[options.fold - 1],
    }
    return {split: ",".join(map(str, part)) for split, part in parts.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, or exit with the reason for a failure."""
    print(run_program(__file__, parse(arguments), read_splits, "CholecT50"))


if __name__ == "__main__":
    main()
