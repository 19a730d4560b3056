"""RGB frames with exact times -> an MP4 that plays everywhere: H.264, 4:2:0, BT.709.

While it is written, the video lies in a fragmented MP4 of a temporary name beside: all of it but
the last seconds can be played even after a crash or on a full disk. In the end its packets are
copied, together with the sound, to a file with its index in front (`remux`), which is read back
before it gets its name. That takes twice the space for a moment.

The first frame is at 0 s. No frame depends on a later one, so that its time is stored as it is.
4:2:0 needs even sizes: an odd frame is padded by a copy of its last column or row.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from jaxtyping import UInt8

from v2i_runtime.output_files import errors_name, temporary_name
from v2i_runtime.remux import Sound, remux

# Measured on 854 x 480 surgery, one core: superfast 5 ms a frame and 2.4 Mbit/s, veryfast 10 ms and
# 1.7 Mbit/s. The detector needs the time.
X264 = {"preset": "superfast", "crf": "20", "bf": "0"}
ENCODER_THREADS = 2
FRAGMENTS = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof",
    "frag_duration": "500000",  # at most, µs
    "flush_packets": "1",
}
KEYFRAME_PERIOD_S = 2
DEFAULT_RATE = Fraction(25)  # Hz


@dataclass
class Written:
    """What a video file must hold.

    Attributes:
        frames: number of frames.
        sum_of_times: sum of the frames' times, in units of the time base.
        end: end of the last frame, in units of the time base.
    """

    frames: int = 0
    sum_of_times: int = 0
    end: int = 0


class VideoWriter:
    """Writer of one MP4.

    Args:
        path: file to write.
        size: (width, height) of every frame, px.
        time_base: s; frame times are rounded to it.
        frame_rate: mean frame rate, Hz, for the bit rate alone; None if unknown.
        pixel_aspect: width of a pixel divided by its height.

    Attributes:
        kept: number of frames in the file after an error of `finish`; 0: there is no file.
        late: number of frames that were not later than the one before, and were moved behind it.

    Raises:
        ValueError: this build of FFmpeg has no encoder for H.264, or none for this size.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        *,
        time_base: Fraction,
        frame_rate: Fraction | None = None,
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        check_encoder()
        self.path, self.late, self.kept = path, 0, 0
        self._fragments = temporary_name(path)
        self._time_base, self._size, self._written = time_base, size, Written()
        self._waiting: av.VideoFrame | None = None
        self._durations: deque[int] = deque()  # of frames inside the encoder
        self._first_s: Fraction | None = None
        self._period = max(1, round(1 / (frame_rate or DEFAULT_RATE) / time_base))
        self._reformatter = VideoReformatter()
        self._failure: Exception | None = None  # of the container, which must not be used again
        with _errors_name(path):
            self._container = av.open(self._fragments, "w", format="mp4", options=FRAGMENTS)
        rate = (frame_rate or DEFAULT_RATE).limit_denominator(1001) or Fraction(1, 1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options=X264)
        try:
            self._open_encoder(rate, pixel_aspect)
            with _errors_name(path):
                self._container.start_encoding()
        except BaseException:
            self.discard()
            raise

    def _open_encoder(self, rate: Fraction, pixel_aspect: Fraction) -> None:
        stream, (width, height) = self._stream, self._size
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self._time_base
        context.sample_aspect_ratio = pixel_aspect
        context.gop_size = min(max(round(KEYFRAME_PERIOD_S * rate), 1), 250)
        context.thread_count = ENCODER_THREADS
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        try:
            context.open()
        except av.FFmpegError as error:
            raise ValueError(
                f"{self.path}: H.264 cannot hold frames of {width} x {height} px "
                f"({error.strerror}); give smaller frames, or leave out --output"
            ) from error

    def write(self, pixels: UInt8[np.ndarray, "H W 3"], time_s: Fraction) -> None:
        """Add a frame.

        Raises:
            ValueError: FFmpeg refuses it.
            OSError: the disk is full.
        """
        self._first_s = time_s if self._first_s is None else self._first_s
        frame = self._encodable(pixels)
        frame.time_base = self._time_base
        frame.pts = round((time_s - self._first_s) / self._time_base)
        if self._waiting is not None:
            before = self._waiting.pts or 0
            if frame.pts <= before:
                frame.pts, self.late = before + 1, self.late + 1
            self._period = frame.pts - before
            with self._failures():
                self._encode(self._waiting, self._period)
        self._waiting = frame

    def finish(self, end_s: Fraction | None = None, sound: Path | None = None) -> list[str]:
        """Complete the file and give it its name.

        Args:
            end_s: end of the last frame, on the clock of `write`; None: it lasts as long as the
                one before.
            sound: video file whose sound is copied, on the same clock.

        Returns:
            Sentences about sound that could not be copied.

        Raises:
            ValueError: the file does not hold what was written.
            OSError: the disk is full. After both errors, and those of `write`, which are raised
                again, what was written before gets the name, without sound, see `kept`.
        """
        target = temporary_name(self.path, "final.tmp")
        try:
            if self._failure is not None:
                raise self._failure
            with self._failures():
                self._end(end_s)
            with _errors_name(self.path):
                notes = remux(self._fragments, target, sound and self._excerpt(sound))
                verify(target, self._written, self._time_base, self.path)
                os.replace(target, self.path)
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                target.unlink()
            self._keep_fragments()
            raise
        self._fragments.unlink()
        return notes

    def discard(self) -> None:
        """Leave nothing behind."""
        self._close()
        self._fragments.unlink(missing_ok=True)

    def _keep_fragments(self) -> None:
        self._close()
        cut_incomplete_fragment(self._fragments)
        with contextlib.suppress(OSError, IndexError, av.FFmpegError):
            self.kept = contents(self._fragments, self._time_base).frames
        if self.kept:
            os.replace(self._fragments, self.path)
        else:
            self._fragments.unlink()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Note an error: libavformat crashes on use after a header that it could not write."""
        try:
            with _errors_name(self.path):
                yield
        except (OSError, ValueError) as error:
            self._failure = error
            raise

    def _close(self) -> None:
        with contextlib.suppress(OSError, ValueError, av.FFmpegError):
            self._container.close()

    def _end(self, end_s: Fraction | None) -> None:
        duration = self._period
        if self._waiting is not None:
            if end_s is not None and self._first_s is not None:
                until_end = round((end_s - self._first_s) / self._time_base)
                duration = until_end - (self._waiting.pts or 0)
            self._encode(self._waiting, duration if duration > 0 else self._period)
            self._waiting = None
        self._mux(self._stream.encode(None))
        self._container.close()

    def _excerpt(self, path: Path) -> Sound:
        start_s = self._first_s or Fraction(0)
        return Sound(path, start_s, start_s + self._written.end * self._time_base)

    def _encode(self, frame: av.VideoFrame, duration: int) -> None:
        self._durations.append(duration)
        self._mux(self._stream.encode(frame))
        self._written.frames += 1
        self._written.sum_of_times += frame.pts or 0
        self._written.end = (frame.pts or 0) + duration

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        for packet in packets:  # in the order of the frames, without their duration
            packet.duration = self._durations.popleft()
            self._container.mux(packet)

    def _encodable(self, pixels: UInt8[np.ndarray, "H W 3"]) -> av.VideoFrame:
        width, height = self._size
        if width % 2 or height % 2:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        return self._reformatter.reformat(
            av.VideoFrame.from_ndarray(pixels, format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Errors of FFmpeg as OSErrors, or as ValueErrors, that name `path`."""
    with errors_name(path):
        try:
            yield
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise ValueError(
                f"{path}: FFmpeg cannot write this video ({error.strerror})"
            ) from error


