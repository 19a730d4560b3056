"""The course of a synthetic gallbladder operation: phases, tools, events and camera over time.

Everything is a function of the time in seconds, so that any frame rate shows the same operation.
The phases, their order and the tools in them follow Cholec80; an operation lasts 60 to 120 s, with
shares of the phases that are more even than in reality. A tool is used in several phases and away
for a part of each, so that a single frame often does not say its phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from free_lunch.prepare.phase_files import CHOLEC80_PHASES as PHASES

PREPARATION, CALOT, CLIPPING, DISSECTION, PACKAGING, CLEANING, RETRACTION = range(7)
LABEL_RATE = 25  # lines a second of Cholec80's phase files

Tool = Literal["grasper", "hook", "bipolar", "clipper", "scissors", "irrigator"]
Event = Literal["", "trocar", "smoke", "defocus", "fluid"]

# Mean share of the phases in an operation, and how much it varies (deviation of the logarithm).
SHARES = np.array([0.10, 0.25, 0.12, 0.23, 0.09, 0.12, 0.09])
SHARE_DEVIATION = 0.35
MIN_PHASE_S = 3.0
# Orders of the last three phases, and how often; packaging or cleaning may come twice.
ENDINGS = (
    ((PACKAGING, CLEANING, RETRACTION), 0.45),
    ((PACKAGING, RETRACTION, CLEANING), 0.15),
    ((CLEANING, PACKAGING, RETRACTION), 0.15),
    ((PACKAGING, CLEANING, RETRACTION, CLEANING), 0.15),
    ((CLEANING, PACKAGING, CLEANING, RETRACTION), 0.10),
)
# Tools of the right hand with the share of the time that they are seen; the rest shows none.
RIGHT_HAND: dict[int, dict[Tool, float]] = {
    PREPARATION: {"grasper": 0.40, "hook": 0.16, "bipolar": 0.06},
    CALOT: {"hook": 0.56, "grasper": 0.10, "bipolar": 0.08, "irrigator": 0.05},
    CLIPPING: {"clipper": 0.40, "scissors": 0.22, "hook": 0.10, "grasper": 0.06},
    DISSECTION: {"hook": 0.54, "bipolar": 0.12, "irrigator": 0.08, "scissors": 0.04},
    PACKAGING: {"grasper": 0.60, "irrigator": 0.06},
    CLEANING: {"irrigator": 0.40, "bipolar": 0.28, "grasper": 0.08, "hook": 0.05},
    RETRACTION: {"grasper": 0.50, "irrigator": 0.06},
}
# Share of the time that the left hand's grasper is seen.
LEFT_HAND = {0: 0.45, 1: 0.66, 2: 0.66, 3: 0.66, 4: 0.55, 5: 0.50, 6: 0.30}
# Share of the time with an event.
EVENTS: dict[int, dict[Event, float]] = {
    PREPARATION: {"trocar": 0.20, "defocus": 0.12},
    CALOT: {"trocar": 0.03, "smoke": 0.16, "defocus": 0.14, "fluid": 0.04},
    CLIPPING: {"trocar": 0.03, "smoke": 0.05, "defocus": 0.14, "fluid": 0.06},
    DISSECTION: {"trocar": 0.03, "smoke": 0.26, "defocus": 0.14, "fluid": 0.06},
    PACKAGING: {"trocar": 0.08, "defocus": 0.16},
    CLEANING: {"trocar": 0.05, "smoke": 0.06, "defocus": 0.14, "fluid": 0.40},
    RETRACTION: {"trocar": 0.22, "defocus": 0.16},
}
BAG = {PACKAGING: 0.62, CLEANING: 0.25, RETRACTION: 0.55}  # share of the time that it is seen
# Point of the scene that the camera looks at, and its zoom: mean and deviation.
GAZE: dict[int, tuple[tuple[float, float], float]] = {
    PREPARATION: ((0.66, 0.46), 1.10),
    CALOT: ((0.62, 0.56), 1.45),
    CLIPPING: ((0.62, 0.57), 1.55),
    DISSECTION: ((0.68, 0.45), 1.40),
    PACKAGING: ((0.64, 0.56), 1.15),
    CLEANING: ((0.66, 0.48), 1.20),
    RETRACTION: ((0.60, 0.52), 1.10),
}


@dataclass(frozen=True)
class Segment:
    """A stretch of time with the same tools in view."""

    end_s: float
    phase: int
    left: bool
    right: Tool | None
    bag: bool
    event: Event
    gaze: tuple[float, float, float]  # x, y of the scene, zoom
    seed: int


@dataclass(frozen=True)
class Operation:
    """The course of one operation.

    Attributes:
        number: number of the video, from 1.
        seed: seeds of its look.
        duration_s: length, s; a whole number.
        phases: (end in s, phase), in temporal order.
        segments: stretches with the same tools, in temporal order.
    """

    number: int
    seed: tuple[int, ...]
    duration_s: int
    phases: tuple[tuple[float, int], ...]
    segments: tuple[Segment, ...]

    def phase_at(self, time_s: float) -> int:
        return next((p for end_s, p in self.phases if time_s < end_s), self.phases[-1][1])

    def segment_at(self, time_s: float) -> Segment:
        return next((s for s in self.segments if time_s < s.end_s), self.segments[-1])

    def progress(self, phase: int, time_s: float) -> float:
        """Share of a phase that is over, 0 to 1; its repetitions count as one."""
        done = length = start_s = 0.0
        for end_s, of_phase in self.phases:
            if of_phase == phase:
                length += end_s - start_s
                done += min(max(time_s - start_s, 0.0), end_s - start_s)
            start_s = end_s
        return done / length if length else 0.0


def plan_operation(seed: int, number: int, duration_s: tuple[int, int]) -> Operation:
    """The course of an operation; the same for the same arguments.

    Args:
        seed: seed of the data set.
        number: number of the operation, from 1.
        duration_s: shortest and longest duration, s.
    """
    rng = np.random.default_rng([seed, 80, number])
    seconds = int(rng.integers(duration_s[0], duration_s[1] + 1))
    ending = ENDINGS[rng.choice(len(ENDINGS), p=[share for _, share in ENDINGS])][0]
    order = [PREPARATION, CALOT, CLIPPING, DISSECTION, *ending]
    shares = SHARES[order] * np.exp(SHARE_DEVIATION * rng.standard_normal(len(order)))
    shares /= np.array([order.count(phase) for phase in order])
    shortest = min(MIN_PHASE_S, seconds / len(order))
    spare = seconds - shortest * len(order)
    ends = np.cumsum(shortest + spare * shares / shares.sum())
    # Changes of phase at whole label frames.
    ends = np.round(ends * LABEL_RATE) / LABEL_RATE
    phases = tuple((float(end), phase) for end, phase in zip(ends, order, strict=True))
    segments, start_s = [], 0.0
    for end_s, phase in phases:
        segments += _segments(rng, phase, start_s, end_s)
        start_s = end_s
    return Operation(number, (seed, 81, number), seconds, phases, tuple(segments))


def _segments(rng: np.random.Generator, phase: int, start_s: float, end_s: float) -> list[Segment]:
    """Segments of 1.5 to 5 s that fill a phase."""
    segments: list[Segment] = []
    (x, y), zoom = GAZE[phase]
    while start_s < end_s - 1e-6:
        stop_s = start_s + rng.uniform(1.5, 5.0)
        stop_s = end_s if end_s - stop_s < 1.0 else stop_s
        gaze = (
            x + 0.10 * rng.standard_normal(),
            y + 0.08 * rng.standard_normal(),
            zoom * np.exp(0.28 * rng.standard_normal()),
        )
        segments.append(
            Segment(
                end_s=stop_s,
                phase=phase,
                left=bool(rng.random() < LEFT_HAND[phase]),
                right=_pick(rng, RIGHT_HAND[phase], None),
                bag=bool(rng.random() < BAG.get(phase, 0.0)),
                event=_pick(rng, EVENTS[phase], ""),
                gaze=gaze,
                seed=int(rng.integers(2**31)),
            )
        )
        start_s = stop_s
    return segments


def _pick(rng: np.random.Generator, shares: Mapping[Any, float], otherwise: Any) -> Any:
    """A key with its share as probability, or `otherwise`."""
    point = rng.random()
    for key, share in shares.items():
        point -= share
        if point < 0:
            return key
    return otherwise


def phase_lines(operation: Operation) -> str:
    """Content of ``phase_annotations/videoXX-phase.txt``: a line per frame at 25 Hz."""
    lines = ["Frame\tPhase"]
    for frame in range(operation.duration_s * LABEL_RATE):
        lines.append(f"{frame}\t{PHASES[operation.phase_at(frame / LABEL_RATE)]}")
    return "\n".join(lines) + "\n"
