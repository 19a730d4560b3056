"""Frames one by one -> detections, ids of lesions and smooth boxes, on every Nth frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from v2i_runtime.detections import Detections, FrameDetector
from v2i_runtime.sources import SourceFrame
from v2i_runtime.tracking import NO_ID, BoxSmoother, Tracker


@dataclass(frozen=True)
class FramePrediction:
    """A frame with its detections.

    Attributes:
        index: number of the frame in its source, from 0.
        frame: the frame.
        detections: those with at least the score threshold, best first.
        ids: id of the lesion of each detection, or `NO_ID`.
        detected: False if the detector did not see this frame: detections of an earlier one.
    """

    index: int
    frame: SourceFrame
    detections: Detections
    ids: Int[np.ndarray, " n"]
    detected: bool = True


class Predictor:
    """Frames in temporal order -> predictions.

    Args:
        detector: detector.
        score_threshold: least score.
        every: the detector sees the first frame and every Nth after it.
        tracker: gives ids; None for none.
        smoother: averages boxes of an id; None for raw boxes. Needs a tracker.
    """

    def __init__(
        self,
        detector: FrameDetector,
        score_threshold: float,
        *,
        every: int = 1,
        tracker: Tracker | None = None,
        smoother: BoxSmoother | None = None,
    ) -> None:
        self._detector, self._threshold, self._every = detector, score_threshold, every
        self._tracker, self._smoother = tracker, smoother
        self._count, self._last = 0, None

    def __call__(self, index: int, frame: SourceFrame) -> FramePrediction:
        """The prediction of the next frame."""
        count, self._count = self._count, self._count + 1
        if self._last is not None and count % self._every:
            return replace(self._last, index=index, frame=frame, detected=False)
        detections = self._detector([frame.pixels])[0].above(self._threshold)
        ids = np.full(len(detections), NO_ID, np.int64)
        if self._tracker is not None:
            ids = self._tracker(detections, float(frame.time_s))
        if self._smoother is not None:
            detections = self._smoother(detections, ids)
        self._last = FramePrediction(index, frame, detections, ids)
        return self._last
