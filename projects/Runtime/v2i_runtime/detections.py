"""Detections of one frame, and the interface of whatever finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

Found = TypeVar("Found", bound="Detections")


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

    def above(self: Found, score_threshold: float) -> Found:
        """The detections with at least this score."""
        kept = self.scores >= score_threshold
        return replace(
            self,
            scores=self.scores[kept],
            classes=self.classes[kept],
            boxes_xyxy_px=self.boxes_xyxy_px[kept],
        )


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


def checked_frame(frame: Any, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """The frame, if it is an RGB image of 8 bits.

    Args:
        frame: array.
        name: subject of messages, such as "the frame".

    Raises:
        ValueError: it is not.
    """
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"{name} is {type(frame).__name__}; give a NumPy array (H, W, 3)")
    shape = " x ".join(map(str, frame.shape))
    if frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
        raise ValueError(f"{name} is grey ({shape}); repeat it: np.dstack([frame] * 3)")
    if frame.ndim == 3 and frame.shape[2] == 4:
        raise ValueError(f"{name} has an alpha channel ({shape}); give its RGB channels alone")
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"{name} is {shape}, but must be height x width x 3 (RGB)")
    if frame.size == 0:
        raise ValueError(f"{name} is empty ({shape})")
    if frame.dtype != np.uint8:
        raise ValueError(f"{name} has {frame.dtype} values, but must have uint8 ones, 0 to 255")
    return frame
