"""Detections of a frame together with the frame, which draw themselves in a notebook."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from v2i_runtime.detections import Detections
from v2i_runtime.image_files import jpeg_thumbnail
from v2i_runtime.overlay import Overlay
from v2i_runtime.predictor import FramePrediction
from v2i_runtime.sources import SourceFrame
from v2i_runtime.tracking import NO_ID

JPEG_QUALITY = 92


@dataclass(frozen=True, repr=False)
class FrameDetections(Detections):
    """Detections of one frame, best first, and the frame.

    Attributes:
        scores: in [0, 1].
        classes: 0-based index into the class names.
        boxes_xyxy_px: pixels of the frame, clipped to it.
        frame: the frame, with its time and name.
        class_names: class names by index.
    """

    frame: SourceFrame
    class_names: list[str]

    @property
    def labels(self) -> list[str]:
        """Class name of each detection."""
        return [self.class_names[index] for index in self.classes]

    def draw(self) -> UInt8[np.ndarray, "H W 3"]:
        """The frame with its detections, RGB, as a new array.

        Raises:
            ValueError: package supervision is missing.
        """
        pixels = self.frame.pixels
        overlay = Overlay((pixels.shape[1], pixels.shape[0]), self.class_names)
        ids = np.full(len(self), NO_ID, np.int64)
        return overlay.draw(FramePrediction(0, self.frame, self, ids), None)

    def __repr__(self) -> str:
        found = [
            f"{label} {score:.2f} at ({', '.join(f'{side:.0f}' for side in box)}) px"
            for label, score, box in zip(self.labels, self.scores, self.boxes_xyxy_px, strict=True)
        ]
        name = self.frame.name or "the frame"
        return f"{len(self)} in {name}" + "".join(f"\n  {line}" for line in found)

    def _repr_jpeg_(self) -> bytes:
        drawn = self.draw()
        return jpeg_thumbnail(drawn, max_width=drawn.shape[1], quality=JPEG_QUALITY)
