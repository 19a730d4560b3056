"""The wall of a colon: a bent tube with folds, vessels and relief, as a height field.

radius(theta, z) = 1 - height(theta, z) around a centre line that bends away with z**2.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from .fields import Array, bilinear, fractal_noise, smoothstep

Z_NEAR, Z_FAR = -1.6, 6.4  # extent of the modelled wall along the tube; the camera sits near 0

# Linear reflectance of healthy mucosa: pink, orange, tan, grey-brown, deep red.
MUCOSA = np.array(
    [
        [0.90, 0.44, 0.36],
        [0.95, 0.46, 0.17],
        [0.86, 0.52, 0.28],
        [0.72, 0.46, 0.33],
        [0.86, 0.32, 0.24],
    ]
)
VESSEL = np.array([0.55, 0.13, 0.09])


@dataclass(frozen=True)
class Wall:
    """The wall without a lesion, on a grid (angles, lengths)."""

    geometry: Array  # (A, Z, 3) inward displacement in radii of the tube, its slopes
    skin: Array  # (A, Z, 6) reflectance, slopes of the fine relief, wetness
    mucosa: NDArray[np.float64]  # (3,) mean reflectance
    bend: NDArray[np.float64]  # (2,) curvature of the centre line
    gloss: float
    exposure: float


def grid_shape(width: int) -> tuple[int, int]:
    """Cells of the wall's grid for images `width` pixels wide."""
    angles = int(np.clip(2 ** np.round(np.log2(width * 3.0)), 256, 2048))
    return angles, angles * 5 // 4  # cells nearly square, and a fast length for the transform


