"""Facts about a source of frames that its video with boxes has to keep: clock, end, shape."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from v2i_runtime.camera import TIME_BASE as CAMERA_TIME_BASE
from v2i_runtime.sources import FrameSource, ImageFiles, VideoFile, stated_end_s

# Largest time scale, Hz: an MP4 of FFmpeg takes no frame longer than 2^31 ticks, here 214 s.
FINEST = 10_000_000


@dataclass(frozen=True)
class VideoFacts:
    """Facts about a source.

    Attributes:
        time_base: s; every frame's time is a multiple of it, unless that is below 100 ns.
        end_s: end of the last frame; None if unknown.
        pixel_aspect: width of a pixel divided by its height, upright.
        interlaced: whether a frame holds two fields of different times.
        audio: video file that has sound; None without.
    """

    time_base: Fraction
    end_s: Fraction | None = None
    pixel_aspect: Fraction = Fraction(1)
    interlaced: bool = False
    audio: Path | None = None


def facts_of(source: FrameSource) -> VideoFacts:
    """Facts about a source; reads the first frame of a video file."""
    if isinstance(source, VideoFile):
        return _of_video(source)
    if isinstance(source, ImageFiles) and source.frame_rate and source.num_frames:
        period_s = 1 / Fraction(source.frame_rate)
        return VideoFacts(_time_base(period_s), source.num_frames * period_s)
    return VideoFacts(CAMERA_TIME_BASE)


def _of_video(source: VideoFile) -> VideoFacts:
    with av.open(source.path) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        sideways = round(frame.rotation / 90) % 2 == 1
        unit_s = stream.time_base or CAMERA_TIME_BASE
        if frame.pts is None and source.frame_rate:  # a bare stream, whose frames are counted
            unit_s = 1 / source.frame_rate
        return VideoFacts(
            time_base=_time_base(unit_s),
            end_s=stated_end_s(stream),
            pixel_aspect=1 / aspect if sideways else aspect,
            interlaced=frame.interlaced_frame,
            audio=source.path if container.streams.audio else None,
        )


def _time_base(unit_s: Fraction) -> Fraction:
    """A time base for multiples of a time, for a whole number of ticks a second."""
    return Fraction(1, min(unit_s.denominator, FINEST))
