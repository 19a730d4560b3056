"""Preprocessing of images as plain data: resize, normalisation, padding.

The resize is that of a run's evaluation, with the output size and the pixels of its Detectron2
transform.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# RGB, for pixels in [0, 255].
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class NoResize:
    """Every image keeps its size."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize, px."""
        return height, width


@dataclass(frozen=True)
class FixedSize:
    """Every image is resized to ``height_px`` x ``width_px``."""

    height_px: int
    width_px: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize, px."""
        return self.height_px, self.width_px


@dataclass(frozen=True)
class ShortestEdge:
    """The shorter side gets ``short_edge_px``, or less to keep the longer within ``max_size_px``.

    Both sides are rounded to the nearest multiple of ``multiple_px`` within ``max_size_px``.
    """

    short_edge_px: int
    max_size_px: int
    multiple_px: int = 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize, px."""
        # In the order of Detectron2's ResizeShortestEdge: rounding must fall to the same side.
        short = float(self.short_edge_px)
        scale = short / min(height, width)
        sides = (short, scale * width) if height < width else (scale * height, short)
        if max(sides) > self.max_size_px:
            shrink = self.max_size_px / max(sides)
            sides = (sides[0] * shrink, sides[1] * shrink)
        step, most = self.multiple_px, self.max_size_px // self.multiple_px
        steps = [min(int(int(side + 0.5) / step + 0.5), most) for side in sides]
        return step * max(1, steps[0]), step * max(1, steps[1])


Resize = NoResize | FixedSize | ShortestEdge
KINDS = {"none": NoResize, "fixed": FixedSize, "shortest_edge": ShortestEdge}


@dataclass(frozen=True)
class Preprocess:
    """Resize, then ``(pixel - mean) / std``, then zeros at the right and at the bottom.

    Attributes:
        resize: resize of images; None if unknown.
        pixel_mean, pixel_std: RGB statistics for pixels in [0, 255].
        size_divisor: divisor of padded image sizes, px.

    Raises:
        ValueError: a number is out of range.
    """

    resize: Resize | None
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD
    size_divisor: int = 32

    def __post_init__(self) -> None:
        for key, numbers in (("pixel_mean", self.pixel_mean), ("pixel_std", self.pixel_std)):
            if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{key} is {list(numbers)}, but must be three numbers")
        if min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_std is {list(self.pixel_std)}, but must be above 0")
        sizes = {} if self.resize is None else asdict(self.resize)
        for key, size in {**sizes, "size_divisor": self.size_divisor}.items():
            if size < 1:
                raise ValueError(f"{key} is {size}, but must be at least 1")

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of an image after the resize, before padding.

        Args:
            height, width: image size, px.

        Returns:
            (height, width), px.

        Raises:
            ValueError: the resize is unknown.
        """
        if self.resize is None:
            raise ValueError(
                "the input size is unknown: it is not in the weights. Publish them again "
                "from the run that trained them (tools/convert_checkpoint.py)."
            )
        return self.resize.size(height, width)

    def resized(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """An image after the resize, before normalisation and padding; may be ``pixels`` itself.

        Raises:
            ValueError: the resize is unknown.
        """
        height, width = self.resized_size(*pixels.shape[:2])
        if pixels.shape[:2] == (height, width):
            return pixels
        # As Detectron2's ResizeTransform: another library's bilinear filter gives other pixels.
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image)

    def to_json(self) -> dict[str, Any]:
        """JSON values for :meth:`from_json`."""
        content = asdict(self)
        for kind, cls in KINDS.items():
            if isinstance(self.resize, cls):
                content["resize"] = {"kind": kind, **content["resize"]}
        return content | {key: list(content[key]) for key in ("pixel_mean", "pixel_std")}

    @classmethod
    def from_json(cls, content: Any) -> Preprocess:
        """The preprocessing of an output of :meth:`to_json`.

        Raises:
            ValueError: ``content`` is not such an output.
        """
        try:
            resize = content["resize"]
            if resize is not None:
                sizes = {key: _whole(size) for key, size in resize.items() if key != "kind"}
                resize = KINDS[resize["kind"]](**sizes)
            mean, std = _numbers(content["pixel_mean"]), _numbers(content["pixel_std"])
            return cls(resize, mean, std, _whole(content["size_divisor"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{content!r:.200} is not a preprocessing: {error}") from error


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def _numbers(values: Any) -> tuple[float, ...]:
    if not all(type(value) in (int, float) for value in values):
        raise TypeError(f"{values!r} are not numbers")
    return tuple(float(value) for value in values)
