"""Frames of a source between two of its times."""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction

from v2i_runtime.sources import FrameSource, SourceFrame
from v2i_runtime.video_facts import VideoFacts


class Excerpt:
    """The frames with start_s <= time_s < end_s.

    Args:
        source: frames.
        facts: facts about the source.
        start_s, end_s: times on the clock of the source; None for its beginning and end.

    Attributes:
        last_ends_s: end of the last frame, once all frames were given; None if unknown.
        seen_s: times of the first and of the last frame that were read, also outside.
    """

    def __init__(
        self,
        source: FrameSource,
        facts: VideoFacts,
        start_s: Fraction | None = None,
        end_s: Fraction | None = None,
    ) -> None:
        self.source, self._facts = source, facts
        self._start_s, self._end_s = start_s, end_s
        self.last_ends_s: Fraction | None = None
        self.seen_s: tuple[Fraction, Fraction] | None = None

    def frames(self) -> Generator[tuple[int, SourceFrame], None, None]:
        """(number in the source, frame), in temporal order."""
        for index, frame in enumerate(self.source):
            time_s = frame.time_s
            self.seen_s = (self.seen_s or (time_s, time_s))[0], time_s
            if self._end_s is not None and time_s >= self._end_s:
                self.last_ends_s = time_s
                return
            if self._start_s is None or time_s >= self._start_s:
                yield index, frame
        self.last_ends_s = self._facts.end_s

    @property
    def num_frames(self) -> int | None:
        """Expected number of frames, for progress; None if unknown."""
        total, rate = self.source.num_frames, self.source.frame_rate
        if self._start_s is None and self._end_s is None:
            return total
        end_s = self._end_s
        if end_s is None and total is not None and rate:
            end_s = total / rate
        if end_s is None or not rate:
            return None
        return max(1, round((end_s - (self._start_s or 0)) * rate))
