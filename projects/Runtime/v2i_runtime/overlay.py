"""Boxes, scores and trails of lesions, drawn on the frames of a video.

Line width and text size follow the frame's shorter side. A score stands above its box, below, or
inside, where there is room. A box whose frame the detector did not see is reduced to its corners.
The trail is the path of a lesion's box centre in the last second, thinner where it is older.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from v2i_runtime.detections import Detections
from v2i_runtime.frame_text import FrameText
from v2i_runtime.predictor import FramePrediction
from v2i_runtime.tracking import NO_ID, as_supervision, supervision

TRAIL_S = 1.0
# RGB, bright and far from the red, pink and yellow of mucosa.
COLOURS = [(0, 229, 255), (124, 255, 80), (255, 255, 255), (120, 150, 255), (255, 110, 255)]
DARK = (16, 16, 16)
OUTLINED_PX = 240  # shorter side from which lines have a dark outline
SHIFT = 3  # fractional bits of coordinates, for OpenCV


class Overlay:
    """Draws predictions; frames have to come in temporal order.

    Args:
        size: (width, height) of the frames, px.
        class_names: class names by index; they are shown only if there are several.
        show_ids: show ids of lesions, and colour by them in place of the class.
        show_time: show the frame's time.

    Raises:
        ValueError: package supervision is missing.
    """

    def __init__(
        self,
        size: tuple[int, int],
        class_names: Sequence[str],
        *,
        show_ids: bool = False,
        show_time: bool = False,
    ) -> None:
        self._sv = sv = supervision()
        short = min(size)
        self._line_px = max(1, round(short / 240))
        self._text = FrameText(max(8, round(short / 32)))
        self._names, self._show_ids, self._show_time = list(class_names), show_ids, show_time
        # supervision paints in OpenCV's order of channels, and these frames are RGB.
        palette = sv.ColorPalette([sv.Color(r=b, g=g, b=r) for r, g, b in COLOURS])
        # Small frames have no room for an outline.
        dark = sv.Color(*DARK)
        outline_px = self._line_px + (max(2, self._line_px) if short >= OUTLINED_PX else 0)
        corner_px = max(3, round(short / 32))
        self._boxes = [
            sv.BoxAnnotator(dark, outline_px),
            sv.BoxAnnotator(palette, self._line_px),
        ]
        self._corners = [
            sv.BoxCornerAnnotator(dark, outline_px, corner_px),
            sv.BoxCornerAnnotator(palette, self._line_px, corner_px),
        ]
        self._trails: dict[int, deque[tuple[float, float, float]]] = {}

    def draw(
        self, prediction: FramePrediction, rate_hz: float | None
    ) -> UInt8[np.ndarray, "H W 3"]:
        """The frame with its predictions, as a new array.

        Args:
            prediction: frame and detections.
            rate_hz: frames processed per second, shown in a corner; None for nothing.
        """
        pixels = prediction.frame.pixels.copy()
        time_s, detections = float(prediction.frame.time_s), prediction.detections
        if prediction.detected:
            self._extend_trails(prediction, time_s)
        colours = self._colours(prediction)
        for row in reversed(range(len(detections))):
            self._draw_trail(pixels, int(prediction.ids[row]), COLOURS[colours[row]], time_s)
        self._draw_boxes(pixels, prediction, colours)
        for row in reversed(range(len(detections))):
            self._draw_label(pixels, prediction, row, COLOURS[colours[row]])
        corner = [f"{rate_hz:.0f} fps"] if rate_hz is not None else []
        corner += [f"{time_s:.2f} s"] if self._show_time else []
        if corner:
            self._text.draw(pixels, "   ".join(corner), (0, 0))
        return pixels

    def _colours(self, prediction: FramePrediction) -> np.ndarray:
        """Index of the colour of each detection."""
        classes = prediction.detections.classes
        by = np.where(prediction.ids == NO_ID, 0, prediction.ids) if self._show_ids else classes
        return by % len(COLOURS)

    def _draw_boxes(
        self, pixels: np.ndarray, prediction: FramePrediction, colours: np.ndarray
    ) -> None:
        boxes: Any = as_supervision(self._sv, prediction.detections)
        worst_first = np.arange(len(prediction.detections))[::-1]
        for annotator in self._boxes if prediction.detected else self._corners:
            annotator.annotate(
                pixels, boxes[worst_first], custom_color_lookup=colours[worst_first].astype(int)
            )

    def _draw_label(
        self,
        pixels: np.ndarray,
        prediction: FramePrediction,
        row: int,
        colour: tuple[int, int, int],
    ) -> None:
        detections, lesion = prediction.detections, int(prediction.ids[row])
        parts = [f"#{lesion}"] if self._show_ids and lesion != NO_ID else []
        parts += [self._names[int(detections.classes[row])]] if len(self._names) > 1 else []
        parts.append(f"{detections.scores[row]:.2f}")
        x1, y1, _, y2 = (round(float(value)) for value in detections.boxes_xyxy_px[row])
        gap, height = self._line_px, self._text.height_px
        above, below, inside = y1 - height - gap, y2 + gap + 1, y1 + 2 * gap
        fits = [y for y in (above, below, inside) if 0 <= y <= pixels.shape[0] - height]
        corner = (x1 - gap, fits[0] if fits else 0)
        opacity = 1.0 if prediction.detected else 0.5
        self._text.draw(pixels, " ".join(parts), corner, colour=DARK, plate=colour, opacity=opacity)

    def _extend_trails(self, prediction: FramePrediction, time_s: float) -> None:
        centres = _centres(prediction.detections)
        for lesion, (x, y) in zip(prediction.ids.tolist(), centres.tolist(), strict=True):
            if lesion != NO_ID:
                self._trails.setdefault(lesion, deque()).append((time_s, x, y))
        for lesion, trail in list(self._trails.items()):
            while trail and trail[0][0] < time_s - TRAIL_S:
                trail.popleft()
            if not trail:
                del self._trails[lesion]

    def _draw_trail(
        self, pixels: np.ndarray, lesion: int, colour: tuple[int, int, int], time_s: float
    ) -> None:
        for (before_s, *start), (_, *end) in pairwise(self._trails.get(lesion, ())):
            age = min(max((time_s - before_s) / TRAIL_S, 0.0), 1.0)
            width = max(1, round((1 - age) * 1.5 * self._line_px))
            first, second = ((round(x * 2**SHIFT), round(y * 2**SHIFT)) for x, y in (start, end))
            cv2.line(pixels, first, second, colour, width, cv2.LINE_AA, SHIFT)


def _centres(detections: Detections) -> np.ndarray:
    boxes = detections.boxes_xyxy_px.reshape(-1, 4)
    return (boxes[:, :2] + boxes[:, 2:]) / 2
