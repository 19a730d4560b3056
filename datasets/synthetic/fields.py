"""Random fields, closed contours and look-ups of both renderers."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def fractal_noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    slope: float = 1.0,
    band: tuple[float, float] = (1.0, np.inf),
) -> Array:
    """Periodic noise (H, W) of mean 0 and deviation 1 with amplitude ~ frequency**-slope.

    `band` keeps the frequencies between two limits, in cycles per height of the field.
    """
    spectrum = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    fy = np.fft.fftfreq(shape[0])[:, None] * shape[0]
    fx = np.fft.rfftfreq(shape[1])[None, :] * shape[0]
    frequency = np.hypot(fy, fx).astype(np.float32)
    frequency[0, 0] = 1.0
    gain = frequency**-slope * ((frequency >= band[0]) & (frequency <= band[1]))
    gain[0, 0] = 0.0
    field = np.fft.irfft2(spectrum * gain, s=shape)
    return (field / (field.std() + 1e-9)).astype(np.float32)


def contour_radius(
    angle: Array, harmonics: NDArray[np.float64], *, aspect: float, tilt: float
) -> Array:
    """Radius of a closed contour of mean radius 1 at each polar `angle` (radians).

    An ellipse with axes ratio `aspect`, turned by `tilt`, times a Fourier series whose row k of
    `harmonics` (n, 2) holds amplitude and phase of the (k+2)-th harmonic.
    """
    turned = angle - tilt
    ellipse = 1.0 / np.sqrt(np.cos(turned) ** 2 / aspect + np.sin(turned) ** 2 * aspect)
    wave = np.ones_like(angle)
    for k, (amplitude, phase) in enumerate(harmonics):
        wave = wave + amplitude * np.cos((k + 2) * angle + phase)
    return (ellipse * np.maximum(wave, 0.3)).astype(np.float32)


def random_harmonics(
    rng: np.random.Generator, *, count: int, roughness: float
) -> NDArray[np.float64]:
    """Amplitudes and phases (count, 2) for `contour_radius`, falling off with the harmonic."""
    amplitude = roughness * rng.standard_normal(count) / np.arange(1, count + 1)
    return np.stack([amplitude, rng.uniform(0, 2 * np.pi, count)], axis=1)


def smoothstep(x: Array | float, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, a cubic in between (also with low > high: reversed)."""
    s = np.clip((np.asarray(x, np.float32) - low) / (high - low), 0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)


def bilinear(field: Array, row: Array, column: Array, *, wrap_rows: bool = False) -> Array:
    """Values of `field` (H, W, C) at fractional `row`, `column` (n,): (n, C).

    Columns are clamped to the border; rows too, or wrapped around when the field is periodic.
    """
    height, width = field.shape[:2]
    i, j = np.floor(row), np.clip(np.floor(column), 0, width - 2)
    if not wrap_rows:
        i = np.clip(i, 0, height - 2)
    fi = np.clip(row - i, 0.0, 1.0).astype(np.float32)[:, None]
    fj = np.clip(column - j, 0.0, 1.0).astype(np.float32)[:, None]
    i0, j0 = i.astype(np.intp) % height, j.astype(np.intp)
    i1 = (i0 + 1) % height
    flat = field.reshape(height * width, -1)
    top, bottom = i0 * width + j0, i1 * width + j0
    upper = flat[top] * (1 - fj) + flat[top + 1] * fj
    lower = flat[bottom] * (1 - fj) + flat[bottom + 1] * fj
    return upper * (1 - fi) + lower * fi
