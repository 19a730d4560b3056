"""Packets and frames of a video stream -> presentation times, in units of its time base."""

from __future__ import annotations

from collections import deque

import av

WITHOUT_TIMES = ("avi",)  # containers that store an order of packets, but no presentation times


class FrameTimes:
    """Times of decoded frames.

    In a container without presentation times FFmpeg guesses them, and wrongly where frames are
    reordered. As every packet is shown for its own time, frame n has the n-th decoding time there.
    Elsewhere the rule is that of FFmpeg's best-effort time stamps (guess_correct_pts in decode.c):
    presentation times, unless they failed to increase more often than decoding times.

    Args:
        container_format: name of the container's format, as FFmpeg gives it.
    """

    def __init__(self, container_format: str) -> None:
        self._in_order = container_format in WITHOUT_TIMES
        self._packets: deque[int] = deque()
        self._last: dict[str, int] = {}
        self._faults = {"pts": 0, "dts": 0}

    def add_packet(self, packet: av.Packet) -> None:
        """Note a packet before it is decoded."""
        if self._in_order and packet.dts is not None:
            self._packets.append(packet.dts)

    def time_of(self, frame: av.VideoFrame) -> int | None:
        """Time of the next frame; None if unknown."""
        if self._in_order:
            return self._packets.popleft() if self._packets else None
        pts, dts = frame.pts, frame.dts
        for kind, value in (("pts", pts), ("dts", dts)):
            if value is not None:
                self._faults[kind] += value <= self._last.get(kind, value - 1)
                self._last[kind] = value
        is_trusted = self._faults["pts"] <= self._faults["dts"]
        return pts if pts is not None and (is_trusted or dts is None) else dts
