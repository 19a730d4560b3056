"""Laparoscopic instruments, drawn over an image: a shaft from the border and a tip of its own kind.

Shapes are in half widths of the shaft at the tip: s along the tool, 0 where the shaft ends and
rising towards the tissue, d across it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .fields import Array
from .surgery import Tool

STEEL = (0.62, 0.62, 0.64)
CERAMIC = (0.93, 0.92, 0.88)
DARK = (0.10, 0.10, 0.11)
WIDENING = 0.9  # of the shaft, per image height behind the tip: it is nearer to the camera


@dataclass(frozen=True)
class Instruments:
    """Look of the instruments of one operation, colours in [0, 1]."""

    shaft: dict[Tool, Array]
    steel: Array
    insulation: Array  # of the bipolar forceps
    thickness: float  # half width, in image heights
    mirrored: float  # 1 or -1: side of the bent tips


@dataclass(frozen=True)
class Pose:
    """Entry of the shaft and place of the tip, px (x, y), and how far the jaws are open, 0 to 1."""

    entry: tuple[float, float]
    tip: tuple[float, float]
    opening: float = 0.3


def make_instruments(rng: np.random.Generator) -> Instruments:
    """Instruments of one operation."""
    black = np.array(DARK) * rng.uniform(0.7, 2.2)
    grey = np.array(STEEL) * rng.uniform(0.55, 1.1)
    blue = np.array([0.16, 0.26, 0.55]) * rng.uniform(0.6, 1.3)
    green = np.array([0.22, 0.42, 0.32]) * rng.uniform(0.6, 1.2)
    return Instruments(
        shaft={
            "grasper": grey if rng.random() < 0.6 else black,
            "hook": black,
            "bipolar": blue if rng.random() < 0.5 else black,
            "clipper": grey * 1.1,
            "scissors": grey if rng.random() < 0.4 else black,
            "irrigator": grey,
        },
        steel=np.array(STEEL) * rng.uniform(0.8, 1.2),
        insulation=blue if rng.random() < 0.7 else green,
        thickness=float(rng.uniform(0.026, 0.040)),
        mirrored=float(rng.choice([-1.0, 1.0])),
    )


def draw_tool(image: Array, tool: Tool, pose: Pose, look: Instruments) -> None:
    """Draw a tool and its shadow over an image (H, W, 3), in place."""
    height = len(image)
    axis = np.subtract(pose.tip, pose.entry)
    axis = axis / (np.hypot(*axis) + 1e-6)
    half = look.thickness * height * {"clipper": 1.25, "irrigator": 0.75}.get(tool, 1.0)
    parts = _tip(tool, pose.opening, look)
    reach = max(float(np.max(shape[:, 0])) for shape, _ in parts)
    root = np.subtract(pose.tip, axis * reach * half)  # end of the shaft

    y, x = np.mgrid[:height, : image.shape[1]].astype(np.float32)
    x, y = x - np.float32(root[0]), y - np.float32(root[1])
    cos, sin = axis.astype(np.float32)
    s = x * cos + y * sin
    d = (y * cos - x * sin) / np.float32(half)
    across = d / (1 + WIDENING * np.maximum(-s, 0) / height)
    shaft = np.clip((1 - np.abs(across)) * half, 0, 1) * (s < 0.5)
    masks = [(shaft, look.shaft[tool], across)]
    for shape, colour in parts:
        points = root + half * (shape[:, :1] * axis + shape[:, 1:] * [-axis[1], axis[0]])
        mask = np.zeros(image.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        middle, spread = np.float32(shape[:, 1].mean()), np.float32(np.ptp(shape[:, 1]) / 2 + 0.1)
        masks.append((mask.astype(np.float32) / 255, colour, (d - middle) / spread))
    _cast_shadow(image, masks, height)
    for mask, colour, place in masks:
        seen = mask > 0
        image[seen] += (_cylinder(np.asarray(colour), place[seen]) - image[seen]) * mask[seen, None]


def _cast_shadow(image: Array, masks: Sequence[tuple[Array, Array, Array]], height: int) -> None:
    """Darken the tissue below and beside the tool."""
    covered = np.max([mask for mask, *_ in masks], axis=0)
    shift = max(1, round(0.025 * height))
    shadow = cv2.blur(covered, (2 * shift + 1, 2 * shift + 1))
    shadow = np.roll(cv2.blur(shadow, (shift, shift)), (shift, shift), (0, 1))
    image *= 1 - 0.55 * shadow[..., None]


def _cylinder(colour: Array, across: Array) -> Array:
    """Colours (n, 3) of a shiny cylinder at positions (n,) across it, -1 to 1."""
    across = np.clip(across, -1, 1)
    round_ = 0.30 + 0.75 * np.sqrt(1 - across**2)
    shine = 0.45 * np.exp(-(((across + 0.35) / 0.16) ** 2)) * (0.25 + colour.mean())
    return (colour * round_[..., None] + shine[..., None]).astype(np.float32)


def _tip(tool: Tool, opening: float, look: Instruments) -> list[tuple[Array, Array]]:
    """Shapes (n, 2) in s and d, with their colours, from back to front."""
    steel, dark = look.steel, np.array(DARK)
    side = look.mirrored
    if tool == "hook":
        cone = _shape((-0.2, 1.0), (3.5, 0.75), (6.5, 0.3), (6.5, -0.3), (3.5, -0.75), (-0.2, -1.0))
        wire = _shape((6.3, 0.16), (8.6, 0.16), (8.6, -0.16), (6.3, -0.16))
        bent = _shape((8.3, 0.16), (8.3, -1.5), (8.7, -1.5), (8.7, 0.16)) * [1, side]
        return [(wire, steel), (bent, steel), (cone, np.array(CERAMIC))]
    if tool == "irrigator":
        tube = _shape((-0.5, 1.0), (5, 1.0), (5.6, 0.6), (5.6, -0.6), (5, -1.0), (-0.5, -1.0))
        holes = [
            (_shape((p, 0.35), (p + 0.6, 0.35), (p + 0.6, -0.2), (p, -0.2)), dark)
            for p in (2.2, 3.4, 4.5)
        ]
        return [(tube, steel), *holes]
    joint = (_shape((-0.3, 1.0), (1.2, 0.8), (1.2, -0.8), (-0.3, -1.0)), 0.8 * steel)
    if tool == "grasper":
        return [*_jaws(6.0, 0.85, 0.45, opening, steel, hole=dark), joint]
    if tool == "scissors":
        return [*_jaws(5.5, 0.55, 0.08, 0.4 + opening, 1.1 * steel), joint]
    if tool == "clipper":
        jaws = _jaws(5.0, 0.75, 0.65, 0.12 + 0.2 * opening, steel)
        return [*((shape + [0, side * 0.02] * shape[:, :1] ** 2, c) for shape, c in jaws), joint]
    tips = _jaws(4.5, 1.0, 0.6, 0.7 * opening, 0.9 * steel)
    cuff = _shape((-1.5, 1.25), (2.0, 1.15), (2.0, -1.15), (-1.5, -1.25))
    return [*tips, (cuff, look.insulation)]


def _jaws(
    length: float, base: float, end: float, opening: float, colour: Array, hole: Array | None = None
) -> list[tuple[Array, Array]]:
    """Two jaws that are open by an angle, perhaps each with a window."""
    shapes = []
    for side in (1, -1):
        angle = side * 0.45 * opening
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        jaw = _shape((0.6, 0.0), (0.8, base), (length - 0.4, end), (length, 0.1), (length, 0.0))
        shapes.append(((jaw * [1, side]) @ turn.T, colour))
        if hole is not None:
            window = _shape((2.0, 0.2), (2.0, 0.55), (4.4, 0.42), (4.4, 0.2))
            shapes.append(((window * [1, side]) @ turn.T, hole))
    return shapes


def _shape(*points: tuple[float, float]) -> Array:
    return np.array(points, np.float64)
