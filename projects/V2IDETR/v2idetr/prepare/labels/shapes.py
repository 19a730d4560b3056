"""Polygons, rotated boxes, ellipses and masks -> the bounding box [x, y, w, h] around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]


def box_of_corners(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """Box of two opposite corners, in any order."""
    return [min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)]


def box_of_points(points: Sequence[Point]) -> list[float]:
    """Box around at least one point."""
    xs, ys = zip(*points, strict=True)
    return box_of_corners(min(xs), min(ys), max(xs), max(ys))


def box_of_rotated(
    xywh: Sequence[float], degrees: float, pivot: Point | None = None
) -> list[float]:
    """Box around a rotated box.

    Args:
        xywh: the box before its rotation.
        degrees: rotation, clockwise in the image.
        pivot: fixed point; None for the centre.
    """
    x, y, w, h = xywh
    cx, cy = pivot or (x + w / 2, y + h / 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
    offsets = [(a - cx, b - cy) for a, b in corners]
    return box_of_points([(cx + a * cos - b * sin, cy + a * sin + b * cos) for a, b in offsets])


def box_of_rotated_ellipse(
    centre: Point, radii: tuple[float, float], degrees: float
) -> list[float]:
    """Box around an ellipse that is rotated about its centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_w = math.hypot(radii[0] * cos, radii[1] * sin)
    half_h = math.hypot(radii[0] * sin, radii[1] * cos)
    return [centre[0] - half_w, centre[1] - half_h, 2 * half_w, 2 * half_h]


def box_of_brush(rle: Sequence[int], size: tuple[int, int]) -> list[float] | None:
    """Box around a brush mask of Label Studio; None for an empty one.

    Args:
        rle: bytes of its run-length code, the RGBA image of the mask packed with thi.ng/rle-pack: a
            header (number of values, bits of a value, four bit lengths), then runs of one value and
            runs of different ones.
        size: (width, height) of the image, px.

    Raises:
        ValueError: the code is damaged, or of another size.
    """
    width, height = size
    bits = np.unpackbits(np.array(rle, dtype=np.uint8))
    place = 0

    def read(length: int) -> int:
        nonlocal place
        part = bits[place : place + length]
        if len(part) < length:
            raise ValueError("its run-length code is cut off")
        place += length
        return int("".join(map(str, part.tolist())), 2)

    total, value_bits = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if total != 4 * width * height:
        raise ValueError(f"its run-length code is not of {width} x {height} px")
    values = np.zeros(total, dtype=np.uint32)
    done = 0
    while done < total:
        is_run = read(1)
        count = read(lengths[read(2)]) + 1
        if is_run:
            values[done : done + count] = read(value_bits)
        else:
            part = [read(value_bits) for _ in range(min(count, total - done))]
            values[done : done + len(part)] = part
        done += count
    alpha = values.reshape(height, width, 4)[..., 3] > 0
    rows, cols = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not len(rows):
        return None
    return box_of_corners(float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1))
