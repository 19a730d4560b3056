#!/usr/bin/env python3
"""M2CAI16 workflow -> train.json, val.json, test.json with the phase of each frame.

    python datasets/prepare_m2cai16.py --source data/m2cai16-workflow --output data/m2cai16

Test is the 14 videos of `test_dataset`, as released; of the 27 of `train_dataset` five evenly
spaced ones are for validation. Frames are cached in `frames/` of the output; an interrupted run
goes on behind the finished videos. Frames on disk are used rather than videos.
"""

import argparse
from collections.abc import Sequence

from free_lunch.prepare.command_line import Splits, frames_parser, run_program
from free_lunch.prepare.phase_files import M2CAI16_PHASES, read_phase_text
from free_lunch.prepare.surgical import (
    Recording,
    add_split_options,
    chosen,
    labelled_splits,
    paired,
)
from v2idetr.data.audit import Findings
from v2idetr.prepare.command_line import check_apart, check_folder
from v2idetr.prepare.video_sources import VideoSource, numbered_files, numbered_videos

LAYOUT = """\
  train_dataset/workflow_video_01.mp4, workflow_video_01.txt ...
  test_dataset/test_workflow_video_01.mp4, test_workflow_video_01.txt ...
  or, for the videos, frames/workflow_video_01/*.jpg, frames/test_workflow_video_01/*.jpg ..."""
DEFAULTS = {
    "train": "1,2,4-8,10-13,15-18,20-24,26,27",
    "val": "3,9,14,19,25",
    "test": "1-14",
}
FOLDERS = {"": "train_dataset", "test_": "test_dataset"}  # prefix of the names in each


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    parser = frames_parser(
        __doc__, source="folder with train_dataset/, test_dataset/", frame_rate="1"
    )
    add_split_options(parser, DEFAULTS)
    return parser.parse_args(arguments)


def read_splits(options: argparse.Namespace, notes: Findings) -> tuple[Splits, Sequence[str]]:
    """Videos by split, and the names of the phases."""
    check_apart(options.source, options.output)
    recordings = {prefix: _recordings(options, prefix) for prefix in FOLDERS}
    check_folder(options.source, recordings.values(), LAYOUT)
    lists = {split: getattr(options, f"{split}_videos") for split in DEFAULTS}
    test = {"test": lists.pop("test")}
    splits = chosen(recordings[""], lists, notes) | chosen(recordings["test_"], test, notes)
    labels = {
        recording.label_file: read_phase_text(recording.label_file, M2CAI16_PHASES)
        for part in splits.values()
        for recording in part
        if recording.label_file is not None
    }
    return labelled_splits(splits, labels, options, notes), M2CAI16_PHASES


def _recordings(options: argparse.Namespace, prefix: str) -> dict[int, Recording]:
    """Recordings of `train_dataset` or `test_dataset` by number."""
    folder = options.source / FOLDERS[prefix]
    # Files of time stamps and predictions, ..._timestamp.txt and ..._pred.txt, are no labels.
    labels = numbered_files(folder, rf"{prefix}workflow_video_(\d+)\.txt")

    def named(videos: dict[int, VideoSource]) -> dict[int, VideoSource]:
        return {n: v for n, v in videos.items() if v.name.startswith(f"{prefix}workflow_video_")}

    frames = {
        path.name: path
        for path in sorted((options.source / "frames").glob(f"{prefix}workflow_video_*"))
    }
    videos = named(numbered_videos(folder)) | {
        int(name.rpartition("_")[2]): VideoSource(name, path)
        for name, path in frames.items()
        if path.is_dir() and name.rpartition("_")[2].isdecimal()
    }
    return paired(videos, labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, or exit with the reason for a failure."""
    print(run_program(__file__, parse(arguments), read_splits, "M2CAI16"))


if __name__ == "__main__":
    main()
