"""Clip specification -> frames: scene, camera path, degradations, masks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import breast, colon, degrade
from .fields import Array, smoothstep
from .tracks import Track, leave_view, random_track
from .wall import Wall, clearance, grid_shape, random_wall, surface_point

HARD_SHARE = 0.30  # of the frames, at difficulty 1
DECOY_SHARE = 0.12
CLUTTER_SHARE = (
    0.2  # of the frames: an occluder beside the lesion, so that occluders do not mark it
)
LEAVE_SHARE = 0.06  # of the clips of a colon; every BUV frame has its lesion
MIN_VISIBLE = 4e-4  # share of the image; a smaller visible part of a lesion is none

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ClipSpec:
    """Everything that determines a clip's pixels.

    Clips with one `case_seed` show one lesion in one place; `clip_seed` draws the camera path and
    the degradations.  `shots` holds the numbers of frames between cuts.
    """

    style: Literal["colon", "breast"]
    size: tuple[int, int]  # width, height in pixels
    case_seed: tuple[int, ...]
    clip_seed: tuple[int, ...]
    shots: tuple[int, ...]
    lesion: bool = True
    malignant: bool = False
    difficulty: float = 1.0
    degradation: degrade.Degradation = "hide"


@dataclass(frozen=True)
class Frame:
    """An image (H, W, 3) or (H, W) uint8, the lesion's mask (H, W) and the degradation."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    shot: int
    event: str  # "" for a clear frame
    decoy: bool

    @property
    def box(self) -> Box | None:
        """Extent of the mask; None where no lesion is in the image."""
        return extent(self.mask)


def extent(mask: NDArray[np.bool_]) -> Box | None:
    """Smallest box around a mask (H, W): x0, y0, x1, y1 in pixels, ends exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def render_clip(spec: ClipSpec) -> Iterator[Frame]:
    """The frames of a clip in temporal order; equal specs give equal pixels."""
    case_rng, rng = np.random.default_rng(spec.case_seed), np.random.default_rng(spec.clip_seed)
    shoot = _shoot_colon if spec.style == "colon" else _shoot_breast
    yield from shoot(spec, case_rng, rng)


def lesion_share(rng: np.random.Generator) -> float:
    """Longer side of a lesion as a share of the image's height: 0.08-0.45, most 0.18-0.40."""
    if rng.random() < 0.10:
        return float(rng.uniform(0.09, 0.15))
    return float(np.clip(rng.normal(0.33, 0.075), 0.17, 0.47))


def _contrast(difficulty: float, rng: np.random.Generator) -> float:
    """Factor on the lesion's contrast: 1 at difficulty 1, less when harder."""
    return float(rng.uniform(0.85, 1.15) * min(1.2, 2.0 / (1.0 + difficulty)))


