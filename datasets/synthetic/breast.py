"""A breast under a linear ultrasound probe: layered tissue, speckle, lesion, shadows.

Tissue is a field of echo strength in tissue coordinates (1 = the image's height).  A frame
samples it under the probe, multiplies it with speckle that partly follows the tissue, attenuates it
along the beam (down the columns) and compresses it logarithmically.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .fields import Array, bilinear, contour_radius, fractal_noise, random_harmonics, smoothstep

MARGIN = 0.7  # tissue beyond each side of the image, in heights


@dataclass(frozen=True)
class Mass:
    """A lesion at (x, y) in tissue coordinates with its acoustic behaviour."""

    malignant: bool
    centre: NDArray[np.float64]
    radius: float
    aspect: float  # width over height
    tilt: float
    harmonics: NDArray[np.float64]
    ragged: float  # how far noise moves the margin, in radii
    echo: float  # log echo inside
    absorb: float  # > 0 shadows, < 0 enhances what lies below
    calcified: bool


@dataclass(frozen=True)
class Tissue:
    """Fields (h, w, 4): log echo strength, ragged noise, two layers of white noise (speckle)."""

    fields: Array
    scale: float  # cells of the grid per height of the image
    width: float  # image's width over its height
    attenuation: float  # log loss over the image's height that is left uncompensated
    column_gain: Array  # (W,) log gain of the probe's elements
    brightness: float
    sector: float  # 0: linear probe; > 0: how far the corners are cut


def random_mass(rng: np.random.Generator, *, side: float, malignant: bool, contrast: float) -> Mass:
    """A mass whose longer side is `side` heights of the image.

    Benign: smooth, oval, wider than tall, brighter below.  Malignant: ragged or spiculated,
    taller than wide, with a shadow.
    """
    if malignant:
        harmonics = random_harmonics(rng, count=12, roughness=0.11)
        harmonics[4:, 0] += rng.normal(0, 0.035, 8)
        aspect, tilt = rng.uniform(0.60, 0.92), rng.uniform(-0.25, 0.25)
        absorb, ragged = rng.uniform(2.0, 7.0), rng.uniform(0.04, 0.10)
    else:
        harmonics = random_harmonics(rng, count=4, roughness=0.025)
        aspect, tilt = rng.uniform(1.35, 2.1), rng.uniform(-0.2, 0.2)
        absorb, ragged = rng.uniform(-5.0, -1.0), 0.015
    return Mass(
        malignant=malignant,
        centre=np.array([0.0, 0.45]),
        radius=0.5 * side / np.sqrt(max(aspect, 1 / aspect)) / (1.25 if malignant else 1.0),
        aspect=float(aspect),
        tilt=float(tilt),
        harmonics=harmonics,
        ragged=float(ragged),
        echo=float(-contrast * rng.uniform(1.2, 2.2)),
        absorb=float(absorb),
        calcified=bool(malignant and rng.random() < 0.6),
    )


def random_tissue(rng: np.random.Generator, size: tuple[int, int]) -> Tissue:
    """Skin, fat with septa, gland and muscle, from top to bottom."""
    width, height = size
    aspect = width / height
    rows, columns = round(height * 1.25), round(height * (aspect + 2 * MARGIN))
    shape = (rows, columns)
    depth = np.linspace(0, 1.25, rows, dtype=np.float32)[:, None]
    wave = ndimage.gaussian_filter(rng.standard_normal(columns), height * 0.22, mode="wrap")
    wave = 0.035 * (wave / (wave.std() + 1e-9)).astype(np.float32)[None, :]
    fat_end, gland_end = rng.uniform(0.14, 0.36), rng.uniform(0.62, 0.88)
    y = depth + wave * smoothstep(depth, 0.05, 0.2)

    lobules = _layered(rng, shape, stretch=3.0, band=(3, 10))
    septa = np.exp(-np.abs(lobules) / 0.14)
    streak = _layered(rng, shape, stretch=3.5, band=(8, 40))
    fibre = _layered(rng, shape, stretch=9.0, band=(14, 60))
    patch = fractal_noise(rng, shape, slope=1.5, band=(2, 9))
    strands = np.exp(-np.abs(_layered(rng, shape, stretch=4.5, band=(4, 22))) / 0.20)
    fat = -0.95 + 1.1 * septa + 0.25 * streak
    gland = -0.15 + 0.75 * strands + 0.32 * streak + 0.30 * patch
    muscle = -0.65 + 0.55 * np.clip(fibre, -0.6, 2.5) + 0.15 * patch
    echo = fat + smoothstep(y, fat_end - 0.05, fat_end + 0.07) * (gland - fat)
    echo = echo + smoothstep(y, gland_end - 0.04, gland_end + 0.04) * (muscle - echo)
    fascia = np.exp(-(((y - gland_end) / 0.010) ** 2))
    fascia = fascia + 0.5 * np.exp(-(((y - fat_end) / 0.009) ** 2)) * (streak > -0.3)
    rib = np.exp(-(((y - gland_end - rng.uniform(0.15, 0.3)) / 0.015) ** 2))
    skin = smoothstep(depth, 0.060, 0.040) * 1.3 - 0.9 * np.exp(-(((depth - 0.034) / 0.010) ** 2))
    echo = echo + 0.9 * fascia + 0.8 * rib * rng.integers(2) + skin
    ragged = fractal_noise(rng, shape, slope=1.0, band=(10, 50))
    speckle = rng.standard_normal((rows, columns, 2), dtype=np.float32)
    gain = ndimage.gaussian_filter1d(rng.standard_normal(width), width * 0.06, mode="wrap")
    return Tissue(
        fields=np.concatenate(
            [np.stack([echo, ragged], axis=-1), speckle], axis=-1, dtype=np.float32
        ),
        scale=float(height),
        width=aspect,
        attenuation=float(rng.uniform(0.4, 1.6)),
        column_gain=(0.22 * gain / (gain.std() + 1e-9)).astype(np.float32),
        brightness=float(rng.uniform(0.05, 0.55)),
        sector=float(rng.uniform(0.03, 0.10) if rng.random() < 0.15 else 0.0),
    )


def render(
    tissue: Tissue,
    mass: Mass | None,
    size: tuple[int, int],
    *,
    target: NDArray[np.float64],
    zoom: float,
    tilt: float,
    rng: np.random.Generator,
) -> tuple[Array, NDArray[np.bool_]]:
    """Image (H, W) in [0, 1] and the mass's mask, with the mass's centre at `target` (2,).

    `zoom` scales the cross-section of the mass, `tilt` (radians) rotates the probe, `rng` draws the
    part of the speckle that does not follow the tissue.
    """
    width, height = size
    anchor = mass.centre if mass is not None else np.array([0.0, 0.45])
    x = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    u, v = _tissue_place(tissue, anchor, x, y, target, tilt)
    row = np.clip(v * tissue.scale, 0, tissue.fields.shape[0] - 1)
    column = (u + MARGIN + tissue.width / 2) * tissue.scale
    column = np.clip(column, 0, tissue.fields.shape[1] - 1)
    sample = bilinear(tissue.fields, row.ravel(), column.ravel()).reshape(height, width, 4)

    echo, absorb = sample[..., 0], np.full((height, width), tissue.attenuation, np.float32)
    mask = np.zeros((height, width), np.bool_)
    if mass is not None:
        echo, absorb, mask = _add_mass(mass, echo, absorb, u, v, zoom, sample[..., 1:])
    spread = ndimage.gaussian_filter1d(absorb, 0.012 * height, axis=1, mode="nearest")
    loss = np.cumsum(spread, axis=0) / height
    level = echo - loss + tissue.column_gain + tissue.brightness
    amplitude = np.exp(level) * (0.38 + 0.50 * _speckle(sample[..., 2:], rng))
    image = ndimage.gaussian_filter(1.0 - np.exp(-0.50 * amplitude), 0.25 + height / 900)
    sector = _sector(size, tissue.sector)
    return image * sector, mask & (sector > 0)


def _tissue_place(
    tissue: Tissue,
    anchor: NDArray[np.float64],
    x: Array,
    y: Array,
    target: NDArray[np.float64],
    tilt: float,
) -> tuple[Array, Array]:
    """Tissue coordinates (H, W) under every pixel; the skin stays at the probe."""
    tx, ty = float(target[0]) * tissue.width, float(target[1])
    dx, dy = x - np.float32(tx), y - np.float32(ty)
    press = smoothstep(y, 0.02, max(ty, 0.15))
    u = float(anchor[0]) + dx * np.cos(tilt) + dy * np.sin(tilt)
    v = y + press * (float(anchor[1]) - ty + dy * (np.cos(tilt) - 1) - dx * np.sin(tilt))
    u, v = np.broadcast_arrays(u, v)
    return u.astype(np.float32), v.astype(np.float32)


def _add_mass(
    mass: Mass, echo: Array, absorb: Array, u: Array, v: Array, zoom: float, noise: Array
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Echo and absorption with the mass in place, and its mask."""
    x, y = u - np.float32(mass.centre[0]), v - np.float32(mass.centre[1])
    angle = np.arctan2(y, x)
    contour = contour_radius(angle, mass.harmonics, aspect=mass.aspect, tilt=mass.tilt)
    level = 1.0 - np.hypot(x, y) / (mass.radius * zoom * contour) + mass.ragged * noise[..., 0]
    soft = 0.20 if mass.malignant else 0.10
    inside = smoothstep(level, -soft, soft)
    echo = echo + inside * (mass.echo + 0.12 * noise[..., 0] - 0.85 * echo)
    if mass.malignant:
        echo = echo + 0.45 * smoothstep(level, -0.5, -0.1) * (1 - inside)
    else:  # a capsule reflects the beam where perpendicular to it
        echo = echo + 0.8 * np.exp(-(((level + 0.04) / 0.05) ** 2)) * np.abs(np.sin(angle))
    if mass.calcified:
        spots = ndimage.gaussian_filter(noise[..., 1], max(0.8, len(u) / 250))
        spots = spots / (spots.std() + 1e-9)
        echo = echo + 2.0 * smoothstep(spots, 1.7, 2.3) * smoothstep(level, 0.05, 0.2)
    absorb = absorb + mass.absorb * smoothstep(level, 0.0, 0.2)
    return echo, absorb, _largest(level > 0)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask: ragged noise leaves specks around it."""
    labels, count = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues]
    if count < 2:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _speckle(noise: Array, rng: np.random.Generator) -> Array:
    """Rayleigh amplitude of mean about 1.25: smoothed complex noise, part tissue, part new."""
    height = noise.shape[0]
    fresh = rng.standard_normal(noise.shape, dtype=np.float32)
    mixed = 0.88 * noise + 0.47 * fresh
    axial, lateral = max(0.55, height / 320), max(0.9, height / 130)
    real = ndimage.gaussian_filter(mixed, (axial, lateral, 0), mode="nearest")
    real = real / (real.std() + 1e-9)
    return np.hypot(real[..., 0], real[..., 1])


def _layered(
    rng: np.random.Generator, shape: tuple[int, int], *, stretch: float, band: tuple[float, float]
) -> Array:
    """Noise of deviation 1 stretched along the layers: waves, not stripes."""
    narrow = (shape[0], max(8, int(shape[1] / stretch)))
    field = fractal_noise(rng, narrow, slope=0.9, band=band)
    column = np.linspace(0, narrow[1] - 1, shape[1])
    row = np.arange(shape[0], dtype=np.float64)
    grid = np.broadcast_arrays(row[:, None], column[None, :])
    return ndimage.map_coordinates(field, grid, order=1, mode="nearest").astype(np.float32)


def _sector(size: tuple[int, int], cut: float) -> Array:
    """1 in the image of a curved probe, 0 in its black upper corners (H, W)."""
    width, height = size
    x = np.abs((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5)[None, :]
    y = (np.arange(height, dtype=np.float32) / height)[:, None]
    return (x < 0.5 - cut * (1 - y)).astype(np.float32)
