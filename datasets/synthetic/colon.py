"""A colon seen from inside: a wall and a lesion, rendered by ray marching.

Folds occlude the wall behind them and the camera moves as an endoscope does.  The light is at the
camera: brightness falls with the square of the distance, and wet mucosa reflects it where the wall
faces the lens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .fields import Array, bilinear, contour_radius, random_harmonics, smoothstep
from .wall import Wall, around_axis, cell, gap, surface_point

HALF_FIELD = np.radians(66.0)  # from the middle of the image to its corner
MARCH_STEPS = 44
CONTOUR_STEPS = 512


@dataclass(frozen=True)
class Lesion:
    """A lesion on the wall: place (theta, z), radius along the wall, shape and appearance."""

    theta: float
    z: float
    radius: float
    kind: str  # "flat", "sessile" or "pedunculated"
    aspect: float
    tilt: float
    harmonics: NDArray[np.float64]
    lobes: NDArray[np.float64]  # (5, 4) wave vectors per radius and phases of its surface relief
    lobe_depth: float
    tint: NDArray[np.float64]  # factor on the reflectance of the mucosa
    texture: float


@dataclass(frozen=True)
class Scene:
    """A wall with or without a lesion; `make_scene` derives the other fields."""

    wall: Wall
    lesion: Lesion | None
    base: Array  # (3,) where the lesion meets the wall
    contour: Array  # radius of its outline at CONTOUR_STEPS angles from -pi


@dataclass(frozen=True)
class Camera:
    """Position (3,), the world point (3,) that appears at `target` in [0, 1]^2, and roll."""

    position: NDArray[np.float64]
    look_at: NDArray[np.float64]
    target: NDArray[np.float64]
    roll: float


@dataclass(frozen=True)
class View:
    """Linear light (H, W, 3), the visible lesion's mask (H, W) and the depth (H, W)."""

    light: Array
    mask: NDArray[np.bool_]
    depth: Array


def random_lesion(rng: np.random.Generator, *, contrast: float) -> Lesion:
    """A lesion ahead of the camera; `contrast` scales its difference in colour from the mucosa."""
    kind = str(rng.choice(["flat", "sessile", "pedunculated"], p=[0.22, 0.48, 0.30]))
    tint = np.array([[1.0, 0.66, 0.68], [1.12, 1.22, 1.30], [0.74, 0.52, 0.56]])
    strength = contrast * rng.uniform(0.7, 1.2)
    direction = rng.standard_normal((5, 3))
    direction *= rng.uniform(4.0, 9.0, (5, 1)) / np.linalg.norm(direction, axis=1, keepdims=True)
    return Lesion(
        theta=float(rng.uniform(0, 2 * np.pi)),
        z=float(rng.uniform(0.45, 2.1)),
        radius=0.3,
        kind=kind,
        aspect=float(np.exp(rng.uniform(0.0, 0.45))),
        tilt=float(rng.uniform(0, np.pi)),
        harmonics=random_harmonics(rng, count=5, roughness=0.05 if kind != "flat" else 0.09),
        lobes=np.concatenate([direction, rng.uniform(0, 2 * np.pi, (5, 1))], axis=1),
        lobe_depth=float(rng.uniform(0.01, 0.05)),
        tint=np.clip(1.0 + strength * (tint[rng.choice(3, p=[0.5, 0.3, 0.2])] - 1.0), 0.2, 1.5),
        texture=float(rng.uniform(0.03, 0.12)),
    )


def make_scene(wall: Wall, lesion: Lesion | None) -> Scene:
    """Put the lesion on the wall."""
    if lesion is None:
        return Scene(wall, None, np.zeros(3, np.float32), np.ones(CONTOUR_STEPS, np.float32))
    angle = np.linspace(-np.pi, np.pi, CONTOUR_STEPS, dtype=np.float32)
    contour = contour_radius(angle, lesion.harmonics, aspect=lesion.aspect, tilt=lesion.tilt)
    base = surface_point(wall, lesion.theta, lesion.z).astype(np.float32)
    return Scene(wall, lesion, base, lesion.radius * contour)


def render(scene: Scene, camera: Camera, size: tuple[int, int]) -> View:
    """The camera's view, `size` = (width, height) in pixels."""
    width, height = size
    direction = _rays(camera, size)
    depth, hit, on_lesion = _march(scene, camera.position, direction)
    point = camera.position.astype(np.float32) + depth[:, None] * direction
    light = np.zeros_like(point)
    wall = ~on_lesion
    light[wall] = _shade_wall(scene, point[wall], direction[wall], depth[wall])
    if on_lesion.any():
        light[on_lesion] = _shade_lesion(
            scene, point[on_lesion], direction[on_lesion], depth[on_lesion]
        )
    light *= hit[:, None]
    return View(
        light.reshape(height, width, 3),
        (on_lesion & hit).reshape(height, width),
        depth.reshape(height, width),
    )


