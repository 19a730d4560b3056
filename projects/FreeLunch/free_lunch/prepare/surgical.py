"""Videos of a data set and their phase labels -> the videos of each split.

add_split_options   --train-videos, --val-videos, --test-videos
Recording, paired   a video with its labels; those of a data set, by number
chosen              recordings of each split by number
labelled_splits     recordings of each split -> cached frames with their phases
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from free_lunch.prepare.command_line import on_unreadable, settings_of
from free_lunch.prepare.phase_files import PhaseLabels, check_length
from v2idetr.data.audit import Findings
from v2idetr.prepare.annotations import Frame, Video
from v2idetr.prepare.command_line import numbers_of
from v2idetr.prepare.frame_cache import CachedVideo, cached_frames
from v2idetr.prepare.video_sources import VideoSource, check_numbering


@dataclass(frozen=True)
class Recording:
    """A video and its labels; one of the two may not be there."""

    video: VideoSource | None
    label_file: Path | None


def add_split_options(parser: argparse.ArgumentParser, defaults: Mapping[str, str]) -> None:
    """An option with the numbers of each split's videos."""
    for split, default in defaults.items():
        parser.add_argument(
            f"--{split}-videos",
            metavar="LIST",
            default=default,
            help=f"videos for {split}: numbers or ranges (default {default})",
        )


def paired(
    videos: Mapping[int, VideoSource], label_files: Mapping[int, Path]
) -> dict[int, Recording]:
    """Videos and label files of the same number."""
    return {
        number: Recording(videos.get(number), label_files.get(number))
        for number in sorted(videos.keys() | label_files.keys())
    }


def chosen(
    recordings: Mapping[int, Recording], lists: Mapping[str, str], notes: Findings
) -> dict[str, list[Recording]]:
    """Recordings of each split; numbers without any file, or in no split, are noted.

    A split with an empty list is left out.

    Args:
        recordings: recordings by number.
        lists: numbers of each split, such as ``1-32``.
        notes: receives what is left out.

    Raises:
        ValueError: an invalid list, a number in two splits, a split without any file, labels
            without a video or the reverse.
    """
    splits: dict[str, list[Recording]] = {}
    used: dict[int, str] = {}
    for split, text in lists.items():
        flag = f"--{split}-videos {text}"
        try:
            numbers = numbers_of(text)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
        for number in numbers:
            if number in used:
                raise ValueError(f"{flag}: video {number} is in {used[number]} already")
            used[number] = split
            if number not in recordings:
                notes.add("video does not exist", f"{number} ({split})")
        splits[split] = [recordings[number] for number in numbers if number in recordings]
        if numbers and not splits[split]:
            raise ValueError(
                f"{flag}: none of these videos exists; there are "
                f"{', '.join(map(str, sorted(recordings))) or 'none'}. Choose others, or leave the "
                f"split out by --{split}-videos ''."
            )
    for number in sorted(recordings.keys() - used.keys()):
        notes.add("video is in no split", f"{number}; see --train-videos and others")
    splits = {split: part for split, part in splits.items() if part}
    _check_pairs([recording for part in splits.values() for recording in part])
    return splits


def _check_pairs(recordings: Sequence[Recording]) -> None:
    problems = Findings()
    for recording in recordings:
        if recording.video is None:
            problems.add("phase file without a video", str(recording.label_file))
        elif recording.label_file is None:
            problems.add("video without a phase file", str(recording.video.path))
    problems.raise_if_any(
        "videos and phase files", "Add the missing files, or leave these videos out of the splits."
    )


def labelled_splits(
    splits: Mapping[str, Sequence[Recording]],
    labels: Mapping[Path, PhaseLabels],
    options: argparse.Namespace,
    notes: Findings,
) -> dict[str, list[Video]]:
    """Cached frames of each split with their phases.

    Args:
        splits: recordings with video and labels.
        labels: labels by their file.
        options: command-line options, see `command_line`.
        notes: receives what is left out.

    Raises:
        ValueError: a video that cannot be used, or whose length is not that of its labels.
    """
    of_split = {
        recording.video: (split, labels[recording.label_file])
        for split, recordings in splits.items()
        for recording in recordings
        if recording.video is not None and recording.label_file is not None
    }
    for video in of_split:
        check_numbering(video)
    by_name = {video.name: video for video in of_split}
    result: dict[str, list[Video]] = {split: [] for split in splits}
    for cached in cached_frames(
        list(of_split),
        options.output / "frames",
        settings_of(options),
        on_unreadable=on_unreadable(options, notes),
    ):
        video = by_name[cached.name]
        split, of_video = of_split[video]
        period_s = cached.duration_s / cached.num_source_frames
        check_length(of_video, cached.duration_s, period_s, video.path)
        result[split].append(_labelled(cached, of_video, float(options.rate), notes))
    return result


def _labelled(cached: CachedVideo, labels: PhaseLabels, rate: float, notes: Findings) -> Video:
    frames = []
    for place, (file, time_s) in enumerate(zip(cached.files, cached.times_s, strict=True)):
        phase = labels.at(time_s)
        if phase is None:
            late = time_s >= labels.duration_s
            kind = "frame is later than the last label" if late else "frame has no phase"
            notes.add(f"{kind}: left out", file)
            continue
        frames.append(Frame(file, frame_index=place, further={"phase": phase}))
    if not frames:
        raise ValueError(f"{labels.path}: none of the frames of {cached.name} has a phase")
    return Video(cached.name, frames, further={"frame_rate": rate})
