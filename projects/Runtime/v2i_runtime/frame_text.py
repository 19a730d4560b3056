"""Text on frames, in any script that Pillow's own font has."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

PADDING = 0.25  # of the font size
DEFAULT_OPACITY = 0.55  # of the background


class FrameText:
    """Draws lines of text on a plate.

    Args:
        size_px: font size.
    """

    def __init__(self, size_px: int) -> None:
        self._font = ImageFont.load_default(size_px)
        ascent, descent = (
            self._font.getmetrics()
            if isinstance(self._font, ImageFont.FreeTypeFont)
            else (size_px, size_px // 4)
        )
        self._padding = max(1, round(PADDING * size_px))
        self._baseline = ascent
        self.height_px = ascent + descent
        self._coverage = lru_cache(maxsize=512)(self._rendered)

    def draw(
        self,
        pixels: UInt8[np.ndarray, "H W 3"],
        text: str,
        corner: tuple[int, int],
        *,
        colour: tuple[int, int, int] = (255, 255, 255),
        plate: tuple[int, int, int] = (0, 0, 0),
        opacity: float = DEFAULT_OPACITY,
    ) -> None:
        """Draw a line of text, moved so that it lies within the frame, or cut off at its right.

        Args:
            pixels: RGB frame, changed in place.
            text: one line.
            corner: (x, y) of the plate's upper left corner, px.
            colour, plate: RGB colours of text and plate.
            opacity: opacity of the plate, in [0, 1].
        """
        ink = self._coverage(text)
        x = max(0, min(corner[0], pixels.shape[1] - ink.shape[1]))
        y = max(0, min(corner[1], pixels.shape[0] - ink.shape[0]))
        region = pixels[y : y + ink.shape[0], x : x + ink.shape[1]]
        ink = ink[: region.shape[0], : region.shape[1], None]
        background = region * (1 - opacity) + np.asarray(plate, np.float32) * opacity
        region[...] = (background + (np.asarray(colour) - background) * ink + 0.5).astype(np.uint8)

    def _rendered(self, text: str) -> Float[np.ndarray, "h w"]:
        width = round(self._font.getlength(text)) + 2 * self._padding
        image = Image.new("L", (width, self.height_px))
        position = (self._padding, self._baseline)
        ImageDraw.Draw(image).text(position, text, fill=255, font=self._font, anchor="ls")
        return np.asarray(image, np.float32) / 255
