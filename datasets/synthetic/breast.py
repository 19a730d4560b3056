"""A breast under a linear ultrasound probe: layered tissue, speckle, lesion, shadows.

Tissue is a field of echo strength in tissue coordinates (1 = the picture's height).  A frame
samples it where the probe stands, multiplies it with speckle that partly follows the tissue,
attenuates it along the beam (down the columns) and compresses it logarithmically.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .fields import Array, bilinear, contour_radius, fractal_noise, random_harmonics, smoothstep

MARGIN = 0.7  # tissue beyond each side of the picture, in heights


@dataclass(frozen=True)
class Mass:
    """A lesion at (x, y) in tissue coordinates with its acoustic behaviour."""

    malignant: bool
    centre: NDArray[np.float64]
    radius: float
    aspect: float  # width over height
    tilt: float
    harmonics: NDArray[np.float64]
    echo: float  # log echo relative to the tissue around it
    absorb: float  # > 0 shadows, < 0 enhances what lies below
    calcified: bool


@dataclass(frozen=True)
class Tissue:
    """Log echo strength (h, w) and two layers of white noise for the speckle (h, w, 2)."""

    log_echo: Array
    speckle: Array
    scale: float  # cells of the grid per height of the picture
    width: float  # picture's width over its height
    attenuation: float
    sector: float  # 0: linear probe; > 0: how far the corners are cut


def random_mass(
    rng: np.random.Generator, *, radius: float, malignant: bool, contrast: float
) -> Mass:
    """Benign: smooth, oval, wider than tall.  Malignant: spiculated, tall, shadowing."""
    if malignant:
        harmonics = random_harmonics(rng, count=14, roughness=0.12)
        harmonics[5:, 0] += rng.choice([-1, 1], 9) * rng.uniform(0.02, 0.06, 9)
        aspect, tilt = rng.uniform(0.62, 0.95), rng.uniform(-0.25, 0.25)
        absorb = rng.uniform(1.5, 5.0)
    else:
        harmonics = random_harmonics(rng, count=4, roughness=0.03)
        aspect, tilt = rng.uniform(1.35, 2.1), rng.uniform(-0.2, 0.2)
        absorb = rng.uniform(-2.2, -0.3)
    return Mass(
        malignant=malignant,
        centre=np.array([0.0, rng.uniform(0.33, 0.55)]),
        radius=radius,
        aspect=float(aspect),
        tilt=float(tilt),
        harmonics=harmonics,
        echo=float(-contrast * rng.uniform(1.5, 2.6)),
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
    wave = ndimage.gaussian_filter(rng.standard_normal(columns), height * 0.25, mode="wrap")
    wave = 0.04 * (wave / (wave.std() + 1e-9)).astype(np.float32)[None, :]
    fat_end, gland_end = rng.uniform(0.16, 0.38), rng.uniform(0.6, 0.85)
    streak = _streaks(rng, shape, stretch=5.0)
    fine = _streaks(rng, shape, stretch=9.0)
    lobules = fractal_noise(rng, shape, slope=1.6, band=(3, 12))
    septa = np.exp(-np.abs(lobules) / 0.10)
    fat = -0.9 + 0.9 * septa + 0.25 * streak
    gland = 0.0 + 0.50 * streak + 0.25 * lobules
    muscle = -0.7 + 0.9 * np.clip(fine, -0.5, 3)
    y = depth + wave
    echo = fat + smoothstep(y, fat_end - 0.04, fat_end + 0.05) * (gland - fat)
    echo = echo + smoothstep(y, gland_end - 0.03, gland_end + 0.03) * (muscle - echo)
    fascia = np.exp(-(((y - gland_end) / 0.012) ** 2)) + 0.6 * np.exp(
        -(((y - fat_end) / 0.010) ** 2)
    )
    skin = smoothstep(depth, 0.055, 0.035) * 1.1 - 0.7 * np.exp(-(((depth - 0.03) / 0.008) ** 2))
    echo = echo + 1.3 * fascia + skin
    return Tissue(
        log_echo=echo.astype(np.float32),
        speckle=rng.standard_normal((rows, columns, 2), dtype=np.float32),
        scale=float(height),
        width=aspect,
        attenuation=float(rng.uniform(0.6, 1.6)),
        sector=float(rng.uniform(0.05, 0.22) if rng.random() < 0.2 else 0.0),
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
    """Picture (H, W) in [0, 1] and the mass's mask, with the mass's centre at `target` (2,).

    `zoom` swells the cross-section of the mass, `tilt` (radians) turns the probe, `rng` draws
    the part of the speckle that does not follow the tissue.
    """
    width, height = size
    anchor = mass.centre if mass is not None else np.array([0.0, 0.45])
    x = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    tx, ty = target[0] * tissue.width, target[1]
    dx, dy = x - np.float32(tx), y - np.float32(ty)
    press = smoothstep(y, 0.0, max(float(ty), 0.15))  # the skin stays at the probe
    u = anchor[0] + dx * np.cos(tilt) + dy * np.sin(tilt)
    v = y + press * (anchor[1] - ty + dy * (np.cos(tilt) - 1) - dx * np.sin(tilt))
    u, v = np.broadcast_arrays(u.astype(np.float32), v.astype(np.float32))
    row = np.clip(v * tissue.scale, 0, tissue.log_echo.shape[0] - 1)
    column = np.clip(
        (u + MARGIN + tissue.width / 2) * tissue.scale, 0, tissue.log_echo.shape[1] - 1
    )
    stack = np.concatenate([tissue.log_echo[..., None], tissue.speckle], axis=-1)
    sample = bilinear(stack, row.ravel(), column.ravel()).reshape(height, width, 3)

    echo, absorb = sample[..., 0], np.full((height, width), tissue.attenuation, np.float32)
    mask = np.zeros((height, width), np.bool_)
    if mass is not None:
        echo, absorb, mask = _add_mass(mass, echo, absorb, u, v, zoom, sample[..., 1])
    loss = np.cumsum(ndimage.gaussian_filter1d(absorb, 0.012 * height, axis=1), axis=0) / height
    speckle = _speckle(sample[..., 1:], rng)
    gain = 0.9 * tissue.attenuation * y  # time gain compensation
    level = echo - loss + gain + 0.55 * np.log(speckle + 0.05)
    picture = 1.0 / (1.0 + np.exp(-(level + 0.15) * 1.05))
    picture = picture**1.35
    return _cut_sector(picture.astype(np.float32), tissue.sector), mask


def _add_mass(
    mass: Mass, echo: Array, absorb: Array, u: Array, v: Array, zoom: float, noise: Array
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Echo and absorption with the mass in place, and its mask."""
    x, y = u - np.float32(mass.centre[0]), v - np.float32(mass.centre[1])
    contour = contour_radius(np.arctan2(y, x), mass.harmonics, aspect=mass.aspect, tilt=mass.tilt)
    level = 1.0 - np.hypot(x, y) / (mass.radius * zoom * contour)
    soft = 0.10 if mass.malignant else 0.05
    inside = smoothstep(level, -soft, soft)
    echo = echo + inside * (mass.echo - 0.75 * echo)
    if mass.malignant:
        halo = smoothstep(level, -0.45, -0.08) * (1 - inside)
        echo = echo + 0.55 * halo
    else:
        echo = echo + 0.75 * np.exp(-(((level + 0.03) / 0.05) ** 2))
    if mass.calcified:
        spots = ndimage.gaussian_filter(noise, 0.8)
        echo = echo + 2.2 * smoothstep(spots, 0.75, 1.0) * smoothstep(level, 0.05, 0.2)
    absorb = absorb + mass.absorb * smoothstep(level, 0.0, 0.2)
    return echo, absorb, level > 0