def _lesion_distance(scene: Scene, point: Array) -> Array:
    """Approximate distance (n,) of world points (n, 3) to the lesion; negative inside.

    A superellipsoid on the wall; a pedunculated one is lifted onto a stalk.
    """
    lesion = scene.lesion
    assert lesion is not None
    local = _local(scene, point)
    rise, power = {"flat": (0.30, 3.0), "sessile": (0.80, 2.4), "pedunculated": (0.85, 2.0)}[
        lesion.kind
    ]
    lift = 0.95 * lesion.radius if lesion.kind == "pedunculated" else 0.0
    x, y, n = local[:, 0], local[:, 1], local[:, 2] - lift
    step = (np.arctan2(y, x) + np.pi) * ((CONTOUR_STEPS - 1) / (2 * np.pi))
    contour = scene.contour[np.minimum(step.astype(np.intp), CONTOUR_STEPS - 1)]
    flat = np.hypot(x, y)
    upward = np.abs(n) / (rise * lesion.radius)
    shell = ((flat / contour) ** power + upward**power) ** (1 / power) - 1.0
    shell = shell + lesion.lobe_depth * _lobes(lesion, local)
    distance = shell * (lesion.radius * min(rise, 1.0) * 0.8)
    if lift:
        stalk = np.maximum(flat - 0.38 * lesion.radius, local[:, 2] - lift)
        distance = np.minimum(distance, stalk)
    return distance


def _local(scene: Scene, point: Array) -> Array:
    """World points in the lesion's frame (n, 3): around the tube, along it, inward."""
    assert scene.lesion is not None
    offset = point - scene.base
    c, s = np.float32(np.cos(scene.lesion.theta)), np.float32(np.sin(scene.lesion.theta))
    around = -s * offset[:, 0] + c * offset[:, 1]
    inward = -c * offset[:, 0] - s * offset[:, 1]
    return np.stack([around, offset[:, 2], inward], axis=-1)


def _lobes(lesion: Lesion, local: Array) -> Array:
    """Relief of the lesion's surface, between about -2 and 2."""
    waves = (lesion.lobes[:, :3] / lesion.radius).astype(np.float32)
    return np.cos(local @ waves.T + lesion.lobes[:, 3].astype(np.float32)).sum(axis=1) * 0.8


def _rays(camera: Camera, size: tuple[int, int]) -> Array:
    """Unit directions (H*W, 3) of an equidistant lens turned so that `look_at` meets `target`."""
    width, height = size
    half = 0.5 * np.hypot(width, height)
    x = (np.arange(width) + 0.5 - width / 2) / half
    y = (np.arange(height) + 0.5 - height / 2) / half
    grid = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1).reshape(-1, 2)
    aim = (camera.target - 0.5) * np.array([width, height]) / half
    wanted = camera.look_at - camera.position
    rotation = _turn(_lens(aim[None])[0], wanted / np.linalg.norm(wanted), camera.roll)
    return (_lens(grid) @ rotation.T).astype(np.float32)


