"""Frames of a synthetic operation: state of the organs, camera, instruments, events, lens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .fields import Array, fractal_noise, smoothstep
from .surgery import (
    CALOT,
    CLEANING,
    CLIPPING,
    DISSECTION,
    PACKAGING,
    PREPARATION,
    RETRACTION,
    Operation,
    Segment,
)
from .surgery_anatomy import NECK, Anatomy, Layer, make_anatomy, over
from .surgery_tools import Instruments, Pose, draw_tool, make_instruments

SUPERSAMPLING = 2
SCENE = 1.5  # height of the scene, in heights of an image at zoom 1
BLOOD = np.array([0.36, 0.03, 0.03], np.float32)
CLIP = np.array([0.80, 0.80, 0.82], np.float32)
# Frequency (Hz) and reach (heights of the scene) of a hand's movements.
STROKES = {
    "grasper": (0.15, 0.015),
    "hook": (0.45, 0.030),
    "bipolar": (0.25, 0.015),
    "clipper": (0.15, 0.010),
    "scissors": (0.30, 0.012),
    "irrigator": (0.30, 0.060),
}


@dataclass(frozen=True)
class Look:
    """Camera, light and colours of one operation."""

    gains: Array  # (3,) colour cast
    gamma: float
    saturation: float
    falloff: float  # of the light towards the border
    light: Array  # (2,) centre of the light, in image heights from the middle
    aperture: float  # radius of the round field of view, image heights
    noise: float
    roll: float  # radians
    offset: Array  # (3,) of the gaze: x, y, log zoom
    left: float  # direction from which each hand comes, radians
    right: float
    bag: Array  # (3,) colour
    haze: Array  # (H, W) noise of smoke


class Theatre:
    """Renderer of one operation.

    Args:
        operation: its course.
        size: (width, height) of the frames, px.
    """

    def __init__(self, operation: Operation, size: tuple[int, int]) -> None:
        self.operation, self.size = operation, size
        rng = np.random.default_rng([*operation.seed, 1])
        self._shape = (size[1] * SUPERSAMPLING, size[0] * SUPERSAMPLING)
        self._scene_height = round(SCENE * self._shape[0])
        self._anatomy: Anatomy = make_anatomy(rng, self._scene_height)
        self._tools: Instruments = make_instruments(rng)
        self._look = _random_look(rng, self._shape)
        self._phases = rng.uniform(0, 2 * np.pi, 12)

    def frame(self, time_s: float) -> NDArray[np.uint8]:
        """RGB frame (H, W, 3) at a time."""
        segment = self.operation.segment_at(time_s)
        rng = np.random.default_rng([*self.operation.seed, 2, round(time_s * 1000)])
        if segment.event == "trocar":
            image = self._inside_trocar(time_s, segment)
        else:
            image = self._through_lens(time_s, segment)
        if segment.event == "defocus":
            amount = np.random.default_rng(segment.seed).uniform(0.008, 0.022)
            image = _floats(cv2.GaussianBlur(image, (0, 0), amount * self._shape[0]))
        if segment.event == "smoke":
            self._add_smoke(image, time_s, segment)
        return self._developed(image, rng)

    def _through_lens(self, time_s: float, segment: Segment) -> Array:
        scene = self._scene(time_s, segment)
        camera = self._camera(time_s)
        size = self._shape[::-1]
        image = _floats(cv2.warpAffine(scene, camera, size, borderMode=cv2.BORDER_REFLECT))
        self._draw_tools(image, camera, time_s, segment)
        return image

    def _scene(self, time_s: float, segment: Segment) -> Array:
        """The organs at a time (H, W, 3)."""
        anatomy, done = self._anatomy, self._done(time_s)
        scene = over(anatomy.back, anatomy.stalk, 0.35 + 0.65 * done[CALOT])
        if done[DISSECTION] > 0:
            bare = smoothstep(1.25 * done[DISSECTION] - anatomy.detach, 0.0, 0.12)
            scene = over(scene, anatomy.bed, bare)
        if done[CLIPPING] > 0:
            scene = self._with_clips(scene, done[CLIPPING])
        if done[PACKAGING] < 0.55:
            scene = over(scene, self._moved_gallbladder(done, segment))
        if done[CALOT] < 0.9:
            cover = 1 - smoothstep(done[CALOT], 0.0, 0.9)
            scene = over(scene, anatomy.cover, float(cover))
        if segment.bag:
            scene = self._with_bag(scene, segment)
        if segment.event == "fluid":
            scene = self._with_fluid(scene, time_s, segment)
        return scene.astype(np.float32)

    def _done(self, time_s: float) -> dict[int, float]:
        return {phase: self.operation.progress(phase, time_s) for phase in range(7)}

    def _moved_gallbladder(self, done: dict[int, float], segment: Segment) -> Layer:
        """The gallbladder, lifted by the left hand, turned away from its bed, then lying free."""
        height, layer = self._scene_height, self._anatomy.gallbladder
        angle = 8 * segment.left - 45 * done[DISSECTION]
        shift = np.array([0.02, 0.0]) * segment.left + np.array([-0.06, 0.10]) * done[DISSECTION]
        if done[DISSECTION] >= 1:
            shift, angle = np.array([-0.02, 0.22]), -75
        matrix = cv2.getRotationMatrix2D((NECK[0] * height, NECK[1] * height), angle, 1.0)
        matrix[:, 2] += shift * height
        size = layer.alpha.shape[1::-1]
        colour = _floats(cv2.warpAffine(layer.colour, matrix, size))
        return Layer(colour, _floats(cv2.warpAffine(layer.alpha, matrix, size))[..., None])

    def _with_clips(self, scene: Array, done: float) -> Array:
        """Clips over duct and artery, one after the other; cut between them at the end."""
        height = self._scene_height
        alpha = np.zeros(scene.shape[:2], np.float32)
        places = [(0.02, 0.05), (0.02, 0.08), (-0.05, 0.06), (0.015, 0.14), (-0.055, 0.12)]
        for dx, dy in places[: int(np.ceil(6 * done))]:
            x, y = NECK[0] + dx - 0.15 * dy, NECK[1] + dy
            ends = np.array([[x - 0.022, y + 0.006], [x + 0.022, y - 0.006]]) * height * 16
            thick = max(1, round(0.012 * height))
            line = [np.round(ends).astype(np.int32)]
            cv2.polylines(alpha, line, False, 1.0, thick, cv2.LINE_AA, 4)
        if done > 0.8:
            centre = (round((NECK[0] - 0.02) * height), round((NECK[1] + 0.11) * height))
            cut = np.zeros(scene.shape[:2], np.float32)
            axes = (round(0.055 * height), round(0.012 * height))
            cv2.ellipse(cut, centre, axes, 0, 0, 360, 1.0, -1)
            scene = scene + (BLOOD * 1.4 - scene) * cut[..., None]
        return scene + (CLIP - scene) * alpha[..., None]

    def _with_bag(self, scene: Array, segment: Segment) -> Array:
        """A translucent pouch with folds."""
        height = self._scene_height
        rng = np.random.default_rng([segment.seed, 1])
        y, x = np.mgrid[:height, : scene.shape[1]].astype(np.float32) / height
        inside_it = segment.phase != CLEANING
        centre = (0.56, 0.70) if inside_it else (0.30, 0.78)
        dx, dy = x - centre[0] - rng.normal(0, 0.05), y - centre[1] - rng.normal(0, 0.03)
        angle = np.arctan2(dy, dx)
        radius = 0.17 * (
            1 + 0.15 * np.cos(2 * angle + rng.uniform(0, 6)) + 0.08 * np.cos(5 * angle)
        )
        inside = smoothstep(radius - np.hypot(dx, 1.2 * dy), 0.0, 0.012)
        folds = 0.5 + 0.5 * np.sin(40 * (dx * np.cos(angle[0, 0]) + 0.6 * dy) + 6 * dx * dy * 20)
        rim = smoothstep(0.02 - np.abs(radius - np.hypot(dx, 1.2 * dy)), 0.0, 0.012)
        colour = self._look.bag * (0.65 + 0.30 * folds[..., None]) + 0.25 * rim[..., None]
        return scene + (colour - scene) * (0.82 * inside[..., None])

    def _with_fluid(self, scene: Array, time_s: float, segment: Segment) -> Array:
        """Blood and irrigation, with a shiny level."""
        height = self._scene_height
        rng = np.random.default_rng([segment.seed, 2])
        y, x = np.mgrid[:height, : scene.shape[1]].astype(np.float32) / height
        level = rng.uniform(0.52, 0.72) + 0.012 * np.sin(9 * x + 2 * time_s)
        level = level + 0.05 * np.sin(3 * x + rng.uniform(0, 6.3))
        depth = smoothstep(y - level, 0.0, 0.05)
        waves = np.sin(31 * x + 9 * np.sin(17 * y + time_s)) * np.sin(47 * y + 2.3 * time_s)
        glint = smoothstep(waves, 0.9, 1.0) * smoothstep(depth, 0.2, 0.9)
        clear = rng.uniform(0.1, 0.75)
        colour = BLOOD + clear * (0.9 * scene - BLOOD) + 0.45 * glint[..., None]
        return scene + (colour - scene) * (0.85 * depth[..., None])

    def _gaze(self, time_s: float) -> Array:
        """Point of the scene (x, y) in the middle of the image, and zoom."""
        before = start_s = None
        for segment in self.operation.segments:
            if time_s < segment.end_s:
                break
            before, start_s = segment, segment.end_s
        else:
            segment = self.operation.segments[-1]
        gaze = np.array(segment.gaze)
        if before is not None and start_s is not None:
            moved = float(smoothstep((time_s - start_s) / 0.8, 0.0, 1.0))
            gaze = np.array(before.gaze) + moved * (gaze - before.gaze)
        wander = np.sin(2 * np.pi * time_s * np.array([0.11, 0.09, 0.05]) + self._phases[:3])
        offset = self._look.offset
        gaze[:2] += 0.015 * wander[:2] + offset[:2]
        gaze[2] = np.clip(gaze[2] * np.exp(offset[2] + 0.04 * wander[2]), 0.85, 2.4)
        return gaze

    def _camera(self, time_s: float) -> Array:
        """Affine map (2, 3) from the scene to the image, px."""
        x, y, zoom = self._gaze(time_s)
        roll = self._look.roll + 0.04 * np.sin(0.4 * time_s + self._phases[3])
        height, width = self._shape
        matrix = cv2.getRotationMatrix2D(
            (x * self._scene_height, y * self._scene_height), np.degrees(roll), zoom
        )
        matrix[:, 2] += np.array([width / 2, height / 2]) - np.array([x, y]) * self._scene_height
        return _floats(matrix)

    def _draw_tools(self, image: Array, camera: Array, time_s: float, segment: Segment) -> None:
        rng = np.random.default_rng([segment.seed, 3])
        jitter = rng.normal(0, 0.05, (2, 2))
        openings = rng.uniform(0.05, 0.9, 2)
        hold, work = self._targets(time_s, segment.phase)
        if segment.left:
            place = hold + jitter[0] + self._stroke("grasper", time_s, 4)
            pose = self._pose(camera, place, self._look.left, openings[0])
            draw_tool(image, "grasper", pose, self._tools)
        if segment.right is not None:
            place = work + jitter[1] + self._stroke(segment.right, time_s, 8)
            moving = 0.5 + 0.5 * np.sin(2.2 * time_s + self._phases[11])
            pose = self._pose(camera, place, self._look.right, openings[1] * moving)
            draw_tool(image, segment.right, pose, self._tools)

    def _targets(self, time_s: float, phase: int) -> tuple[Array, Array]:
        """Places of the scene at which the left and the right hand work."""
        anatomy, done = self._anatomy, self.operation.progress(phase, time_s)
        towards_fundus = anatomy.length * np.array([np.cos(anatomy.axis), np.sin(anatomy.axis)])
        held = 0.35 * towards_fundus
        left, right = {
            PREPARATION: (0.6 * towards_fundus, 0.2 * towards_fundus),
            CALOT: (held, np.array([0.03, 0.03])),
            CLIPPING: (held, np.array([0.0, 0.08])),
            DISSECTION: (held + np.array([-0.08, 0.06]), done * towards_fundus),
            PACKAGING: (np.array([-0.15, 0.06]), np.array([0.02, 0.08])),
            CLEANING: (np.array([-0.18, 0.02]), 0.5 * towards_fundus + np.array([0.0, 0.08])),
            RETRACTION: (np.array([-0.16, 0.08]), np.array([-0.02, 0.06])),
        }[phase]
        return np.array(NECK) + left, np.array(NECK) + right

    def _stroke(self, tool: str, time_s: float, first: int) -> Array:
        """Movement of a hand, in heights of the scene."""
        rate, reach = STROKES[tool]
        turns = 2 * np.pi * rate * time_s * np.array([1.0, 1.37]) + self._phases[first : first + 2]
        return reach * np.sin(turns)

    def _pose(self, camera: Array, place: Array, direction: float, opening: float) -> Pose:
        """Pose of a tool that comes from a direction outside the image."""
        tip = camera[:, :2] @ (place * self._scene_height) + camera[:, 2]
        height, width = self._shape
        tip = np.clip(tip, [0.12 * width, 0.12 * height], [0.88 * width, 0.88 * height])
        far = np.array([np.cos(direction), np.sin(direction)]) * 1.2 * width
        entry = np.array([width / 2, height / 2]) + far
        return Pose(tuple(entry), tuple(tip), float(opening))

    def _inside_trocar(self, time_s: float, segment: Segment) -> Array:
        """The view through the trocar's tube, with the scene at its end."""
        rng = np.random.default_rng([segment.seed, 4])
        image = self._through_lens(time_s, segment)
        height, width = self._shape
        y, x = np.mgrid[:height, :width].astype(np.float32)
        centre = rng.uniform(0.35, 0.65, 2) * [width, height]
        radius = rng.uniform(0.14, 0.36) * height * (1 + 0.2 * np.sin(time_s + self._phases[4]))
        distance = np.hypot(x - centre[0], y - centre[1]) / radius
        tone = 0.35 + 0.3 * np.exp(-((distance - 1.1) ** 2) * 4) + 0.05 * np.sin(distance * 9)
        tube = tone[..., None] * np.array([0.95, 0.93, 1.0], np.float32)
        outside = smoothstep(distance, 0.97, 1.03)[..., None]
        return (image + (tube - image) * outside).astype(np.float32)

    def _add_smoke(self, image: Array, time_s: float, segment: Segment) -> None:
        rng = np.random.default_rng([segment.seed, 5])
        drift = (round(14 * time_s), round(9 * time_s))
        density = rng.uniform(0.25, 0.6) + 0.14 * np.roll(self._look.haze, drift, (0, 1))
        density = np.clip(density, 0, 0.85)[..., None]
        image += (np.array([0.62, 0.60, 0.60], np.float32) - image) * density

    def _developed(self, image: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Light, lens, colours and noise of the camera; 8 bits."""
        look = self._look
        width, height = self.size
        image = _floats(cv2.resize(image, self.size, interpolation=cv2.INTER_AREA))
        y, x = np.mgrid[:height, :width].astype(np.float32) / height
        x, y = x - width / height / 2, y - 0.5
        distance = (x - look.light[0]) ** 2 + (y - look.light[1]) ** 2
        image = image * (1.25 / (1 + look.falloff * distance))[..., None]
        image *= smoothstep(look.aperture - np.hypot(x, y), 0.0, 0.012)[..., None]
        grey = image.mean(-1, keepdims=True)
        image = np.clip((grey + look.saturation * (image - grey)) * look.gains, 0, None)
        image = 1 - np.exp(-1.7 * image**look.gamma)  # soft shoulder instead of hard clipping
        image = image + look.noise * rng.standard_normal(image.shape, dtype=np.float32)
        return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _floats(array: NDArray[Any]) -> Array:
    """OpenCV's result as an array of known type."""
    return np.asarray(array, np.float32)


def _random_look(rng: np.random.Generator, shape: tuple[int, int]) -> Look:
    round_view = rng.random() < 0.75
    return Look(
        gains=np.exp(0.10 * rng.standard_normal(3) + [0.05, -0.02, 0.0]).astype(np.float32),
        gamma=float(rng.uniform(0.85, 1.25)),
        saturation=float(rng.uniform(0.75, 1.25)),
        falloff=float(rng.uniform(0.8, 3.0)),
        light=rng.normal(0, 0.08, 2),
        aperture=float(rng.uniform(0.50, 0.64)) if round_view else 2.0,
        noise=float(rng.uniform(0.006, 0.02)),
        roll=float(rng.normal(0, 0.2)),
        offset=rng.normal(0, 1, 3) * [0.03, 0.03, 0.15],
        left=float(rng.uniform(2.3, 3.4)),
        right=float(rng.uniform(-0.7, 0.5)),
        bag=np.array([0.82, 0.84, 0.86]) * rng.uniform(0.75, 1.05, 3),
        haze=fractal_noise(rng, shape, slope=1.6, band=(1, 12)),
    )
