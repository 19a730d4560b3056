#!/usr/bin/env python3
"""Any folder of videos or of folders of frames -> unlabelled.json, for pretraining.

    python datasets/prepare_frames.py --source data/my_videos --output data/frames
    python datasets/prepare_frames.py --source data/my_videos --val 2 --test 5 --output data/frames
    python datasets/prepare_frames.py --source data/my_clips --output data/clips \\
        --val-videos 'B_*' --test-videos 'C_*' \\
        --labels labels.csv --label instrument --group patient

With `--val` and `--test`, or lists of names, val.json and test.json hold whole videos that
unlabelled.json does not. Name all clips of one patient or operation together, for example
`--test-videos 'VID43_*'`: nothing in the files says which belong together. With `--labels`, a CSV
file with a line per video, its `file` and labels, every frame gets the video's label, as a phase:
train.json, val.json and test.json then measure a backbone by probes of it. Frames are cached in
`frames/` of the output; an interrupted run goes on behind the finished videos.
"""

import argparse
import csv
import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from free_lunch.prepare.command_line import (
    Splits,
    frames_parser,
    on_unreadable,
    run_program,
    settings_of,
)
from v2idetr.data.audit import Findings
from v2idetr.data.text_files import read_text
from v2idetr.prepare.annotations import Frame, Video, evenly_spaced
from v2idetr.prepare.frame_cache import cached_frames
from v2idetr.prepare.video_sources import VideoSource, find_videos
from v2idetr.wording import counted

TRAINING = "unlabelled"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    parser = frames_parser(__doc__, source="folder of videos, or of folders of frames; or a video")
    for split in ("val", "test"):
        group = parser.add_mutually_exclusive_group()
        group.add_argument(
            f"--{split}", type=int, default=0, metavar="N", help=f"evenly spaced videos for {split}"
        )
        group.add_argument(
            f"--{split}-videos",
            metavar="NAMES",
            help=f"videos for {split}: names or patterns, separated by commas",
        )
    parser.add_argument("--labels", type=Path, metavar="CSV", help="labels of whole videos")
    parser.add_argument("--label", metavar="COLUMN", help="column of --labels with the label")
    parser.add_argument(
        "--group", metavar="COLUMN", help="column of --labels; a group is in one split alone"
    )
    options = parser.parse_args(arguments)
    if (options.labels is None) != (options.label is None) or (options.group and not options.label):
        parser.error("--labels and --label belong together, and --group needs both")
    return options


def read_splits(options: argparse.Namespace, notes: Findings) -> tuple[Splits, Sequence[str]]:
    """Videos by split."""
    sources = find_videos(options.source, notes, leave_out=options.output)
    split_of = _splits([source.name for source in sources], options)
    labels: dict[str, str] = {}
    if options.labels:
        labels = _labels(sources, split_of, options)
        split_of = {n: "train" if s == TRAINING else s for n, s in split_of.items()}
    splits: dict[str, list[Video]] = {split: [] for split in dict.fromkeys(split_of.values())}
    further = {"frame_rate": float(options.rate)}
    for cached in cached_frames(
        sources,
        options.output / "frames",
        settings_of(options),
        on_unreadable=on_unreadable(options, notes),
    ):
        label = {"phase": labels[cached.name]} if labels else {}
        frames = [Frame(file, further=label) for file in cached.files]
        splits[split_of[cached.name]].append(Video(cached.name, frames, further=further))
    return splits, sorted(set(labels.values()))


def _labels(
    sources: Sequence[VideoSource], split_of: Mapping[str, str], options: argparse.Namespace
) -> dict[str, str]:
    """Label of each video.

    Raises:
        ValueError: a column is missing, a video has no line, several lines or no label, or a group
            is in two splits.
    """
    lines = list(csv.DictReader(read_text(options.labels).splitlines()))
    columns = [name for name in ("file", options.label, options.group) if name]
    missing = [name for name in columns if not lines or name not in lines[0]]
    if missing:
        there = ", ".join(lines[0]) if lines else "none"
        raise ValueError(f"{options.labels}: has no column {', '.join(missing)}; it has {there}")
    labels: dict[str, str] = {}
    groups: dict[str, tuple[str, str]] = {}
    for source in sources:
        fitting = [line for line in lines if line["file"] in (source.path.name, source.name)]
        if len(fitting) != 1 or not fitting[0][options.label]:
            raise ValueError(
                f"{options.labels}: {counted(len(fitting), 'line')} for {source.path.name}, but "
                f"one with its {options.label} is needed"
            )
        labels[source.name] = fitting[0][options.label]
        if options.group:
            group, split = fitting[0][options.group], split_of[source.name]
            first = groups.setdefault(group, (split, source.name))
            if first[0] != split:
                raise ValueError(
                    f"{options.group} {group} is in two splits: {first[1]} in {first[0]}, "
                    f"{source.name} in {split}. Frames of one {options.group} are near copies."
                )
    return labels


def _splits(names: Sequence[str], options: argparse.Namespace) -> dict[str, str]:
    """Split of each video.

    Raises:
        ValueError: nothing would be left for training, a name that no video has, or a video in two
            splits.
    """
    wanted = options.val + options.test
    asked = [f"--{split}" for split in ("val", "test") if getattr(options, split)]
    asked += [f"--{s}-videos" for s in ("val", "test") if getattr(options, f"{s}_videos")]
    if min(options.val, options.test) < 0:
        raise ValueError("--val and --test must not be negative")
    if asked and len(names) == 1:
        raise ValueError(
            f"{options.source}: a single video cannot be split ({', '.join(asked)}): frames of one "
            "video are near copies. Add videos, or leave these options out."
        )
    split_of = dict.fromkeys(names, TRAINING)
    for split in ("val", "test"):
        for name in _named(names, getattr(options, f"{split}_videos") or "", split):
            if split_of[name] != TRAINING:
                raise ValueError(f"--{split}-videos: {name} is in {split_of[name]} already")
            split_of[name] = split
    free = [name for name, split in split_of.items() if split == TRAINING]
    if len(free) <= wanted:
        raise ValueError(
            f"--val {options.val} --test {options.test}: of {counted(len(names), 'video')} none "
            "would be left for training; choose fewer."
        )
    taken = evenly_spaced(free, wanted)
    test = set(evenly_spaced(taken, options.test))
    return split_of | {name: "test" if name in test else "val" for name in taken}


def _named(names: Sequence[str], text: str, split: str) -> list[str]:
    """Names that fit a list of names and patterns."""
    found: list[str] = []
    for pattern in filter(None, (part.strip() for part in text.split(","))):
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            near = difflib.get_close_matches(pattern, names, n=3) or names[:3]
            raise ValueError(
                f"--{split}-videos {pattern}: no video has this name; there are {', '.join(near)}, "
                "..."
            )
        found += [name for name in fitting if name not in found]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, or exit with the reason for a failure."""
    print(run_program(__file__, parse(arguments), read_splits, "frames"))


if __name__ == "__main__":
    main()