def _lens(point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Direction (n, 3) of a place (n, 2) in the image, the corner being at radius 1."""
    radius = np.maximum(np.hypot(point[:, 0], point[:, 1]), 1e-9)
    angle = radius * HALF_FIELD
    scale = np.sin(angle) / radius
    return np.stack([point[:, 0] * scale, point[:, 1] * scale, np.cos(angle)], axis=-1)


def _turn(
    source: NDArray[np.float64], target: NDArray[np.float64], roll: float
) -> NDArray[np.float64]:
    """The smallest rotation (3, 3) from `source` to `target`, then `roll` about `target`."""
    axis = np.cross(source, target)
    cosine = float(source @ target)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    smallest = np.eye(3) + skew + skew @ skew / max(1.0 + cosine, 1e-6)
    t = target
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    about = np.eye(3) + np.sin(roll) * cross + (1 - np.cos(roll)) * cross @ cross
    return about @ smallest


def _march(
    scene: Scene, position: NDArray[np.float64], direction: Array
) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Distance (n,) along each ray to a surface, mask of hits, mask of hits on the lesion."""
    start = position.astype(np.float32)
    depth = np.full(len(direction), 0.02, np.float32)
    hit = np.zeros(len(direction), np.bool_)
    on_lesion = np.zeros(len(direction), np.bool_)
    near = _near_lesion(scene, start, direction)
    active = np.arange(len(direction))
    t = depth.copy()
    for _ in range(MARCH_STEPS):
        point = start + t[:, None] * direction[active]
        room = gap(scene.wall, point[:, 0], point[:, 1], point[:, 2])
        step = np.maximum(0.62 * room, 0.012)
        close = np.flatnonzero(near[active])
        if len(close) and scene.lesion is not None:
            other = _lesion_distance(scene, point[close])
            on_lesion[active[close]] = other < room[close]
            room[close] = np.minimum(room[close], other)
            step[close] = np.minimum(step[close], np.maximum(0.7 * other, 0.008))
        met = room < 0.006
        hit[active[met]] = True
        depth[active] = t
        alive = ~met & (t < 9.0)
        active, t = active[alive], (t + step)[alive]
        if not len(active):
            break
    hit |= depth > 4.0  # in the dark of the lumen, where it makes no difference
    hit[active] = True
    on_lesion[active] = False
    return depth, hit, on_lesion


def _near_lesion(scene: Scene, start: Array, direction: Array) -> NDArray[np.bool_]:
    """Mask of the rays (n,) that pass near the lesion."""
    if scene.lesion is None:
        return np.zeros(len(direction), np.bool_)
    base = scene.base - start
    along = np.maximum(direction @ base, 0.0)
    miss = np.linalg.norm(base - along[:, None] * direction, axis=1)
    return miss < 2.6 * scene.lesion.radius


def _shade_wall(scene: Scene, point: Array, ray: Array, depth: Array) -> Array:
    """Light (n, 3) reflected by points of the wall."""
    wall = scene.wall
    x, y = around_axis(wall, point[:, 0], point[:, 1], point[:, 2])
    radius = np.maximum(np.hypot(x, y), 1e-3)
    geometry, skin = _wall_values(wall, wall.geometry, point), _wall_values(wall, wall.skin, point)

    def facing(slope_theta: Array, slope_z: Array) -> Array:
        """Cosine between the surface's normal and the way back to the camera."""
        nx = x / radius - slope_theta / radius * y / radius
        ny = y / radius + slope_theta / radius * x / radius
        norm = np.sqrt(nx**2 + ny**2 + slope_z**2)
        return np.clip((nx * ray[:, 0] + ny * ray[:, 1] + slope_z * ray[:, 2]) / norm, 0, 1)

    smooth = facing(geometry[:, 1], geometry[:, 2])
    rough = facing(geometry[:, 1] + skin[:, 3], geometry[:, 2] + skin[:, 4])
    albedo = skin[:, :3]
    if scene.lesion is not None:
        distance = _lesion_distance(scene, point)
        contact = np.exp(-np.maximum(distance, 0) / (0.18 * scene.lesion.radius))
        albedo = albedo * (1 - 0.35 * contact[:, None])
    return _light(wall, albedo, smooth, rough, skin[:, 5], depth)


def _shade_lesion(scene: Scene, point: Array, ray: Array, depth: Array) -> Array:
    """Light (n, 3) reflected by points of the lesion."""
    wall, lesion = scene.wall, scene.lesion
    assert lesion is not None
    step = np.float32(0.02 * lesion.radius)
    here = _lesion_distance(scene, point)
    slope = np.stack(
        [
            _lesion_distance(scene, point + step * np.eye(3, dtype=np.float32)[k]) - here
            for k in range(3)
        ],
        axis=-1,
    )
    normal = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
    facing = np.clip(-(normal * ray).sum(axis=1), 0, 1)
    local = _local(scene, point)
    pits = _lobes(lesion, 3.0 * local) * 0.5
    own = wall.mucosa * lesion.tint * (1.0 + lesion.texture * pits[:, None])
    room = gap(wall, point[:, 0], point[:, 1], point[:, 2])
    head = 0.25 + 0.75 * smoothstep(room, 0.0, 0.35 * lesion.radius)[:, None]
    skin = _wall_values(wall, wall.skin, point)[:, :3]  # its base is covered by healthy mucosa
    albedo = skin + head * (own - skin)
    wet = np.clip(0.5 + 0.5 * _lobes(lesion, 1.7 * local + 0.3), 0, 1)
    return _light(wall, albedo.astype(np.float32), facing, facing, wet, depth)


def _wall_values(wall: Wall, field: Array, point: Array) -> Array:
    """Values (n, C) of one of the wall's fields behind world points (n, 3)."""
    x, y = around_axis(wall, point[:, 0], point[:, 1], point[:, 2])
    row, column = cell(np.arctan2(y, x), point[:, 2], field.shape)
    return bilinear(field, row, column, wrap_rows=True)


def _light(
    wall: Wall, albedo: Array, smooth: Array, rough: Array, wet: Array, depth: Array
) -> Array:
    """Diffuse reflection with the lamp's fall-off and reddening, and specular one where wet."""
    fall = 1.0 / (0.10 + depth**2)
    diffuse = (0.18 + 0.82 * (0.5 * smooth + 0.5 * rough)) * fall
    fade = np.exp(-depth[:, None] * np.array([0.04, 0.16, 0.20], np.float32))
    shine = smoothstep(rough, 0.975, 0.995) * smoothstep(smooth, 0.80, 0.97) * wet
    mirror = wall.gloss * shine * np.sqrt(fall)
    return albedo * diffuse[:, None] * fade + mirror[:, None]
