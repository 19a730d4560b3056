"""Folder, pattern, image or video file -> RGB frames with their time, one by one.

    open_source   the frames of whatever a path leads to
    ImageFiles    image files as the frames of a video
    VideoFile     a video file, decoded by FFmpeg (PyAV)

All frames of a source have one size. Memory does not grow with the number of frames, and every
iteration starts at the first one.
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

from v2idetr.data.frame_files import IMAGE_SUFFIXES, image_names, natural_key
from v2idetr.data.image_files import image_size, read_image

DEFAULT_RATE = Fraction(25)  # Hz, of image files
# A video whose last frame ends earlier than the file says, by more than this, is cut off.
END_TOLERANCE_S = Fraction(1, 2)


@dataclass(frozen=True)
class SourceFrame:
    """One frame.

    Attributes:
        pixels: RGB, upright.
        time_s: when it is shown, exact, as the video says; its first frame need not be at 0.
        name: of the image file, or of the video with the number of the frame.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    time_s: Fraction
    name: str


@runtime_checkable
class FrameSource(Protocol):
    """Frames in order of time.

    Attributes:
        size: (width, height) of every frame, px.
        frame_rate: frames a second, on average; None if not known.
        num_frames: as the file says, for the display of progress; None if not known.
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
        image_rate: frames a second of image files, which have no time of their own.

    Raises:
        ValueError: it leads to nothing, or to nothing that is an image or a video.
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
    else:
        raise ValueError(f"{path}: no such file or folder")
    return ImageFiles(files, frame_rate=image_rate)


class ImageFiles:
    """Image files as the frames of a video that starts at 0 s.

    Args:
        files: at least one, in order of time.
        frame_rate: frames a second.

    Raises:
        ValueError: the rate is not above 0. Iteration: a file is no image that can be used, see
            `read_image`, or has another size than the first.
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
    """The first video stream of a file, turned as its metadata says.

    More than 8 bits a channel are reduced to 8.

    Args:
        path: of the file.

    Raises:
        ValueError: the file holds no video that can be decoded. Iteration: behind the last frame
            that can be decoded, if the file is damaged or cut off there. Files that do not say how
            long they are (MPEG-TS, some WebM and MKV) may be cut off unnoticed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as container:
            stream = container.streams.video[0]
            self.frame_rate: Fraction | None = stream.average_rate or stream.guessed_rate
            self.num_frames: int | None = stream.frames or None
            try:
                height, width = _upright(next(_decoded(container, stream))).shape[:2]
            except (StopIteration, _DamageError) as error:
                raise ValueError(
                    f"{path}: no frame of this video can be decoded; it is damaged or cut off"
                ) from error
        self.size = width, height

    def __iter__(self) -> Iterator[SourceFrame]:
        index, end_s = 0, Fraction(0)
        with self._open() as container:
            stream = container.streams.video[0]
            try:
                for frame in _decoded(container, stream):
                    time_s = self._time_s(frame.pts, stream.time_base, index)
                    end_s = time_s + (frame.duration or 0) * (stream.time_base or 0)
                    pixels = _upright(frame)
                    _check_size(pixels, self.size, f"{self.path}: frame {index}", "the first frame")
                    yield SourceFrame(pixels, time_s, f"{self.path.stem}_{index:06d}")
                    index += 1
                _check_end(stream, end_s)
            except _DamageError as error:
                raise ValueError(
                    f"{self.path}: is damaged or cut off behind frame {index - 1}, at "
                    f"{float(end_s):.2f} s ({error}); copy it again, or write what is left of it "
                    "to a new file (`ffmpeg -i FILE NEW.mp4`)"
                ) from error

    def _open(self) -> InputContainer:
        try:
            container = av.open(self.path)
        except av.FFmpegError as error:
            raise ValueError(
                f"{self.path}: cannot be read as a video ({error.strerror}); it is of no known "
                "format, damaged or cut off"
            ) from error
        # tty is text as ANSI art; a stream without a codec is of a kind that FFmpeg does not know.
        streams = container.streams.video if container.format.name != "tty" else ()
        if not streams or streams[0].codec_context is None:
            container.close()
            raise ValueError(f"{self.path}: holds no video that FFmpeg can decode")
        streams[0].thread_type = "AUTO"
        return container

    def _time_s(self, pts: int | None, time_base: Fraction | None, index: int) -> Fraction:
        # In units of the stream: those of a frame are others after a decoder is emptied.
        if pts is not None and time_base is not None:
            return pts * time_base
        if self.frame_rate:  # a bare stream without times, such as .h264
            return index / self.frame_rate
        raise ValueError(f"{self.path}: frame {index} has no time; write it to an .mp4 file first")


class _DamageError(Exception):
    """Data that cannot be decoded."""


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Frames up to the first damage; raises _DamageError there."""
    damage = None
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                damage = "incomplete data"
                break
            yield from _sound(packet.decode())
    except av.FFmpegError as error:
        damage = str(error.strerror)
    if damage is not None:
        with suppress(av.FFmpegError):  # the frames that the decoder holds back to sort them
            yield from _sound(stream.codec_context.decode(None))
        raise _DamageError(damage)


def _sound(frames: Sequence[Any]) -> Iterator[av.VideoFrame]:
    for frame in frames:
        if frame.is_corrupt:
            raise _DamageError("incomplete data")
        yield frame


def _check_end(stream: VideoStream, end_s: Fraction) -> None:
    """Some formats are as good to read after half of the file, but for what they say at its start.

    Raises:
        _DamageError: the last frame ends well before the video should.
    """
    if stream.duration is not None and stream.time_base is not None:
        expected_s = ((stream.start_time or 0) + stream.duration) * stream.time_base
    elif "DURATION" in stream.metadata:  # of Matroska and WebM: 00:00:02.400000000
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        expected_s = 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    else:
        return
    if end_s + END_TOLERANCE_S < expected_s:
        raise _DamageError(f"it should last until {float(expected_s):.2f} s")


def _upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels, turned as the display matrix says: by multiples of 90 degrees."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _check_size(pixels: np.ndarray, size: tuple[int, int], name: str, first: str) -> None:
    width, height = pixels.shape[1], pixels.shape[0]
    if (width, height) != size:
        raise ValueError(
            f"{name} is {width} x {height} px, but {first} is {size[0]} x {size[1]}: give frames "
            "of another size as a source of their own, or resize them"
        )
