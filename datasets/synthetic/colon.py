"""A colon seen from inside: a bent tube with folds and a lesion, rendered by ray marching.

The wall is a height field over angle and length, radius(theta, z) = 1 - height(theta, z), so that
folds hide what lies behind them and the picture moves as an endoscope's does.  The light sits at
the camera: brightness falls with the square of the distance, and wet mucosa mirrors it where the
wall faces the lens.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from .fields import (
    Array,
    bilinear,
    contour_radius,
    fractal_noise,
    random_harmonics,
    smoothstep,
)

Z_NEAR, Z_FAR = -1.6, 6.4  # extent of the modelled wall along the tube; the camera sits near 0
HALF_FIELD = np.radians(66.0)  # from the middle of the picture to its corner
MARCH_STEPS = 44

# Linear reflectance of healthy mucosa: pink, orange, tan, grey-brown, deep red.
MUCOSA = np.array(
    [
        [0.86, 0.50, 0.40],
        [0.92, 0.52, 0.28],
        [0.80, 0.56, 0.38],
        [0.66, 0.50, 0.40],
        [0.84, 0.38, 0.30],
    ]
)
VESSEL = np.array([0.62, 0.20, 0.16])


@dataclass(frozen=True)
class Lesion:
    """A lesion on the wall: place (theta, z), radius along the wall, form and look."""

    theta: float
    z: float
    radius: float
    kind: str  # "flat", "sessile" or "pedunculated"
    aspect: float
    tilt: float
    harmonics: NDArray[np.float64]
    tint: NDArray[np.float64]  # factor on the reflectance around it
    texture: float


@dataclass(frozen=True)
class Wall:
    """The wall without a lesion, on a grid (angles, lengths)."""

    height: Array  # (A, Z) inward displacement, in radii of the tube
    albedo: Array  # (A, Z, 3)
    bump: Array  # (A, Z) fine relief: seen by the light, not by the geometry
    grain: Array  # (A, Z) noise in [0, 1] for the lesion's own texture
    bend: NDArray[np.float64]  # (2,) curvature of the centre line
    gloss: float
    exposure: float


@dataclass(frozen=True)
class Scene:
    """What the ray marcher reads: geometry (A, Z, 4) = height, its slopes, lesion level (> 0
    inside), skin (A, Z, 5) = reflectance and slopes of the relief."""

    geometry: Array
    skin: Array
    wall: Wall
    lesion: Lesion | None


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


def grid_shape(width: int) -> tuple[int, int]:
    """Cells of the wall's grid for pictures `width` pixels wide."""
    angles = int(np.clip(2 ** np.round(np.log2(width * 3.0)), 256, 2048))
    return angles, round(angles * (Z_FAR - Z_NEAR) / (2 * np.pi))


def wall_axes(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Angle (A, 1) and length (1, Z) of every cell of a wall's grid."""
    theta = np.linspace(0, 2 * np.pi, shape[0], endpoint=False, dtype=np.float32)[:, None]
    z = np.linspace(Z_NEAR, Z_FAR, shape[1], dtype=np.float32)[None, :]
    return theta, z


def random_wall(rng: np.random.Generator, shape: tuple[int, int]) -> Wall:
    """Folds, relief, vessels and colour of one stretch of colon."""
    theta, z = wall_axes(shape)
    height = _folds(rng, theta, z)
    broad = fractal_noise(rng, shape, slope=2.0, band=(1, 40))
    height = height + 0.035 * broad
    relief = fractal_noise(rng, shape, slope=1.0, band=(6, 120))
    grain = fractal_noise(rng, shape, slope=0.9, band=(10, 200))
    mottle = fractal_noise(rng, shape, slope=1.5, band=(1, 60))

    base = rng.dirichlet(np.full(len(MUCOSA), 0.35)) @ MUCOSA
    tone = 1.0 + 0.07 * mottle[..., None] * np.array([0.6, 1.2, 1.3], np.float32)
    tone = tone + 0.035 * grain[..., None]
    vessel = _vessels(rng, shape) * rng.uniform(0.15, 0.75)
    albedo = base.astype(np.float32) * tone
    albedo += vessel[..., None] * (VESSEL.astype(np.float32) - albedo)
    redness = smoothstep(broad, 0.8, 2.2)[..., None] * np.array([0.0, -0.10, -0.08], np.float32)
    angle, curvature = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.11)
    return Wall(
        height=height.astype(np.float32),
        albedo=np.clip(albedo + redness, 0.03, 1.0).astype(np.float32),
        bump=(relief * rng.uniform(0.002, 0.006)).astype(np.float32),
        grain=grain,
        bend=curvature * np.array([np.cos(angle), np.sin(angle)]),
        gloss=float(rng.uniform(0.5, 1.6)),
        exposure=float(rng.uniform(0.75, 1.2)),
    )


