"""Facts about a source of frames that its video with boxes has to keep: clock, end, shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from v2i_runtime.camera import TIME_BASE as CAMERA_TIME_BASE
from v2i_runtime.sources import FrameSource, ImageFiles, VideoFile, stated_end_s

FINEST = 2**31 - 1  # largest time scale of an MP4, Hz


@dataclass(frozen=True)
class VideoFacts:
    """Facts about a source.

    Attributes:
        time_base: s; every frame's time is a multiple of it.
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
        return VideoFacts(
            _common(Fraction(1, period_s.denominator), None), source.num_frames * period_s
        )
    return VideoFacts(CAMERA_TIME_BASE)


def _of_video(source: VideoFile) -> VideoFacts:
    with av.open(source.path) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        sideways = round(frame.rotation / 90) % 2 == 1
        return VideoFacts(
            time_base=_common(stream.time_base or CAMERA_TIME_BASE, source.frame_rate),
            end_s=stated_end_s(stream),
            pixel_aspect=1 / aspect if sideways else aspect,
            interlaced=frame.interlaced_frame,
            audio=source.path if container.streams.audio else None,
        )


def _common(time_base: Fraction, rate: Fraction | None) -> Fraction:
    """A time base for a stream's own clock and, where it has none, for frames at a fixed rate."""
    scale = math.lcm(time_base.denominator, rate.numerator if rate else 1)
    if scale <= FINEST:
        return Fraction(1, scale)
    return Fraction(1, min(time_base.denominator, FINEST))
