"""A camera as a source of frames."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

import cv2
import numpy as np

from v2i_runtime.sources import SourceFrame

TIME_BASE = Fraction(1, 1_000_000)  # s
HIGHEST_RATE = 1000.0  # Hz


class Camera:
    """Frames of a camera, stamped with the time of their arrival since the first one.

    The source never ends by itself.

    Args:
        index: number of the camera, as in /dev/video0.

    Raises:
        ValueError: no such camera, or no frame from it; during iteration: it stops.
    """

    live = True

    def __init__(self, index: int) -> None:
        self.index = index
        self._capture = cv2.VideoCapture(index)
        read, pixels = self._capture.read()
        if not read:
            self._capture.release()
            raise ValueError(
                f"camera {index}: no frame can be read; check that it is connected, not in use by "
                "another program, and that its number is right"
            )
        self.size = pixels.shape[1], pixels.shape[0]
        rate = self._capture.get(cv2.CAP_PROP_FPS)  # a driver without one gives 0, -1, NaN or inf
        known = 0 < rate <= HIGHEST_RATE
        self.frame_rate: Fraction | None = Fraction(rate).limit_denominator(1001) if known else None
        self.num_frames: int | None = None

    def __iter__(self) -> Iterator[SourceFrame]:
        index, start_ns = 0, None
        try:
            while True:
                read, pixels = self._capture.read()
                now_ns = time.monotonic_ns()
                if not read:
                    raise ValueError(
                        f"camera {self.index}: no more frames after frame {index - 1}; "
                        "check its connection"
                    )
                start_ns = now_ns if start_ns is None else start_ns
                time_s = (now_ns - start_ns) // 1000 * TIME_BASE
                rgb = np.ascontiguousarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
                yield SourceFrame(rgb, time_s, f"camera{self.index}_{index:06d}")
                index += 1
        finally:
            self._capture.release()
