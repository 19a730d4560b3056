"""Frames as JPEG inside the page, and boxes over them as SVG.

A panel is 320 units wide for all frame sizes, so that lines and text have one size. Each frame is
stored once and referenced by its id.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from v2i_runtime.image_files import jpeg_thumbnail

PANEL_WIDTH = 320
MOST_PIXELS_WIDE = 480  # larger frames are scaled down for the page
QUALITY = 88


@dataclass(frozen=True)
class Box:
    """A rectangle in panel units; ``kind`` is "truth" or a stage's name."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class StoredFrame:
    """A stored frame: its id in the page and its height in panel units."""

    key: str
    height: float
    scale: float  # panel units per pixel of the frame

    def box(self, kind: str, corners_px: Float[np.ndarray, "4"], label: str = "") -> Box:
        """An xyxy box in pixels of the frame -> panel units."""
        x0, y0, x1, y1 = (corners_px.astype(float) * self.scale).round(2).tolist()
        return Box(kind, x0, y0, round(x1 - x0, 2), round(y1 - y0, 2), label)

    def boxes(
        self, kind: str, boxes_xyxy_px: Float[np.ndarray, "n 4"], labels: Iterable[str]
    ) -> list[Box]:
        """All boxes of one kind."""
        return [self.box(kind, c, label) for c, label in zip(boxes_xyxy_px, labels, strict=True)]


@dataclass
class Album:
    """All frames of the page: id -> (data URI, height in panel units)."""

    stored: dict[str, tuple[str, float]] = field(default_factory=dict)
    _keys: dict[bytes, str] = field(default_factory=dict)

    def add(self, pixels: UInt8[np.ndarray, "H W 3"]) -> StoredFrame:
        """Store a frame, once."""
        height, width = pixels.shape[:2]
        data = jpeg_thumbnail(pixels, max_width=MOST_PIXELS_WIDE, quality=QUALITY)
        key = self._keys.setdefault(data, f"frame{len(self._keys)}")
        panel_height = round(PANEL_WIDTH * height / width, 2)
        uri = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        self.stored[key] = (uri, panel_height)
        return StoredFrame(key, panel_height, PANEL_WIDTH / width)