def random_lesion(rng: np.random.Generator, *, radius: float, contrast: float) -> Lesion:
    """A lesion ahead of the camera; `contrast` scales how far its colour is from the mucosa's."""
    kind = str(rng.choice(["flat", "sessile", "pedunculated"], p=[0.22, 0.45, 0.33]))
    reddish = np.array([1.0, 0.62, 0.62])
    pale = np.array([1.12, 1.22, 1.25])
    dark = np.array([0.72, 0.50, 0.52])
    tint = np.array([reddish, pale, dark])[rng.choice(3, p=[0.5, 0.3, 0.2])]
    strength = contrast * rng.uniform(0.75, 1.35)
    return Lesion(
        theta=float(rng.uniform(0, 2 * np.pi)),
        z=float(rng.uniform(0.7, 2.2)),
        radius=radius,
        kind=kind,
        aspect=float(np.exp(rng.uniform(0.0, 0.45))),
        tilt=float(rng.uniform(0, np.pi)),
        harmonics=random_harmonics(rng, count=5, roughness=0.06 if kind != "flat" else 0.10),
        tint=np.clip(1.0 + strength * (tint - 1.0), 0.2, 1.5),
        texture=float(rng.uniform(0.05, 0.2)),
    )


def build_scene(wall: Wall, lesion: Lesion | None) -> Scene:
    """Put the lesion on the wall and differentiate."""
    height, albedo, bump = wall.height, wall.albedo, wall.bump
    level = np.full(height.shape, -1.0, np.float32)
    if lesion is not None:
        level = _lesion_level(lesion, height.shape)
        height = height + _lesion_height(lesion, level, wall.grain)
        inside = smoothstep(level, -0.04, 0.10)[..., None]
        tint = lesion.tint.astype(np.float32) * (1 + lesion.texture * wall.grain[..., None])
        average = ndimage.uniform_filter(albedo, (9, 9, 0), mode=("wrap", "nearest", "nearest"))
        albedo = albedo + inside * (average * tint - albedo)
        rim = smoothstep(level, -0.35, -0.02) * (1 - smoothstep(level, -0.02, 0.05))
        albedo = albedo * (1 - 0.16 * rim[..., None])
        bump = bump * (1 + 1.2 * inside[..., 0])
    slopes = _slopes(height)
    relief = _slopes(bump)
    geometry = np.stack([height, *slopes, level], axis=-1)
    skin = np.concatenate([albedo, np.stack(relief, axis=-1)], axis=-1)
    return Scene(geometry.astype(np.float32), skin.astype(np.float32), wall, lesion)


def surface_point(scene: Scene, theta: float, z: float) -> NDArray[np.float64]:
    """World position (3,) of the wall at an angle and a length."""
    row, column = _cell(np.array([theta]), np.array([z]), scene.geometry.shape)
    height = float(bilinear(scene.geometry[..., :1], row, column, wrap_rows=True)[0, 0])
    centre = scene.wall.bend * max(z, 0.0) ** 2
    radius = 1.0 - 0.6 * height
    return np.array(
        [centre[0] + radius * np.cos(theta), centre[1] + radius * np.sin(theta), z], np.float64
    )


