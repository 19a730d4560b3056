"""Which T frames a clip has: the current one and T-1 references out of a window around it."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import numpy as np

Sampling = Literal["random", "fixed"]
Side = Literal["both", "past"]


class ClipSampler:
    """Choose the T frames of a clip: the current frame and T-1 references inside a window.

    Args:
        num_frames: T, at least 1.
        window: how far a reference may be from the current frame, in frames of the video: by
            `frame_index`, also where only every n-th frame is listed. 0 repeats the current frame:
            a clip without neighbours, to see what a video detector owes to them.
        sampling: "fixed" takes the listed frames nearest to distances that are evenly spaced up to
            the edge of the window, always the same; "random" draws different listed frames.
        side: "both" takes half of the references from the past and half from the future (of an odd
            number one more from the past), "past" looks back only, as a live system must.

    A reference beyond the first or last frame of the scene becomes that frame, so clips of a border
    and of scenes shorter than T repeat frames and never leave the scene. So do clips where fewer
    frames of the window are listed than there are references; where none is, the references of that
    side are the nearest frame outside. The current frame is always at `clip_index`.
    """

    def __init__(
        self, *, num_frames: int, window: int, sampling: Sampling, side: Side = "both"
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames} must be at least 1")
        if sampling not in ("random", "fixed") or side not in ("both", "past"):
            raise ValueError(
                f"sampling={sampling!r} must be 'random' or 'fixed', side={side!r} 'both' or 'past'"
            )
        self.num_frames, self.window, self.sampling, self.side = num_frames, window, sampling, side
        num_future = 0 if side == "past" else (num_frames - 1) // 2
        self.clip_index = num_frames - 1 - num_future
        needed = max(1, self.clip_index, num_future)
        if window < needed and window != 0:
            raise ValueError(
                f"data.window={window} must be at least {needed} for num_frames={num_frames} and "
                f"side={side!r}, or the references could not be different frames; 0 repeats the "
                "current frame"
            )

    def __call__(
        self, frame_indices: Sequence[int], position: int, rng: np.random.Generator
    ) -> list[int]:
        """Positions of the T frames around `position`, ascending.

        Args:
            frame_indices: `frame_index` of the listed frames of a scene, ascending. At least of
                those at most `window` places from the current one: no other can be chosen.
            position: place of the current frame among them.
            rng: what "random" draws from.
        """
        assert 0 <= position < len(frame_indices), (position, len(frame_indices))
        current = frame_indices[position]
        before = [current - f for f in frame_indices[:position]][::-1]
        after = [f - current for f in frame_indices[position + 1 :]]
        past = self._places(before, self.clip_index, rng)[::-1]
        future = self._places(after, self.num_frames - 1 - self.clip_index, rng)
        return [position - p for p in past] + [position] + [position + p for p in future]

    def _places(self, distances: list[int], count: int, rng: np.random.Generator) -> list[int]:
        """`count` frames of one side, by how many places they are from the current one, ascending.

        `distances` are those of the listed frames of that side, ascending.
        """
        if self.window == 0 or count == 0:
            return [0] * count
        num_inside = bisect_right(distances, self.window)
        places = list(range(1, num_inside + 1)) or [min(1, len(distances))]
        if self.sampling == "fixed":
            spaced = [(2 * self.window * k + count) // (2 * count) for k in range(1, count + 1)]
            # The first of equally near ones: the one nearer to the current frame.
            away = [0, *distances]
            return [min(places, key=lambda p, d=d: abs(away[p] - d)) for d in spaced]
        if num_inside == len(distances):
            # What is left of the window lies beyond the border: each frame of it is the border's.
            places = places[:num_inside]
            places += [num_inside] * (self.window - max(distances, default=0))
        repeats = (count - 1) // len(places)
        drawn = rng.choice(len(places), count - repeats * len(places), replace=False)
        return sorted(places * repeats + [places[i] for i in drawn])
