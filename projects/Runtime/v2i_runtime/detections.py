"""Detections of one frame, and the interface of whatever finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8


@dataclass(frozen=True)
class Detections:
    """Detections of one frame, best first.

    Attributes:
        scores: in [0, 1].
        classes: 0-based index into the class names.
        boxes_xyxy_px: pixels of the frame, clipped to it.
    """

    scores: Float[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]
    boxes_xyxy_px: Float[np.ndarray, "n 4"]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score_threshold: float) -> Detections:
        """The detections with at least this score."""
        kept = self.scores >= score_threshold
        return Detections(self.scores[kept], self.classes[kept], self.boxes_xyxy_px[kept])


@runtime_checkable
class FrameDetector(Protocol):
    """RGB frames -> detections, whatever computes them.

    Attributes:
        class_names: class names by index.
        score_threshold: threshold chosen on validation data; None if unknown.
    """

    class_names: list[str]
    score_threshold: float | None

    def __call__(self, frames: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Detections]: ...
