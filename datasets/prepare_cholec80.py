#!/usr/bin/env python3
"""Cholec80 -> train.json, val.json, test.json with the phase of each frame.

    python datasets/prepare_cholec80.py --source data/Cholec80 --output data/cholec80

Test is videos 41-80, as in the paper on Free Lunch and in most others; of videos 1-40, 33-40 are
for validation, a common choice. Frames are cached in `frames/` of the output; an interrupted run
goes on behind the finished videos. Frames on disk are used rather than videos.
"""

import argparse
from collections.abc import Sequence

from free_lunch.prepare.command_line import Splits, frames_parser, run_program
from free_lunch.prepare.phase_files import CHOLEC80_PHASES, read_phase_text
from free_lunch.prepare.surgical import add_split_options, chosen, labelled_splits, paired
from v2idetr.data.audit import Findings
from v2idetr.prepare.command_line import check_apart, check_folder
from v2idetr.prepare.video_sources import numbered_files, numbered_videos

LAYOUT = """\
  phase_annotations/video01-phase.txt ...
  frames/video01/*.png (or .jpg) ...   or   videos/video01.mp4 ..."""
DEFAULTS = {"train": "1-32", "val": "33-40", "test": "41-80"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    parser = frames_parser(__doc__, source="folder with phase_annotations/", frame_rate="1")
    add_split_options(parser, DEFAULTS)
    return parser.parse_args(arguments)


def read_splits(options: argparse.Namespace, notes: Findings) -> tuple[Splits, Sequence[str]]:
    """Videos by split, and the names of the phases."""
    source = options.source
    check_apart(source, options.output)
    label_files = numbered_files(source / "phase_annotations", r"video(\d+)-phase\.txt")
    videos = numbered_videos(source / "frames") or numbered_videos(source / "videos")
    check_folder(source, [label_files and videos], LAYOUT)
    lists = {split: getattr(options, f"{split}_videos") for split in DEFAULTS}
    splits = chosen(paired(videos, label_files), lists, notes)
    labels = {
        recording.label_file: read_phase_text(recording.label_file, CHOLEC80_PHASES)
        for recordings in splits.values()
        for recording in recordings
        if recording.label_file is not None
    }
    return labelled_splits(splits, labels, options, notes), CHOLEC80_PHASES


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, or exit with the reason for a failure."""
    print(run_program(__file__, parse(arguments), read_splits, "Cholec80"))


if __name__ == "__main__":
    main()