def check_encoder() -> None:
    """Check that H.264 can be written.

    Raises:
        ValueError: this build of FFmpeg has no encoder for it.
    """
    try:
        av.Codec("libx264", "w")
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(
            "this build of PyAV has no encoder libx264, which --output needs; install the wheel "
            "(pip install --force-reinstall --only-binary av av), or leave out --output"
        ) from error


def verify(path: Path, written: Written, time_base: Fraction, name: Path | None = None) -> None:
    """Read a video back and compare it with what was written.

    Args:
        path: video file.
        written: what it must hold.
        time_base: unit of the times, s.
        name: name of the file in messages, if it has a temporary one.

    Raises:
        ValueError: it is damaged, or differs in the number of frames, their times or the end.
    """
    try:
        found = contents(path, time_base)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(
            f"{name or path}: was written, but cannot be read back ({error}); check the disk, and "
            "try again"
        ) from error
    if found != written:
        raise ValueError(
            f"{name or path}: was written, but reading it back gives {found.frames} frames until "
            f"{float(found.end * time_base):.3f} s in place of {written.frames} until "
            f"{float(written.end * time_base):.3f} s; check the disk, and try again"
        )


def contents(path: Path, time_base: Fraction) -> Written:
    """What a video file holds up to its first damage, without decoding it.

    Raises:
        av.FFmpegError, IndexError: it is no video.
    """
    found = Written()
    with av.open(path) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.pts is None or packet.time_base is None:  # the end
                continue
            if packet.is_corrupt:
                break
            ticks = packet.time_base / time_base
            found.frames += 1
            found.sum_of_times += round(packet.pts * ticks)
            found.end = round((packet.pts + (packet.duration or 0)) * ticks)
    return found


def cut_incomplete_fragment(path: Path) -> None:
    """Cut a fragmented MP4 behind its last complete fragment: players stumble over the rest."""
    size, position, complete = path.stat().st_size, 0, 0
    with open(path, "r+b") as file:
        while len(header := file.read(16)) >= 8:
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:  # a longer field follows
                length = int.from_bytes(header[8:], "big")
            position += length
            if length < 8 or position > size:
                break
            if kind != b"moof":  # the header of a fragment, whose data follows
                complete = position
            file.seek(position)
        file.truncate(complete)
