"""Paths of a lesion over the image whose statistics follow real colonoscopy tracks.

In the 31,182 single-lesion frame pairs of LDPolypVideo the shift of the box centre, as a share
of the image's width and height, is log-normal to within a few per cent: median 0.8 %, 90th
percentile 3.1 %; over five frames the median is 3.2 %, so that the direction persists.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEDIAN_SHIFT = 0.0083
LOG_DEVIATION = 1.04  # ln(0.0313 / 0.0083) / 1.2816
BETWEEN_CLIPS = 0.42  # part of LOG_DEVIATION that is a property of the clip
PERSISTENCE = 0.75  # of the log speed from frame to frame
TURN = 1.0  # radians, deviation of the change of direction in one frame
TARGET_SHARE = 0.82  # of the shift that is the target's; zoom, roll and outline add the rest


@dataclass(frozen=True)
class Track:
    """The lesion's centre (T, 2) in [0, 1], log zoom (T,), roll in radians (T,)."""

    centre: NDArray[np.float64]
    log_zoom: NDArray[np.float64]
    roll: NDArray[np.float64]

    def shift(self, index: int) -> NDArray[np.float64]:
        """Motion (2,) of the image at a frame, as a share of width and height, for blur."""
        steps = np.diff(self.centre, axis=0)
        return steps[min(max(index - 1, 0), len(steps) - 1)] if len(steps) else np.zeros(2)


def random_track(rng: np.random.Generator, num_frames: int, *, margin: float) -> Track:
    """A smooth random walk that stays `margin` away from the image's border.

    Steps that would leave are turned towards the middle.
    """
    centre = np.empty((num_frames, 2))
    centre[0] = rng.uniform(margin, 1 - margin, 2)
    within = np.sqrt(LOG_DEVIATION**2 - BETWEEN_CLIPS**2)
    level = np.log(MEDIAN_SHIFT * TARGET_SHARE) + BETWEEN_CLIPS * rng.standard_normal()
    swing = within * rng.standard_normal()
    heading = rng.uniform(0, 2 * np.pi)
    for t in range(1, num_frames):
        fresh = rng.standard_normal() * np.sqrt(1 - PERSISTENCE**2)
        swing = PERSISTENCE * swing + within * fresh
        heading += TURN * rng.standard_normal()
        step = min(np.exp(level + swing), 0.12) * np.array([np.cos(heading), np.sin(heading)])
        ahead = centre[t - 1] + step
        outside = (ahead < margin) | (ahead > 1 - margin)
        inward = np.where(centre[t - 1] < 0.5, 1.0, -1.0)
        step = np.where(outside, np.abs(step) * inward, step)
        heading = np.arctan2(step[1], step[0])
        centre[t] = centre[t - 1] + step
    speed = np.exp(level) / MEDIAN_SHIFT
    log_zoom = _smooth_walk(rng, num_frames, 0.009 * speed**0.5)
    roll = _smooth_walk(rng, num_frames, 0.012 * speed**0.5)
    return Track(centre, log_zoom, roll)


def leave_view(rng: np.random.Generator, track: Track) -> Track:
    """The track, shifted to leave the image at some frame after the second, or reversed to enter
    it; at least three frames."""
    num_frames = len(track.centre)
    exit_frame = rng.integers(2, num_frames)
    speed = rng.uniform(0.05, 0.10)
    beyond = 1.06 + speed * (np.arange(num_frames) - exit_frame)
    side, low = rng.integers(2), rng.random() < 0.5
    centre = track.centre.copy()
    centre[:, side] = 1.0 - beyond if low else beyond
    return Track(centre if rng.random() < 0.5 else centre[::-1], track.log_zoom, track.roll)


def _smooth_walk(rng: np.random.Generator, num_frames: int, scale: float) -> NDArray[np.float64]:
    """A walk of auto-correlated steps of deviation `scale`, pulled back to 0."""
    value, step = np.zeros(num_frames), 0.0
    for t in range(1, num_frames):
        step = 0.85 * step + 0.53 * scale * rng.standard_normal() * 2
        value[t] = 0.97 * value[t - 1] + step
    return value