def _speckle(noise: Array, rng: np.random.Generator) -> Array:
    """Rayleigh amplitude of mean about 1.25: smoothed complex noise, part tissue, part new."""
    height = noise.shape[0]
    fresh = rng.standard_normal(noise.shape, dtype=np.float32)
    mixed = 0.85 * noise + 0.5 * fresh
    axial, lateral = max(0.5, height / 300), max(0.8, height / 150)
    real = ndimage.gaussian_filter(mixed, (axial, lateral, 0), mode="nearest")
    real = real / (real.std() + 1e-9)
    return np.hypot(real[..., 0], real[..., 1])


def _streaks(rng: np.random.Generator, shape: tuple[int, int], *, stretch: float) -> Array:
    """Noise stretched along the layers, deviation 1."""
    field = fractal_noise(rng, shape, slope=0.8, band=(6, 80))
    field = ndimage.gaussian_filter1d(field, shape[0] / 150 * stretch, axis=1, mode="wrap")
    return field / (field.std() + 1e-9)


def _cut_sector(picture: Array, sector: float) -> Array:
    """Black upper corners of a curved probe."""
    if not sector:
        return picture
    height, width = picture.shape
    x = np.abs(np.arange(width, dtype=np.float32) / width - 0.5)[None, :]
    y = (np.arange(height, dtype=np.float32) / height)[:, None]
    return picture * (x < 0.5 - sector * (1 - y)).astype(np.float32)