def _events(
    rng: np.random.Generator, num_frames: int, difficulty: float, weights: dict[str, float]
) -> list[str]:
    """Degradation of each frame; at least half of a clip stays clear."""
    expected = num_frames * min(HARD_SHARE * difficulty, 0.6) * rng.uniform(0.6, 1.4)
    count = min(int(expected + rng.random()), max(num_frames // 2, int(rng.random() < 0.3)))
    events = [""] * num_frames
    for index in rng.choice(num_frames, size=min(count, num_frames), replace=False):
        events[int(index)] = degrade.pick_event(rng, weights)
    return events


def _track(spec: ClipSpec, rng: np.random.Generator, num_frames: int, share: float) -> Track:
    track = random_track(rng, num_frames, margin=min(0.10 + 0.45 * share, 0.34))
    may_leave = spec.lesion and spec.style == "colon" and num_frames > 2
    if may_leave and rng.random() < LEAVE_SHARE:
        track = leave_view(rng, track)
    return track


def _degradations(
    rng: np.random.Generator,
    spec: ClipSpec,
    mask: NDArray[np.bool_],
    event: str,
    occluders: tuple[str, ...],
) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Kinds of degradation and their boxes (x0, y0, x1, y1), first those beside the lesion.

    Occluders must not mark the lesion, so they often come in pairs.
    """
    box = extent(mask)
    found = []
    share = 0.6 if event in occluders else CLUTTER_SHARE * min(spec.difficulty, 1.5)
    if rng.random() < share:
        kind = event if event in occluders else str(rng.choice(occluders))
        hidden = box
        if box is not None and spec.style == "breast":  # a shadow falls on the whole column
            hidden = (box[0], 0, box[2], mask.shape[0])
        place = _elsewhere(rng, mask.shape, hidden)
        if place is not None:
            found.append((kind, place))
    target = box or _elsewhere(rng, mask.shape, None)
    if event and target is not None:
        found.append((event, target))
    return found


def _elsewhere(
    rng: np.random.Generator, shape: tuple[int, ...], box: Box | None
) -> tuple[float, float, float, float] | None:
    """A lesion-sized box away from `box`, or None if the image has no room for it."""
    height, width = shape
    for _ in range(12):
        half_x, half_y = rng.uniform(0.10, 0.20, 2) * height
        x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
        place = (x - half_x, y - half_y, x + half_x, y + half_y)
        reach = 0.4 * max(half_x, half_y)
        if box is None or (
            place[0] - reach > box[2]
            or place[2] + reach < box[0]
            or place[1] - reach > box[3]
            or place[3] + reach < box[1]
        ):
            return place
    return None


# --------------------------------------------------------------------------------------------
# Colon


def _shoot_colon(
    spec: ClipSpec, case_rng: np.random.Generator, rng: np.random.Generator
) -> Iterator[Frame]:
    wall = random_wall(case_rng, grid_shape(spec.size[0]))
    share, contrast = lesion_share(case_rng), _contrast(spec.difficulty, case_rng)
    lesion, position = _place_lesion(wall, case_rng, spec, share, contrast)
    scene = colon.make_scene(wall, lesion if spec.lesion else None)
    point = _aim_point(wall, lesion)
    aperture = _aperture(case_rng, spec.size)
    weights = degrade.event_weights(
        degrade.COLON_EVENTS, degrade.COLON_WEAK_EVENTS, spec.degradation
    )
    gain = 0.0
    for shot, num_frames in enumerate(spec.shots):
        track = _track(spec, rng, num_frames, share)
        events = _events(rng, num_frames, spec.difficulty, weights)
        roll = rng.uniform(0, 2 * np.pi)
        start = point + (position - point) * rng.uniform(0.92, 1.12)
        for t in range(num_frames):
            camera = colon.Camera(
                position=point + (start - point) * np.exp(-track.log_zoom[t]),
                look_at=point,
                target=track.centre[t],
                roll=roll + track.roll[t],
            )
            view = colon.render(scene, camera, spec.size)
            wanted = wall.exposure / max(float(np.percentile(view.light.mean(-1), 70)), 1e-3)
            gain = wanted if t == 0 else 0.7 * gain + 0.3 * wanted
            image = 1.0 - np.exp(-0.95 * gain * view.light)
            mask = _visible(view.mask & (aperture > 0.5), scene.lesion)
            shift = track.shift(t) * np.array(spec.size)
            yield _finish_colon(rng, spec, image, mask, aperture, shift, shot, events[t])


def _visible(mask: NDArray[np.bool_], lesion: object) -> NDArray[np.bool_]:
    """The mask, empty without a lesion or with too little of it in the image."""
    return mask if lesion is not None and mask.mean() >= MIN_VISIBLE else np.zeros_like(mask)


def _finish_colon(
    rng: np.random.Generator,
    spec: ClipSpec,
    image: Array,
    mask: NDArray[np.bool_],
    aperture: Array,
    shift: NDArray[np.float64],
    shot: int,
    event: str,
) -> Frame:
    decoy = bool(rng.random() < DECOY_SHARE * spec.difficulty)
    if decoy:
        image = degrade.decoy_colon(rng, image)
    for kind, box in _degradations(rng, spec, mask, event, degrade.COLON_OCCLUDERS):
        image = degrade.degrade_colon(rng, image, kind, box)
    image = degrade.colour_fringe(degrade.motion_blur(image, 0.7 * shift), 0.35 * shift)
    image = degrade.defocus(image, 0.45 + 0.0006 * spec.size[0])
    image = image + 0.012 * rng.standard_normal(image.shape, dtype=np.float32)
    grey = image.mean(axis=-1, keepdims=True)
    image = np.clip(grey + 1.22 * (image - grey), 0, 1) ** 0.85  # the processor's vivid mode
    image = image * aperture[..., None] + 0.02
    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return Frame(pixels, mask, shot, event, decoy)


def _place_lesion(
    wall: Wall,
    rng: np.random.Generator,
    spec: ClipSpec,
    share: float,
    contrast: float,
) -> tuple[colon.Lesion, NDArray[np.float64]]:
    """A lesion and a camera position from which it fills `share` of the image's height.

    Tries places until the view is free, then scales the lesion.
    """
    width, height = spec.size
    preview = (64, max(8, round(64 * height / width)))
    per_radian = 0.5 * np.hypot(*preview) / colon.HALF_FIELD
    best = (np.inf, colon.random_lesion(rng, contrast=contrast), np.zeros(3))
    for _ in range(14):
        lesion = colon.random_lesion(rng, contrast=contrast)
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.45)
        position = np.array([offset * np.cos(angle), offset * np.sin(angle), 0.0])
        way = surface_point(wall, lesion.theta, lesion.z) - position
        radius = float(np.linalg.norm(way)) * np.tan(0.5 * share * preview[1] / per_radian)
        lesion = replace(lesion, radius=float(np.clip(radius, 0.05, 0.50)))
        line = position + np.linspace(0.0, 0.8, 12)[:, None] * way
        if min(clearance(wall, point) for point in line) < 0.04:
            continue
        for _ in range(3):
            camera = colon.Camera(position, _aim_point(wall, lesion), np.array([0.5, 0.5]), 0.0)
            view = colon.render(colon.make_scene(wall, lesion), camera, preview)
            box = extent(view.mask)
            side = max(box[2] - box[0], box[3] - box[1]) / preview[1] if box else 1e-3
            error = abs(np.log(side / share))
            if error < best[0]:
                best = (error, lesion, position)
            scaled = lesion.radius * np.clip(share / side, 0.6, 1.6)
            lesion = replace(lesion, radius=float(min(scaled, 0.5)))
        if best[0] < 0.12:
            break
    return best[1], best[2]


def _aim_point(wall: Wall, lesion: colon.Lesion) -> NDArray[np.float64]:
    """A point inside the lesion's body (3,), a little off the wall."""
    inward = -np.array([np.cos(lesion.theta), np.sin(lesion.theta), 0.0])
    lift = {"flat": 0.1, "sessile": 0.35, "pedunculated": 0.8}[lesion.kind]
    return surface_point(wall, lesion.theta, lesion.z) + lift * lesion.radius * inward


def _aperture(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """1 inside the octagonal aperture of the endoscope's image, 0 outside (H, W)."""
    width, height = size
    x = np.abs(np.arange(width, dtype=np.float32) + 0.5 - width / 2)[None, :]
    y = np.abs(np.arange(height, dtype=np.float32) + 0.5 - height / 2)[:, None]
    cut = rng.uniform(0.0, 0.16) * width
    corner = (width / 2 - x) + (height / 2 - y) - cut
    return smoothstep(corner, -0.5, 1.0)


# --------------------------------------------------------------------------------------------
# Breast


def _shoot_breast(
    spec: ClipSpec, case_rng: np.random.Generator, rng: np.random.Generator
) -> Iterator[Frame]:
    tissue = breast.random_tissue(case_rng, spec.size)
    share, contrast = 1.15 * lesion_share(case_rng), _contrast(spec.difficulty, case_rng)
    mass = breast.random_mass(case_rng, side=share, malignant=spec.malignant, contrast=contrast)
    weights = degrade.event_weights(
        degrade.BREAST_EVENTS, degrade.BREAST_WEAK_EVENTS, spec.degradation
    )
    for shot, num_frames in enumerate(spec.shots):
        track = _track(spec, rng, num_frames, share)
        depth = float(np.clip(track.centre[:, 1].mean(), 0.2, 0.8))
        mass = replace(mass, centre=np.array([mass.centre[0], depth]))
        events = _events(rng, num_frames, spec.difficulty, weights)
        for t in range(num_frames):
            image, mask = breast.render(
                tissue,
                mass if spec.lesion else None,
                spec.size,
                target=track.centre[t],
                zoom=float(np.exp(2.0 * track.log_zoom[t])),
                tilt=float(track.roll[t]),
                rng=rng,
            )
            mask = _visible(mask, mass if spec.lesion else None)
            shift = track.shift(t) * np.array(spec.size)
            yield _finish_breast(rng, spec, image, mask, shift, shot, events[t])


def _finish_breast(
    rng: np.random.Generator,
    spec: ClipSpec,
    image: Array,
    mask: NDArray[np.bool_],
    shift: NDArray[np.float64],
    shot: int,
    event: str,
) -> Frame:
    image = image[..., None]
    decoy = bool(rng.random() < DECOY_SHARE * spec.difficulty)
    if decoy:
        image = degrade.decoy_breast(rng, image)
    for kind, box in _degradations(rng, spec, mask, event, degrade.BREAST_OCCLUDERS):
        image = degrade.degrade_breast(rng, image, kind, box)
    image = degrade.motion_blur(image, 0.5 * shift)[..., 0]
    image = image + 0.01 * rng.standard_normal(image.shape, dtype=np.float32)
    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return Frame(pixels, mask, shot, event, decoy)