def clearance(scene: Scene, position: NDArray[np.float64]) -> float:
    """Distance along the radius from a point to the wall; negative inside the tissue."""
    x, y, z = (np.array([v], np.float32) for v in position)
    return float(_gap(scene, x, y, z)[0])


def render(scene: Scene, camera: Camera, size: tuple[int, int]) -> View:
    """What the camera sees, `size` = (width, height) in pixels."""
    width, height = size
    direction = _rays(camera, size)
    depth, hit = _march(scene, camera.position, direction)
    point = camera.position.astype(np.float32) + depth[:, None] * direction
    light, level = _shade(scene, point, direction, depth)
    light *= hit[:, None]
    mask = (level > 0) & hit
    return View(
        light.reshape(height, width, 3), mask.reshape(height, width), depth.reshape(height, width)
    )


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
            nx, ny = x + 9 * unit * np.cos(heading), y + 9 * unit * np.sin(heading)
            tone, thick = int(min(255, 90 + 70 * calibre)), max(1, round(calibre * unit))
            for wrap in (-rows, 0, rows):
                draw.line([(x, y + wrap), (nx, ny + wrap)], fill=tone, width=thick)
            x, y, calibre = nx, ny % rows, calibre * 0.97
            if rng.random() < 0.16 and calibre > 0.6:
                stems.append((x, y, heading + rng.choice([-0.8, 0.8]), calibre * 0.7))
    field = np.asarray(canvas, np.float32) / 255
    return ndimage.gaussian_filter(field, 0.7 * unit, mode=("wrap", "nearest"))


def _lesion_level(lesion: Lesion, shape: tuple[int, int]) -> Array:
    """1 in the lesion's middle, 0 on its contour, negative outside, floored at -1."""
    theta, z = wall_axes(shape)
    across = (theta - lesion.theta + np.pi) % (2 * np.pi) - np.pi
    along = np.broadcast_to(z - lesion.z, shape)
    across = np.broadcast_to(across, shape)
    level = np.full(shape, -1.0, np.float32)
    near = (np.abs(across) < 3.2 * lesion.radius) & (np.abs(along) < 3.2 * lesion.radius)
    angle = np.arctan2(across[near], along[near])
    contour = contour_radius(angle, lesion.harmonics, aspect=lesion.aspect, tilt=lesion.tilt)
    distance = np.hypot(across[near], along[near]) / (lesion.radius * contour)
    level[near] = np.maximum(1.0 - distance, -1.0)
    return level


def _lesion_height(lesion: Lesion, level: Array, grain: Array) -> Array:
    """Relief of the lesion's form over the wall."""
    rise, power, steep = {
        "flat": (0.26, 3.0, 0.8),
        "sessile": (0.72, 2.2, 0.7),
        "pedunculated": (1.15, 3.0, 0.5),
    }[lesion.kind]
    distance = np.clip(1.0 - level, 0.0, 1.0)
    dome = (1.0 - distance**power) ** steep
    lobes = 1.0 + 0.10 * np.clip(grain, -2, 2) * dome
    return (min(rise * lesion.radius, 0.55) * dome * lobes).astype(np.float32)


def _slopes(field: Array) -> tuple[Array, Array]:
    """Derivatives along angle (periodic, radians) and length of a field on the wall's grid."""
    d_theta = (np.roll(field, -1, 0) - np.roll(field, 1, 0)) * (field.shape[0] / (4 * np.pi))
    d_z = np.gradient(field, axis=1) * ((field.shape[1] - 1) / (Z_FAR - Z_NEAR))
    return d_theta, d_z


