"""Organs of one synthetic operation: layers of colour and opacity with baked shading.

Positions are (x, y) in heights of the scene, which is 4/3 wide: the liver above, fat below, the
gallbladder hanging from the liver with its neck near the middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .fields import Array, fractal_noise, smoothstep

Mask = NDArray[np.bool_]

LIVER = np.array([[0.34, 0.12, 0.10], [0.24, 0.07, 0.07], [0.44, 0.22, 0.16], [0.32, 0.17, 0.16]])
GALLBLADDER = np.array(
    [[0.72, 0.60, 0.52], [0.62, 0.62, 0.50], [0.70, 0.48, 0.48], [0.55, 0.60, 0.56]]
)
FAT = np.array([[0.90, 0.62, 0.24], [0.95, 0.76, 0.44], [0.80, 0.44, 0.18], [0.88, 0.70, 0.50]])
WALL = np.array([[0.52, 0.20, 0.16], [0.62, 0.30, 0.20], [0.44, 0.20, 0.22]])
RAW = np.array([[0.42, 0.10, 0.09], [0.30, 0.11, 0.09], [0.50, 0.22, 0.16]])
CHAR = np.array([0.16, 0.08, 0.06])
NECK = (0.62, 0.60)  # where duct and artery meet the gallbladder


@dataclass(frozen=True)
class Layer:
    """Colour (H, W, 3) and opacity (H, W, 1) of the scene, both in [0, 1]."""

    colour: Array
    alpha: Array


@dataclass(frozen=True)
class Anatomy:
    """Layers of one operation, from back to front, and where things are.

    Attributes:
        back: abdominal wall, liver and fat.
        bed: raw surface of the liver below the gallbladder.
        stalk: cystic duct and artery.
        gallbladder: attached, before the dissection.
        cover: fat and peritoneum over the duct.
        detach: order (H, W, 1) in which the bed is laid bare, 0 to 1.
        axis: direction of the gallbladder from neck to fundus, radians.
        length: of the gallbladder.
    """

    back: Array
    bed: Layer
    stalk: Layer
    gallbladder: Layer
    cover: Layer
    detach: Array
    axis: float
    length: float


def make_anatomy(rng: np.random.Generator, height: int) -> Anatomy:
    """Organs of one operation.

    Args:
        rng: decides on shapes, colours and textures.
        height: of the scene, px; it is 4/3 as wide.
    """
    width = height * 4 // 3
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    broad = fractal_noise(rng, (height, width), slope=1.8, band=(1, 30))
    fine = fractal_noise(rng, (height, width), slope=1.0, band=(6, 90))
    lumps = fractal_noise(rng, (height, width), slope=1.6, band=(4, 16))

    wall = _mixed(rng, WALL) * (0.75 + 0.10 * broad[..., None] + 0.06 * fine[..., None])
    liver = _liver(rng, x, y, broad, fine)
    fat = _fat(rng, x, y, lumps, fine)
    back = over(over(wall, liver), fat)

    axis = float(rng.uniform(-1.95, -1.25))
    length = float(rng.uniform(0.30, 0.42))
    girth = float(rng.uniform(0.085, 0.125))
    along, across = _along(x, y, axis)
    across = across + rng.uniform(-0.5, 0.5) * along * (length - along)  # bent to a side
    girth *= 1 + rng.uniform(0.0, 0.2) * np.cos(along * rng.uniform(15, 30) + rng.uniform(0, 6.3))
    body = _pear(along / length, across / girth)
    wider = _pear((along + 0.03) / (length * 1.08), across / (girth * 1.25))
    return Anatomy(
        back=np.clip(back, 0, 1),
        bed=_bed(rng, wider, broad, fine),
        stalk=_stalk(rng, x, y),
        gallbladder=_gallbladder(rng, body, fine, broad),
        cover=_cover(rng, x, y, lumps, fine),
        detach=(np.clip(along / length + 0.12 * broad, 0, 1))[..., None],
        axis=axis,
        length=length,
    )


def over(below: Array, layer: Layer, opacity: float | Array = 1.0) -> Array:
    """The layer on top of colours (H, W, 3)."""
    return below + (layer.colour - below) * (layer.alpha * opacity)


def shaded(colour: Array, inside: Mask, relief: Array, *, radius: float, gloss: float) -> Layer:
    """A bulging, wet surface lit from the camera.

    Args:
        colour: reflectance (H, W, 3).
        inside: mask (H, W).
        relief: fine height (H, W), px.
        radius: width of the rounded border, px.
        gloss: strength of the highlights.
    """
    distance = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
    rise = np.clip(distance / radius, 0, 1)
    bulge = radius * np.sqrt(np.maximum(1 - (1 - rise) ** 2, 0)) + relief
    bulge = cv2.GaussianBlur(bulge.astype(np.float32), (0, 0), 1.2)
    slope_y, slope_x = np.gradient(bulge)
    facing = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    tilted = (1 + 0.35 * slope_x + 0.55 * slope_y) * facing  # light from above left
    shine = smoothstep(tilted, 1.02, 1.16) * gloss
    lit = colour * (0.35 + 0.65 * facing[..., None]) + shine[..., None]
    alpha = np.asarray(cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 1.0), np.float32)
    return Layer(np.clip(lit, 0, 1).astype(np.float32), alpha[..., None])


def _mixed(rng: np.random.Generator, colours: Array) -> Array:
    """A random mixture of reflectances."""
    return (rng.dirichlet(np.full(len(colours), 0.6)) @ colours).astype(np.float32)


def _along(x: Array, y: Array, axis: float) -> tuple[Array, Array]:
    """Coordinates along and across the gallbladder, from its neck."""
    dx, dy = x - NECK[0], y - NECK[1]
    cos, sin = np.float32(np.cos(axis)), np.float32(np.sin(axis))
    return dx * cos + dy * sin, dy * cos - dx * sin


def _pear(along: Array, across: Array) -> Mask:
    """Mask of a pear of unit length and half width, narrow at 0."""
    girth = np.sqrt(np.clip(along, 0, 1)) * np.sqrt(np.clip(1.02 - along, 0, 1)) * 1.9
    girth = girth * (0.35 + 0.65 * smoothstep(along, 0.0, 0.7))
    return np.abs(across) < girth


def _liver(rng: np.random.Generator, x: Array, y: Array, broad: Array, fine: Array) -> Layer:
    """One lobe above, one on the right; their edge is a wave."""
    edge = (
        0.52
        + rng.uniform(-0.06, 0.06)
        + rng.uniform(0.05, 0.16) * np.cos(x * rng.uniform(2.5, 5.0) + rng.uniform(0, 6.3))
    )
    edge = edge + rng.uniform(-0.15, 0.25) * (x - 0.66)
    colour = _mixed(rng, LIVER) * (1 + 0.07 * broad[..., None] + 0.04 * fine[..., None])
    relief = (0.9 * broad + 0.25 * fine) * len(x) / 240
    radius = len(x) * rng.uniform(0.12, 0.22)
    return shaded(colour, y < edge, relief, radius=radius, gloss=rng.uniform(0.05, 0.25))


def _fat(rng: np.random.Generator, x: Array, y: Array, lumps: Array, fine: Array) -> Layer:
    """Omentum and duodenum at the bottom, lumpy."""
    edge = 0.70 + rng.uniform(-0.04, 0.08) + 0.05 * np.cos(x * 4 + rng.uniform(0, 6.3))
    tone = 1 + 0.10 * lumps[..., None] + 0.05 * fine[..., None]
    redness = smoothstep(lumps, 0.6, 1.8)[..., None] * np.array([0.0, -0.16, -0.08], np.float32)
    colour = np.clip(_mixed(rng, FAT) * tone + redness, 0.05, 1)
    relief = 2.0 * lumps * len(x) / 240
    inside = y + 0.02 * lumps > edge
    return shaded(colour, inside, relief, radius=len(x) * 0.06, gloss=rng.uniform(0.2, 0.6))


def _bed(rng: np.random.Generator, inside: Mask, broad: Array, fine: Array) -> Layer:
    """Raw liver with charred spots."""
    charred = smoothstep(broad + 0.8 * fine, 0.4, 1.6)[..., None] * rng.uniform(0.4, 0.9)
    colour = _mixed(rng, RAW) * (1 + 0.15 * fine[..., None] + 0.10 * broad[..., None])
    colour = colour + (CHAR - colour) * charred
    relief = 0.5 * (fine + broad) * len(fine) / 240
    return shaded(np.clip(colour, 0, 1), inside, relief, radius=len(fine) * 0.03, gloss=0.12)


def _stalk(rng: np.random.Generator, x: Array, y: Array) -> Layer:
    """Cystic duct, pale, and artery, red, from the neck into the fat."""
    height = len(x)
    canvas = np.zeros((*x.shape, 3), np.float32)
    alpha = np.zeros(x.shape, np.float32)
    steps = np.linspace(-0.03, 0.22, 24)
    for colour, offset, thickness in (
        ((0.62, 0.22, 0.18), -0.035, 0.012),
        ((0.80, 0.68, 0.52), 0.012, 0.024),
    ):
        bend = rng.uniform(-0.5, 0.5)
        points = np.stack(
            [NECK[0] + offset * (1 + steps * 3) + bend * steps**2 - 0.15 * steps, NECK[1] + steps],
            axis=1,
        )
        line = [np.round(points * height * 16).astype(np.int32)]
        width = max(1, round(thickness * height))
        cv2.polylines(canvas, line, False, colour, width, cv2.LINE_AA, 4)
        cv2.polylines(
            canvas, line, False, tuple(1.15 * c for c in colour), max(1, width // 3), 16, 4
        )
        cv2.polylines(alpha, line, False, 1.0, width, cv2.LINE_AA, 4)
    return Layer(np.clip(canvas, 0, 1), alpha[..., None])


def _gallbladder(rng: np.random.Generator, body: Mask, fine: Array, broad: Array) -> Layer:
    """Pale, smooth and shiny, with vessels."""
    colour = _mixed(rng, GALLBLADDER) * (1 + 0.05 * broad[..., None])
    vessels = smoothstep(0.12 - np.abs(fine), 0.0, 0.12)[..., None] * rng.uniform(0.1, 0.45)
    colour = colour + (np.array([0.60, 0.20, 0.18], np.float32) - colour) * vessels
    relief = 0.5 * broad * len(fine) / 240
    return shaded(colour, body, relief, radius=len(fine) * 0.10, gloss=rng.uniform(0.2, 0.6))


def _cover(rng: np.random.Generator, x: Array, y: Array, lumps: Array, fine: Array) -> Layer:
    """Fat and peritoneum over the duct, to be taken away in the second phase."""
    dx, dy = x - NECK[0], y - NECK[1] - 0.06
    inside = (dx / 0.13) ** 2 + (dy / 0.12) ** 2 + 0.25 * lumps < 1
    colour = _mixed(rng, FAT) * (0.95 + 0.10 * lumps[..., None] + 0.06 * fine[..., None])
    relief = 1.8 * lumps * len(x) / 240
    return shaded(np.clip(colour, 0, 1), inside, relief, radius=len(x) * 0.05, gloss=0.4)