def wall_axes(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Angle (A, 1) and length (1, Z) of every cell of a wall's grid."""
    theta = np.linspace(0, 2 * np.pi, shape[0], endpoint=False, dtype=np.float32)[:, None]
    z = np.linspace(Z_NEAR, Z_FAR, shape[1], dtype=np.float32)[None, :]
    return theta, z


def random_wall(rng: np.random.Generator, shape: tuple[int, int]) -> Wall:
    """Folds, relief, vessels and colour of one stretch of colon."""
    theta, z = wall_axes(shape)
    broad = fractal_noise(rng, shape, slope=2.0, band=(1, 40))
    height = _folds(rng, theta, z) + 0.035 * broad
    relief = fractal_noise(rng, shape, slope=0.6, band=(12, 90))
    mottle = fractal_noise(rng, shape, slope=1.5, band=(1, 60))
    wet = smoothstep(np.roll(mottle, shape[0] // 3, axis=0) + 0.35 * relief, 0.0, 1.4)

    mucosa = rng.dirichlet(np.full(len(MUCOSA), 0.35)) @ MUCOSA
    tone = 1.0 + 0.08 * mottle[..., None] * np.array([0.5, 1.2, 1.3], np.float32)
    tone = tone + 0.02 * relief[..., None]
    redness = smoothstep(broad, 0.8, 2.2)[..., None] * np.array([0.0, -0.10, -0.08], np.float32)
    albedo = mucosa.astype(np.float32) * tone + redness
    vessel = _vessels(rng, shape) * rng.uniform(0.1, 0.9)
    albedo = albedo + vessel[..., None] * (VESSEL.astype(np.float32) - albedo)
    bump = _slopes(relief * rng.uniform(0.0015, 0.0040))
    angle, curvature = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.11)
    return Wall(
        geometry=np.stack([height, *_slopes(height)], axis=-1).astype(np.float32),
        skin=np.concatenate(
            [np.clip(albedo, 0.03, 1.0), np.stack([*bump, wet], axis=-1)], axis=-1
        ).astype(np.float32),
        mucosa=mucosa,
        bend=curvature * np.array([np.cos(angle), np.sin(angle)]),
        gloss=float(rng.uniform(0.4, 1.4)),
        exposure=float(rng.uniform(0.75, 1.2)),
    )


def surface_point(wall: Wall, theta: float, z: float) -> NDArray[np.float64]:
    """World position (3,) of the wall at an angle and a length."""
    row, column = cell(np.array([theta]), np.array([z]), wall.geometry.shape)
    height = float(bilinear(wall.geometry[..., :1], row, column, wrap_rows=True)[0, 0])
    centre = wall.bend * max(z, 0.0) ** 2
    place = centre + (1.0 - height) * np.array([np.cos(theta), np.sin(theta)])
    return np.array([*place, z])


def clearance(wall: Wall, point: NDArray[np.float64]) -> float:
    """Distance along the radius from a world point to the wall; negative inside the tissue."""
    x, y, z = (np.array([v], np.float32) for v in point)
    return float(gap(wall, x, y, z)[0])


def gap(wall: Wall, x: Array, y: Array, z: Array) -> Array:
    """Radial distance (n,) of world points to the wall, by the nearest cell."""
    rows, columns = wall.geometry.shape[:2]
    x, y = around_axis(wall, x, y, z)
    row, column = cell(np.arctan2(y, x), z, (rows, columns))
    index = row.astype(np.intp) % rows * columns + column.astype(np.intp)
    return 1.0 - np.sqrt(x * x + y * y) - wall.geometry[..., 0].reshape(-1)[index]


def around_axis(wall: Wall, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """World x and y (n,) relative to the centre line at z."""
    square = np.maximum(z, 0.0) ** 2
    return x - np.float32(wall.bend[0]) * square, y - np.float32(wall.bend[1]) * square


def cell(theta: Array, z: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Fractional row and column of the wall's grid."""
    row = (theta % (2 * np.pi)) * (shape[0] / (2 * np.pi))
    column = np.clip((z - Z_NEAR) * ((shape[1] - 1) / (Z_FAR - Z_NEAR)), 0, shape[1] - 1)
    return row, column


def _folds(rng: np.random.Generator, theta: Array, z: Array) -> Array:
    """Haustral folds: crescents across the tube, in one, two or three lobes."""
    height = np.zeros((theta.shape[0], z.shape[1]), np.float32)
    lobes = rng.choice([1, 2, 3], p=[0.3, 0.2, 0.5])
    strength = rng.uniform(0.08, 0.34)
    spacing = rng.uniform(0.55, 1.3)
    place = Z_NEAR + rng.uniform(0, spacing)
    while place < Z_FAR + 0.5:
        phase = rng.uniform(0, 2 * np.pi)
        swell = 0.5 + 0.5 * np.cos(lobes * theta + phase)
        reach = strength * rng.uniform(0.6, 1.3) * (0.25 + 0.75 * swell ** rng.uniform(0.6, 1.6))
        wobble = 0.10 * np.cos(theta + rng.uniform(0, 6.3)) + 0.06 * np.cos(
            2 * theta + rng.uniform(0, 6.3)
        )
        offset = z - place - wobble * rng.uniform(0.5, 1.8)
        thickness = rng.uniform(0.07, 0.16)
        ridge = 1.0 / (1.0 + (offset / np.where(offset < 0, thickness, 1.7 * thickness)) ** 2)
        height = np.maximum(height, reach * ridge) + 0.15 * reach * ridge
        place += spacing * rng.uniform(0.7, 1.4)
    return height


def _vessels(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Branching vessels (A, Z) in [0, 1]: random walks that taper and fork."""
    rows, columns = shape
    canvas = Image.new("L", (columns, rows))
    draw = ImageDraw.Draw(canvas)
    unit = rows / 512
    stems = [
        (rng.uniform(0, columns), rng.uniform(0, rows), rng.uniform(0, 6.3), rng.uniform(1.2, 2.6))
        for _ in range(int(rng.integers(10, 38)))
    ]
    while stems:
        x, y, heading, calibre = stems.pop()
        for _ in range(int(rng.integers(8, 26))):
            heading += 0.35 * rng.standard_normal()
            nx, ny = x + 9 * unit * math.cos(heading), y + 9 * unit * math.sin(heading)
            tone, thick = int(min(255, 90 + 70 * calibre)), max(1, round(calibre * unit))
            draw.line([(x, y), (nx, ny)], fill=tone, width=thick)
            if not 0 <= ny < rows:  # the same stroke on the other side of the seam
                seam = rows if ny < 0 else -rows
                draw.line([(x, y + seam), (nx, ny + seam)], fill=tone, width=thick)
            x, y, calibre = nx, ny % rows, calibre * 0.97
            if rng.random() < 0.16 and calibre > 0.6:
                stems.append((x, y, heading + rng.choice([-0.8, 0.8]), calibre * 0.7))
    field = np.asarray(canvas, np.float32) / 255
    return ndimage.gaussian_filter(field, 0.7 * unit, mode="wrap")


def _slopes(field: Array) -> tuple[Array, Array]:
    """Derivatives along angle (periodic, radians) and length of a field on the wall's grid."""
    d_theta = (np.roll(field, -1, 0) - np.roll(field, 1, 0)) * (field.shape[0] / (4 * np.pi))
    d_z = np.gradient(field, axis=1) * ((field.shape[1] - 1) / (Z_FAR - Z_NEAR))
    return d_theta, d_z