def _cell(theta: Array, z: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Fractional row and column of the wall's grid."""
    row = (theta % (2 * np.pi)) * (shape[0] / (2 * np.pi))
    column = np.clip((z - Z_NEAR) * ((shape[1] - 1) / (Z_FAR - Z_NEAR)), 0, shape[1] - 1)
    return row, column


def _gap(scene: Scene, x: Array, y: Array, z: Array) -> Array:
    """Radial distance to the wall by the nearest cell."""
    rows, columns = scene.geometry.shape[:2]
    square = np.maximum(z, 0.0) ** 2
    x = x - np.float32(scene.wall.bend[0]) * square
    y = y - np.float32(scene.wall.bend[1]) * square
    row, column = _cell(np.arctan2(y, x), z, (rows, columns))
    index = row.astype(np.intp) % rows * columns + column.astype(np.intp)
    return 1.0 - np.sqrt(x * x + y * y) - scene.geometry[..., 0].reshape(-1)[index]


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
    """Direction (n, 3) of a place (n, 2) in the picture, the corner being at radius 1."""
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
) -> tuple[Array, NDArray[np.bool_]]:
    """Distance (n,) to the wall along each ray and whether it was met."""
    start = position.astype(np.float32)
    depth = np.full(len(direction), 0.02, np.float32)
    hit = np.zeros(len(direction), np.bool_)
    active = np.arange(len(direction))
    t = depth.copy()
    for _ in range(MARCH_STEPS):
        ray = direction[active]
        point = start + t[:, None] * ray
        gap = _gap(scene, point[:, 0], point[:, 1], point[:, 2])
        met = gap < 0.006
        hit[active[met]] = True
        depth[active] = t
        alive = ~met & (t < 9.0)
        active, t = active[alive], (t + np.maximum(0.62 * gap, 0.012))[alive]
        if not len(active):
            break
    hit |= depth > 4.0  # lost in the dark of the lumen, where it makes no difference
    hit[active] = True
    return depth, hit


def _shade(scene: Scene, point: Array, ray: Array, depth: Array) -> tuple[Array, Array]:
    """Light (n, 3) that returns from surface points, and the lesion's level there (n,)."""
    square = np.maximum(point[:, 2], 0.0) ** 2
    x = point[:, 0] - np.float32(scene.wall.bend[0]) * square
    y = point[:, 1] - np.float32(scene.wall.bend[1]) * square
    radius = np.maximum(np.hypot(x, y), 1e-3)
    row, column = _cell(np.arctan2(y, x), point[:, 2], scene.geometry.shape)
    geometry = bilinear(scene.geometry, row, column, wrap_rows=True)
    skin = bilinear(scene.skin, row, column, wrap_rows=True)

    def facing(slope_theta: Array, slope_z: Array) -> Array:
        """Cosine between the surface's normal and the way back to the camera."""
        nx = x / radius - slope_theta / radius * y / radius
        ny = y / radius + slope_theta / radius * x / radius
        norm = np.sqrt(nx**2 + ny**2 + slope_z**2)
        return (nx * ray[:, 0] + ny * ray[:, 1] + slope_z * ray[:, 2]) / norm

    smooth = np.clip(facing(geometry[:, 1], geometry[:, 2]), 0, 1)
    rough = np.clip(facing(geometry[:, 1] + skin[:, 3], geometry[:, 2] + skin[:, 4]), 0, 1)
    fall = 1.0 / (0.10 + depth**2)
    diffuse = (0.18 + 0.82 * (0.5 * smooth + 0.5 * rough)) * fall
    fade = np.exp(-depth[:, None] * np.array([0.04, 0.16, 0.20], np.float32))
    light = skin[:, :3] * diffuse[:, None] * fade
    mirror = scene.wall.gloss * np.exp(70.0 * (rough - 1.0)) * np.sqrt(fall)
    return light + mirror[:, None] * 0.9, geometry[:, 3]


def scale_lesion(scene: Scene, factor: float) -> Scene:
    """The same scene with its lesion's radius multiplied by `factor`."""
    assert scene.lesion is not None
    return build_scene(
        scene.wall, replace(scene.lesion, radius=float(scene.lesion.radius * factor))
    )
