"""Videos -> JPEG frames, at a constant rate or by their numbers, decoded once.

    CacheSettings   rate and size of the cached frames
    cached_frames   sources -> CachedVideo of each, decoded unless the cache has it

A cache is a folder ``<video>/000001.jpg, 000002.jpg, ..., cache.json`` for each video. Frame k
shows what the video shows k / rate seconds after its first frame, so that it is right for variable
frame rates too; where the video stands still for longer, frames repeat. Without a rate, the frames
are those of given numbers, and files have these numbers, from 0. A video is decoded into
``.<video>.incomplete`` and renamed when complete: an interrupted run keeps the finished videos.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from v2i_runtime.progress import progress_bar
from v2i_runtime.sources import FrameSource, SourceFrame, open_source
from v2i_runtime.stop_signals import StopSignals
from v2idetr.atomic_file import read_record
from v2idetr.child_processes import Interrupted
from v2idetr.prepare.video_sources import VideoSource
from v2idetr.wording import counted

RECORD = "cache.json"
JPEG_QUALITY = 95
VERSION = 1  # increase whenever the same source and settings would give other frames


@dataclass(frozen=True)
class CacheSettings:
    """Settings of the cached frames.

    Attributes:
        rate: frames per second; None for frames by number.
        short_side: largest length of the shorter side, px; smaller frames are not enlarged. None
            for the size of the source.
        frame_rate: frame rate of sources that are folders of frames, Hz; None if not known.

    Raises:
        ValueError: a value is not above 0.
    """

    rate: Fraction | None = Fraction(1)
    short_side: int | None = 256
    frame_rate: Fraction | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {value}: must be above 0")


@dataclass(frozen=True)
class CachedVideo:
    """Cached frames of one video.

    Attributes:
        name: name of the video and of its folder in the cache.
        files: paths of the frames in temporal order, relative to the cache.
        source_frames: frame of the source that each shows, from 0.
        times_s: time that each stands for after the first frame, s; empty for frames by number.
        num_source_frames: number of frames of the source; for frames by number of those decoded.
        duration_s: from the first frame to the end of the last of these, s.
    """

    name: str
    files: list[str]
    source_frames: list[int]
    times_s: list[float]
    num_source_frames: int
    duration_s: float


def cached_frames(
    sources: Sequence[VideoSource],
    cache: Path,
    settings: CacheSettings,
    *,
    chosen: Mapping[str, Sequence[int]] | None = None,
    on_unreadable: Callable[[ValueError], object] | None = None,
) -> Iterator[CachedVideo]:
    """Frames of every source, in order; a source is decoded if it, or a setting, has changed.

    Args:
        sources: videos and folders of frames.
        cache: folder of the cache, created if missing.
        settings: rate and size of the frames.
        chosen: numbers of the frames of each source by its name, from 0, ascending, if
            `settings.rate` is None. A cache that has more of them is used as it is.
        on_unreadable: receives the error of an unreadable source, which is left out; if None, it is
            raised.

    Raises:
        ValueError: a source is damaged, has no frames, fewer a second than `settings.rate` or
            fewer than are chosen; `cache` holds a folder of its name from elsewhere.
        Interrupted: SIGINT, SIGTERM or SIGHUP was received; finished videos are kept.
    """
    assert (chosen is None) == (settings.rate is not None)
    frames_of = chosen or {}
    # Opening them all first finds unreadable ones before hours of decoding, and the total.
    opened = {
        source.name: _opened(source, settings, on_unreadable)
        for source in sources
        if _found(source, cache, settings, frames_of.get(source.name)) is None
    }
    numbers = [
        frames_of[name][-1] + 1 if chosen else video.num_frames
        for name, video in opened.items()
        if video is not None
    ]
    total = None if None in numbers else sum(filter(None, numbers))
    with (
        StopSignals() as signals,
        progress_bar(total=total, unit="frame", disable=not numbers) as progress,
    ):
        for source in sources:
            if signals.received is not None:
                raise Interrupted(signals.received)
            if source.name in opened:
                if opened[source.name] is None:
                    continue
                progress.set_description_str(f"decoding {source.name}", refresh=False)
                try:
                    frames = frames_of.get(source.name)
                    _decode(source, cache, settings, frames, signals, progress.update)
                except ValueError as error:
                    if on_unreadable is None:
                        raise
                    on_unreadable(error)
                    continue
            video = _found(source, cache, settings, frames_of.get(source.name))
            assert video is not None, source
            yield video


def _opened(
    source: VideoSource,
    settings: CacheSettings,
    on_unreadable: Callable[[ValueError], object] | None = None,
) -> FrameSource | None:
    """The source's frames; None if it is unreadable and that is not an error.

    Raises:
        ValueError: the source is unreadable, or its frame rate unknown or too low.
    """
    if source.is_folder and settings.frame_rate is None:
        raise ValueError(
            f"{source.path}: is a folder of frames, whose frame rate is not known: state it by "
            "--frame-rate, in frames per second"
        )
    try:
        opened = open_source(source.path, image_rate=settings.frame_rate or Fraction(1))
    except ValueError as error:
        if on_unreadable is None:
            raise
        on_unreadable(error)
        return None
    rate = opened.frame_rate
    if settings.rate is not None and rate is not None and rate < settings.rate:
        option = " (--frame-rate)" if source.is_folder else ""
        raise ValueError(
            f"{source.path}: has {float(rate):g} frames a second{option}, fewer than "
            f"--rate {float(settings.rate):g}; choose a lower --rate"
        )
    return opened


def _found(
    source: VideoSource, cache: Path, settings: CacheSettings, chosen: Sequence[int] | None
) -> CachedVideo | None:
    """The video if the cache has it from this source, with these settings.

    Raises:
        ValueError: the folder of its name was not made by this program, or its record is damaged.
    """
    folder = cache / source.name
    if not folder.exists():
        return None
    if not (folder / RECORD).is_file():
        raise ValueError(
            f"{folder}: was not made by this program; move it, or choose another --output"
        )
    record = read_record(folder / RECORD)
    wanted = _description(source, settings)
    if {key: record.get(key) for key in wanted} != wanted:
        return None
    shown = record["source_frames"]
    numbers = range(1, record["num_frames"] + 1)
    if chosen is not None:
        if not set(chosen) <= set(shown):
            return None
        shown = numbers = list(chosen)
    files = [f"{source.name}/{_file_name(number)}" for number in numbers]
    if not all((cache / file).is_file() for file in files):
        return None
    return CachedVideo(
        name=source.name,
        files=files,
        source_frames=shown,
        times_s=record["times_s"],
        num_source_frames=record["num_source_frames"],
        duration_s=record["duration_s"],
    )


def _description(source: VideoSource, settings: CacheSettings) -> dict[str, Any]:
    """Part of the record that says what the frames were made of."""
    files = [source.path]
    if source.is_folder:
        files = [Path(entry.path) for entry in os.scandir(source.path) if entry.is_file()]
    stats = [file.stat() for file in files]
    return {
        "version": VERSION,
        "source": source.path.name,
        "files": len(files),
        "bytes": sum(stat.st_size for stat in stats),
        "mtime_ns": max((stat.st_mtime_ns for stat in stats), default=0),
        "rate": str(settings.rate),
        "short_side": settings.short_side,
        "frame_rate": str(settings.frame_rate) if source.is_folder else None,
    }


def _decode(
    source: VideoSource,
    cache: Path,
    settings: CacheSettings,
    chosen: Sequence[int] | None,
    signals: StopSignals,
    progress: Callable[[int], object],
) -> None:
    """Write the source's folder of the cache, complete or not at all."""
    description = _description(source, settings)
    opened = _opened(source, settings)
    assert opened is not None
    staging = cache / f".{source.name}.incomplete"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        watched = _Watched(opened, signals, progress)
        source_frames, times_s = [], []
        if chosen is not None:
            for index, pixels in _of_numbers(watched, chosen, source.path):
                _write_jpeg(staging / _file_name(index), pixels, settings.short_side)
                source_frames.append(index)
        else:
            assert settings.rate is not None
            for index, pixels in _at_rate(watched, settings.rate, opened.frame_rate):
                number = len(source_frames) + 1
                _write_jpeg(staging / _file_name(number), pixels, settings.short_side)
                source_frames.append(index)
                times_s.append(round(float((number - 1) / settings.rate), 6))
        record = {
            **description,
            "size": list(opened.size),
            "num_frames": len(source_frames),
            "num_source_frames": watched.count,
            "duration_s": round(float(watched.duration_s), 6),
            "source_frames": source_frames,
            "times_s": times_s,
        }
        _write(staging / RECORD, json.dumps(record).encode())
        folder = cache / source.name
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _Watched:
    """Frames of a source that are counted, until a stop signal.

    Attributes:
        count: number of frames so far.
        duration_s: from the first frame to the end of the last so far, s.
    """

    def __init__(
        self, source: FrameSource, signals: StopSignals, progress: Callable[[int], object]
    ) -> None:
        self.count, self.duration_s = 0, Fraction(0)
        self._source, self._signals, self._progress = source, signals, progress

    def __iter__(self) -> Iterator[SourceFrame]:
        start_s = Fraction(0)
        for frame in self._source:
            if self._signals.received is not None:
                raise Interrupted(self._signals.received)
            start_s = start_s if self.count else frame.time_s
            self.count += 1
            self.duration_s = frame.time_s - start_s + 1 / (self._source.frame_rate or 25)
            self._progress(1)
            yield frame


