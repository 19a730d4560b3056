"""Degradations of a frame: occluders, glare, blur, darkness and lesion-like decoys.

Images are float (H, W, 3) in [0, 1]; places and radii are in pixels.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .fields import Array, contour_radius, fractal_noise, random_harmonics, smoothstep

COLON_EVENTS = {
    "debris": 0.22,
    "instrument": 0.16,
    "bubbles": 0.12,
    "glare": 0.16,
    "blur": 0.20,
    "fog": 0.14,
}
COLON_OCCLUDERS = ("debris", "instrument", "bubbles", "glare")  # the others degrade the whole frame
BREAST_EVENTS = {"shadow": 0.42, "blur": 0.30, "liftoff": 0.28}
BREAST_OCCLUDERS = ("shadow",)
# These leave weak evidence of the lesion, which a single-frame detector can learn to use; those
# above hide it.
COLON_WEAK_EVENTS = {
    "noise": 0.2,
    "soft focus": 0.2,
    "short motion": 0.2,
    "low contrast": 0.2,
    "partial glare": 0.2,
}
BREAST_WEAK_EVENTS = {"noise": 0.34, "soft focus": 0.33, "low contrast": 0.33}

Degradation = Literal["hide", "weaken", "both"]


def event_weights(
    hiding: dict[str, float], weakening: dict[str, float], degradation: Degradation
) -> dict[str, float]:
    """Weights of the kinds of events: those that hide, those that weaken, or half of each."""
    if degradation == "both":
        return {name: w / 2 for name, w in (*hiding.items(), *weakening.items())}
    return hiding if degradation == "hide" else weakening


def pick_event(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """One of the names, by weight."""
    share = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=share / share.sum()))


def degrade_colon(
    rng: np.random.Generator, image: Array, event: str, box: tuple[float, float, float, float]
) -> Array:
    """Degrade the content of `box` (x0, y0, x1, y1), or the image, by the kind `event`."""
    if event in COLON_WEAK_EVENTS:
        return _weaken(rng, image, event, box)
    middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    extent = max(box[2] - box[0], box[3] - box[1]) / 2
    middle = middle + extent * rng.uniform(-0.4, 0.4, 2)
    reach = extent * rng.uniform(1.2, 1.9)
    if event == "debris":
        return _debris(rng, image, middle, reach)
    if event == "instrument":
        return _instrument(rng, image, middle, 0.65 * reach)
    if event == "bubbles":
        return _bubbles(rng, image, middle, reach)
    if event == "glare":
        return _glare(rng, image, middle, reach)
    if event == "fog":
        return _fog(rng, image)
    assert event == "blur", event
    width = image.shape[1]
    angle, length = rng.uniform(0, 2 * np.pi), width * rng.uniform(0.13, 0.22)
    blurred = motion_blur(image, length * np.array([np.cos(angle), np.sin(angle)]))
    return defocus(blurred, 0.026 * width)


def decoy_colon(rng: np.random.Generator, image: Array) -> Array:
    """A drop of mucus with a lesion's size and colour, for this frame alone."""
    height, width = image.shape[:2]
    middle = np.array([rng.uniform(0.15, 0.85) * width, rng.uniform(0.15, 0.85) * height])
    reach = height * rng.uniform(0.07, 0.17)
    level = _blob(rng, image.shape, middle, reach, roughness=0.05)
    alpha = smoothstep(level, -0.02, 0.12)[..., None]
    around = ndimage.gaussian_filter(image, (reach * 0.4, reach * 0.4, 0), mode="nearest")
    tint = np.array([1.05, 0.72, 0.70]) if rng.random() < 0.6 else np.array([1.1, 1.15, 1.05])
    dome = 0.55 + 0.6 * np.clip(level, 0, 1)[..., None]
    return image + 0.9 * alpha * (np.clip(around * tint * dome, 0, 1) - image)


def motion_blur(image: Array, shift: NDArray[np.float64]) -> Array:
    """Average of the image moved along `shift` (2,) = x, y pixels."""
    length = float(np.hypot(*shift))
    if length < 0.7:
        return image
    count = int(np.clip(np.ceil(length), 2, 24))
    total = np.zeros_like(image)
    for s in np.linspace(-0.5, 0.5, count):
        total += _moved(image, s * shift)
    return total / count


def colour_fringe(image: Array, shift: NDArray[np.float64]) -> Array:
    """Red and blue recorded before and after green, as frame-sequential endoscopes do."""
    if float(np.hypot(*shift)) < 0.7:
        return image
    red = _moved(image[..., :1], -0.5 * shift)
    blue = _moved(image[..., 2:], 0.5 * shift)
    return np.concatenate([red, image[..., 1:2], blue], axis=-1)


