"""Folder, pattern, image or video file -> RGB frames with their time, one by one.

    open_source   frame source of a path
    ImageFiles    image files as the frames of a video
    VideoFile     a video file, decoded by FFmpeg (PyAV)

All frames of a source have one size. Memory use does not grow with the number of frames. Every
iteration starts at the first frame.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import UInt8

from v2i_runtime.frame_times import FrameTimes
from v2i_runtime.image_files import (
    IMAGE_SUFFIXES,
    image_names,
    image_size,
    natural_key,
    read_image,
)

DEFAULT_RATE = Fraction(25)  # Hz, of image files
# A video is truncated if its last frame ends earlier than stated in the file by more than this.
END_TOLERANCE_S = Fraction(1, 2)
BACKWARDS_S = 1  # by which a frame may come too early; more is a clock that begins anew


@dataclass(frozen=True)
class SourceFrame:
    """One frame.

    Attributes:
        pixels: RGB, upright.
        time_s: exact presentation time; a video's first frame need not be at 0.
        name: name of the image file, or of the video with the frame number.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    time_s: Fraction
    name: str


@runtime_checkable
class FrameSource(Protocol):
    """Frames in temporal order.

    Attributes:
        size: (width, height) of every frame, px.
        frame_rate: mean frame rate, Hz; None if unknown.
        num_frames: number of frames stated in the file, for progress; None if unknown.
    """

    size: tuple[int, int]
    frame_rate: Fraction | None
    num_frames: int | None

    def __iter__(self) -> Iterator[SourceFrame]: ...


def open_source(
    source: str | os.PathLike[str], *, image_rate: Fraction = DEFAULT_RATE
) -> FrameSource:
    """The frames of a folder of images, a pattern such as ``frames/*.png``, an image or a video.

    Images come in natural order of their names: frame2 before frame10.

    Args:
        source: path or pattern.
        image_rate: frame rate of image files, Hz.

    Raises:
        ValueError: no such file, or no image or video.
    """
    path, text = Path(source), os.fspath(source)
    if path.is_dir():
        files = [path / name for name in image_names(path)]
        if not files:
            raise ValueError(f"{path}: no images in this folder ({', '.join(IMAGE_SUFFIXES)})")
    elif path.exists():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            return VideoFile(path)
        files = [path]
    elif glob.has_magic(text):
        found = filter(os.path.isfile, glob.glob(text, recursive=True))
        files = [Path(name) for name in sorted(found, key=natural_key)]
        if not files:
            raise ValueError(f"{text}: no file matches this pattern")
        for file in files:
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                raise ValueError(
                    f"{text}: matches {file}, but a pattern is for images "
                    f"({', '.join(IMAGE_SUFFIXES)}); give videos one by one"
                )
    else:
        raise ValueError(f"{path}: no such file or folder")
    return ImageFiles(files, frame_rate=image_rate)


class ImageFiles:
    """Image files as the frames of a video that starts at 0 s.

    Args:
        files: image files in temporal order, at least one.
        frame_rate: frame rate, Hz.

    Raises:
        ValueError: the rate is not above 0; during iteration: a file is not a usable image, see
            `read_image`, or differs in size from the first.
    """

    def __init__(self, files: Sequence[Path], *, frame_rate: Fraction) -> None:
        if frame_rate <= 0:
            raise ValueError(f"frame_rate={frame_rate} must be above 0")
        self.size = image_size(files[0])
        self.frame_rate: Fraction | None = frame_rate
        self.num_frames: int | None = len(files)
        self._files, self._rate = list(files), frame_rate

    def __iter__(self) -> Iterator[SourceFrame]:
        for index, path in enumerate(self._files):
            pixels = read_image(path)
            _check_size(pixels, self.size, str(path), str(self._files[0]))
            yield SourceFrame(pixels, index / Fraction(self._rate), path.name)