def _at_rate(
    frames: Iterable[SourceFrame], rate: Fraction, source_rate: Fraction | None
) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """Number and pixels of the frame that is shown at 0, 1 / rate, 2 / rate, ... s."""
    wanted, shown, start_s, end_s = 0, None, Fraction(0), Fraction(0)
    for index, frame in enumerate(frames):
        if shown is None:
            start_s = frame.time_s
        time_s = frame.time_s - start_s
        while shown is not None and wanted / rate < time_s:
            yield shown
            wanted += 1
        shown = index, frame.pixels
        end_s = time_s + 1 / (source_rate or Fraction(25))
    while shown is not None and wanted / rate < end_s:
        yield shown
        wanted += 1


def _of_numbers(
    frames: Iterable[SourceFrame], chosen: Sequence[int], path: Path
) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """Number and pixels of the chosen frames, up to the last of them.

    Raises:
        ValueError: the source ends before.
    """
    wanted, last = set(chosen), chosen[-1]
    index = -1
    for index, frame in enumerate(frames):
        if index in wanted:
            yield index, frame.pixels
        if index == last:
            return
    raise ValueError(
        f"{path}: has {counted(index + 1, 'frame')}, but frame {last} (from 0) is asked for: are "
        "the labels of another video, or do they count frames from 1?"
    )


def _file_name(number: int) -> str:
    return f"{number:06d}.jpg"


def _write_jpeg(path: Path, pixels: UInt8[np.ndarray, "H W 3"], short_side: int | None) -> None:
    """Write a frame, scaled down by area means if its shorter side is longer than `short_side`."""
    height, width = pixels.shape[:2]
    scale = 1 if short_side is None else short_side / min(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings)
    assert encoded
    _write(path, data.tobytes())


def _write(path: Path, content: bytes) -> None:
    """Write a file; an OSError names it, even for a full disk."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