def defocus(image: Array, sigma: float) -> Array:
    """Gaussian blur of `sigma` pixels."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def degrade_breast(
    rng: np.random.Generator, image: Array, event: str, box: tuple[float, float, float, float]
) -> Array:
    """Gas or lost contact over the lesion, a sudden movement, or a lifted probe."""
    if event in BREAST_WEAK_EVENTS:
        return _weaken(rng, image, event, box)
    height, width = image.shape[:2]
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    if event == "shadow":
        x = np.arange(width, dtype=np.float32)
        half = max(box[2] - box[0], 6.0) * rng.uniform(0.5, 0.85)
        middle = (box[0] + box[2]) / 2 + half * rng.uniform(-0.25, 0.25)
        flutter = ndimage.gaussian_filter1d(rng.standard_normal(width), width * 0.02)
        flutter = 0.25 * flutter / (flutter.std() + 1e-9)
        column = smoothstep(np.abs(x - middle) / half + flutter, 1.4, 0.6)[None, :, None]
        start = rng.uniform(0.0, 0.08)
        ringing = np.exp(-6 * depth) * (0.5 + 0.5 * np.cos(2 * np.pi * depth / 0.045)) ** 2
        below = smoothstep(depth, start, start + 0.15)
        return image * (1 - 0.92 * below * column) + 0.5 * ringing * column * image.mean()
    if event == "blur":
        shift = np.array([rng.choice([-1, 1]) * width * rng.uniform(0.08, 0.15), 0.0])
        return defocus(motion_blur(image, shift), 0.018 * width)
    assert event == "liftoff", event
    echoes = np.exp(-3.5 * depth) * (0.5 + 0.5 * np.cos(2 * np.pi * depth / 0.06)) ** 3
    grain = 0.85 + 0.3 * rng.random((height, width, 1), dtype=np.float32)
    return np.clip(0.16 * image + 0.03 + 0.55 * echoes * grain, 0, 1)


def decoy_breast(rng: np.random.Generator, image: Array) -> Array:
    """A dark fat lobule that the probe passes in this frame alone."""
    height, width = image.shape[:2]
    middle = np.array([rng.uniform(0.15, 0.85) * width, rng.uniform(0.25, 0.7) * height])
    level = _blob(rng, image.shape, middle, height * rng.uniform(0.07, 0.14), roughness=0.05)
    return image * (1 - 0.72 * smoothstep(level, -0.05, 0.2)[..., None])


def _weaken(
    rng: np.random.Generator, image: Array, event: str, box: tuple[float, float, float, float]
) -> Array:
    """The image with less, but some, evidence of the content of `box`."""
    width = image.shape[1]
    if event == "noise":
        sigma = rng.uniform(0.18, 0.30)
        grain = sigma * rng.standard_normal(image.shape, dtype=np.float32)
        return np.clip(image + grain, 0, 1).astype(np.float32)
    if event == "soft focus":
        return defocus(image, width * rng.uniform(0.024, 0.038))
    if event == "short motion":
        angle, length = rng.uniform(0, 2 * np.pi), width * rng.uniform(0.09, 0.14)
        return motion_blur(image, length * np.array([np.cos(angle), np.sin(angle)]))
    if event == "low contrast":
        around = defocus(image, 0.25 * width)
        faint = around + rng.uniform(0.12, 0.25) * (image - around)
        return (rng.uniform(0.45, 0.7) * faint).astype(np.float32)
    assert event == "partial glare", event
    half = np.array([box[2] - box[0], box[3] - box[1]]) / 2
    angle = rng.uniform(0, 2 * np.pi)
    middle = np.array([box[0], box[1]]) + half
    middle = middle + 0.55 * half * np.array([np.cos(angle), np.sin(angle)])
    return _glare(rng, image, middle, 0.62 * float(half.max()))


def _blob(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    middle: NDArray[np.float64],
    reach: float,
    *,
    roughness: float,
) -> Array:
    """1 in the middle of an irregular blob, 0 on its contour, negative outside (H, W)."""
    y = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(middle[1])
    x = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(middle[0])
    angle = np.arctan2(y, x)
    contour = contour_radius(
        angle,
        random_harmonics(rng, count=7, roughness=roughness),
        aspect=float(np.exp(rng.uniform(0, 0.4))),
        tilt=float(rng.uniform(0, np.pi)),
    )
    return (1.0 - np.hypot(x, y) / (reach * contour)).astype(np.float32)


def _debris(
    rng: np.random.Generator, image: Array, middle: NDArray[np.float64], reach: float
) -> Array:
    """Yellow-brown residue with a ragged edge."""
    noise = fractal_noise(rng, image.shape[:2], slope=1.5, band=(3, 60))
    level = _blob(rng, image.shape, middle, reach, roughness=0.15) + 0.11 * noise
    alpha = 0.97 * smoothstep(level, -0.04, 0.14)[..., None]
    colour = np.array([[0.80, 0.60, 0.16], [0.62, 0.50, 0.20], [0.55, 0.34, 0.12]])
    colour = colour[rng.integers(3)] * rng.uniform(0.7, 1.1)
    relief = ndimage.sobel(noise, axis=0) / 8 + 0.10 * noise
    light = 0.80 + 0.22 * relief[..., None] + 0.2 * np.clip(level, 0, 1)[..., None]
    return image + alpha * (np.clip(colour * light, 0, 1) - image)


def _instrument(
    rng: np.random.Generator, image: Array, middle: NDArray[np.float64], half_width: float
) -> Array:
    """A shaft from the border to a little beyond `middle`."""
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    along, across = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    y = np.arange(height, dtype=np.float32)[:, None] - middle[1]
    x = np.arange(width, dtype=np.float32)[None, :] - middle[0]
    u, v = x * along[0] + y * along[1], (x * across[0] + y * across[1]) / half_width
    tip = 1.1 * half_width
    inside = smoothstep(np.abs(v), 1.03, 0.95) * smoothstep(u, tip, tip - 2)
    colour = np.array(
        [[0.85, 0.87, 0.88], [0.35, 0.38, 0.42], [0.25, 0.42, 0.66], [0.92, 0.90, 0.78]]
    )[rng.integers(4)]
    shade = 0.25 + 0.65 * np.sqrt(np.clip(1 - v**2, 0, 1))
    shine = 0.6 * np.exp(-(((v + 0.35) / 0.12) ** 2))
    body = np.clip(colour * shade[..., None] + shine[..., None], 0, 1)
    return image + inside[..., None] * (body - image)


def _bubbles(
    rng: np.random.Generator, image: Array, middle: NDArray[np.float64], reach: float
) -> Array:
    """Foam: a cluster of bubbles with bright rims."""
    out = image.copy()
    for _ in range(int(rng.integers(22, 40))):
        place = middle + reach * np.clip(rng.normal(0, 0.5, 2), -1.1, 1.1)
        radius = reach * rng.uniform(0.12, 0.42)
        y = np.arange(image.shape[0], dtype=np.float32)[:, None] - place[1]
        x = np.arange(image.shape[1], dtype=np.float32)[None, :] - place[0]
        r = np.hypot(x, y) / radius
        veil = smoothstep(r, 1.02, 0.9)[..., None]
        rim = np.exp(-(((r - 0.9) / 0.12) ** 2))[..., None]
        dot = np.exp(-((x + 0.35 * radius) ** 2 + (y + 0.35 * radius) ** 2) / (0.18 * radius) ** 2)
        out = out + veil * 0.33 * (np.array([0.78, 0.66, 0.52]) - out)
        out = np.clip(out + 0.16 * rim + 0.6 * dot[..., None], 0, 1)
    return out.astype(np.float32)


def _glare(
    rng: np.random.Generator, image: Array, middle: NDArray[np.float64], reach: float
) -> Array:
    """Reflection of the lamp: a saturated patch."""
    noise = fractal_noise(rng, image.shape[:2], slope=1.8, band=(2, 30))
    level = _blob(rng, image.shape, middle, 1.1 * reach, roughness=0.10) + 0.12 * noise
    alpha = smoothstep(level, -0.5, 0.3)[..., None]
    return image + alpha * (np.array([1.0, 0.99, 0.93], np.float32) - image)


def _fog(rng: np.random.Generator, image: Array) -> Array:
    """A dirty lens: washed out and soft, or far too dark."""
    soft = defocus(image, image.shape[1] * rng.uniform(0.035, 0.055))
    if rng.random() < 0.4:
        return (soft * 0.3).astype(np.float32)
    veil = soft.mean(axis=(0, 1)) * rng.uniform(0.9, 1.5) + 0.06
    clouds = fractal_noise(rng, image.shape[:2], slope=2.0, band=(1, 4))[..., None]
    return (0.30 * soft + np.clip(0.70 * veil * (1 + 0.10 * clouds), 0, 1)).astype(np.float32)


def _moved(image: Array, shift: NDArray[np.float64]) -> Array:
    """The image moved by `shift` = x, y pixels, bilinear, borders repeated."""
    height, width = image.shape[:2]
    pad = int(np.ceil(np.abs(shift).max())) + 1
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    x, y = pad - float(shift[0]), pad - float(shift[1])
    j, i = int(np.floor(x)), int(np.floor(y))
    fx, fy = np.float32(x - j), np.float32(y - i)
    rows = padded[i : i + height + 1] if i + height + 1 <= padded.shape[0] else padded[i:]
    if rows.shape[0] < height + 1:
        rows = np.pad(rows, ((0, 1), (0, 0), (0, 0)), mode="edge")
    mixed = rows[:height] * (1 - fy) + rows[1 : height + 1] * fy
    right = mixed[:, j + 1 : j + width + 1]
    if right.shape[1] < width:
        right = np.pad(right, ((0, 0), (0, width - right.shape[1]), (0, 0)), mode="edge")
    return mixed[:, j : j + width] * (1 - fx) + right * fx