class VideoFile:
    """The first video stream of a file, rotated by its metadata, reduced to 8 bits per channel.

    Args:
        path: video file.

    Raises:
        ValueError: no video that can be decoded; during iteration: after the last frame that can be
            decoded, if the file is damaged or truncated there, or its clock goes back by more than
            a second. A missing end of up to half a second goes unnoticed but in MP4 and MOV, and
            any in files without a duration (MPEG-TS, some WebM and MKV).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as container:
            stream = container.streams.video[0]
            self.frame_rate: Fraction | None = stream.average_rate or stream.guessed_rate
            self.num_frames: int | None = stream.frames or None
            try:
                height, width = _upright(next(_decoded(container, stream))[0]).shape[:2]
            except (StopIteration, _DamageError) as error:
                raise ValueError(
                    f"{path}: no frame of this video can be decoded; it is damaged or truncated"
                ) from error
        self.size = width, height

    def __iter__(self) -> Iterator[SourceFrame]:
        index, last_s, end_s = 0, Fraction(0), Fraction(0)
        with self._open() as container:
            stream = container.streams.video[0]
            try:
                for frame, time in _decoded(container, stream):
                    time_s = self._time_s(time, stream.time_base, index)
                    if index and time_s < last_s - BACKWARDS_S:
                        raise ValueError(
                            f"{self.path}: its clock goes back from {float(last_s):.2f} s to "
                            f"{float(time_s):.2f} s at frame {index}, as in files that were "
                            "joined; write it to a new file (`ffmpeg -i FILE NEW.mp4`)"
                        )
                    last_s, end_s = time_s, time_s + (frame.duration or 0) * (stream.time_base or 0)
                    pixels = _upright(frame)
                    _check_size(pixels, self.size, f"{self.path}: frame {index}", "the first frame")
                    yield SourceFrame(pixels, time_s, f"{self.path.stem}_{index:06d}")
                    index += 1
                _check_end(stream, end_s)
            except _DamageError as error:
                raise ValueError(
                    f"{self.path}: is damaged or truncated after frame {index - 1}, at "
                    f"{float(end_s):.2f} s ({error}); copy it again, or write the rest "
                    "to a new file (`ffmpeg -i FILE NEW.mp4`)"
                ) from error

    def _open(self) -> InputContainer:
        try:
            container = av.open(self.path)
        except av.FFmpegError as error:
            raise ValueError(
                f"{self.path}: cannot be read as a video ({error.strerror}); its format "
                "is unknown, or it is damaged or truncated"
            ) from error
        # tty is text as ANSI art; a stream without a codec context is of a kind unknown to FFmpeg.
        streams = container.streams.video if container.format.name != "tty" else ()
        if not streams or streams[0].codec_context is None:
            container.close()
            raise ValueError(f"{self.path}: holds no video that FFmpeg can decode")
        streams[0].thread_type = "AUTO"
        return container

    def _time_s(self, time: int | None, time_base: Fraction | None, index: int) -> Fraction:
        # In the stream's time base: that of a frame differs after the decoder is flushed.
        if time is not None and time_base is not None:
            return time * time_base
        if self.frame_rate:  # a bare stream without times, such as .h264
            return index / self.frame_rate
        raise ValueError(
            f"{self.path}: frame {index} has no time stamp; convert the file to .mp4 first"
        )


class _DamageError(Exception):
    """Undecodable data."""


def _decoded(
    container: InputContainer, stream: VideoStream
) -> Iterator[tuple[av.VideoFrame, int | None]]:
    """(frame, time) up to the first damage; raises _DamageError there."""
    damage, packets, times = None, 0, FrameTimes(container.format.name)
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                damage = "incomplete data"
                break
            packets += packet.dts is not None  # the last one flushes the decoder
            times.add_packet(packet)
            for frame in _undamaged(packet.decode()):
                yield frame, times.time_of(frame)
        damage = damage or _missing_packets(container, stream, packets)
    except av.FFmpegError as error:
        damage = str(error.strerror)
    if damage is not None:
        with suppress(av.FFmpegError):  # frames still in the decoder's reorder buffer
            for frame in _undamaged(stream.codec_context.decode(None)):
                yield frame, times.time_of(frame)
        raise _DamageError(damage)


def _missing_packets(container: InputContainer, stream: VideoStream, packets: int) -> str | None:
    """Remark on an MP4 or MOV that ended before its index; FFmpeg passes over what is not there.

    The index has what an edit list leaves, unlike the number of frames that the file states.
    """
    stated = len(stream.index_entries) if "mp4" in container.format.name.split(",") else 0
    return f"it has {packets} of its {stated} frames" if packets < stated else None


def _undamaged(frames: Sequence[Any]) -> Iterator[av.VideoFrame]:
    for frame in frames:
        if frame.is_corrupt:
            raise _DamageError("incomplete data")
        yield frame


def stated_end_s(stream: VideoStream) -> Fraction | None:
    """End of the last frame as a file states it, s; None if it does not."""
    if stream.duration is not None and stream.time_base is not None:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    if "DURATION" in stream.metadata:  # of Matroska and WebM: 00:00:02.400000000
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    return None


def _check_end(stream: VideoStream, end_s: Fraction) -> None:
    """Compare the last frame's end with the stated duration: some formats hide truncation.

    Raises:
        _DamageError: the last frame ends well before the stated end.
    """
    expected_s = stated_end_s(stream)
    if expected_s is not None and end_s + END_TOLERANCE_S < expected_s:
        raise _DamageError(f"it should last until {float(expected_s):.2f} s")


def _upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels, rotated by the display matrix in multiples of 90 degrees."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _check_size(pixels: np.ndarray, size: tuple[int, int], name: str, first: str) -> None:
    width, height = pixels.shape[1], pixels.shape[0]
    if (width, height) != size:
        raise ValueError(
            f"{name} is {width} x {height} px, but {first} is {size[0]} x {size[1]}: give frames "
            "of another size as a source of their own, or resize them"
        )
