"""Choice of a clip's T frames: the current frame and its references.

    WindowSampler     references inside a window around the current frame
    AdjacentSampler   the listed frames next to the current one
    GlobalSampler     frames of the whole video
    MixedSampler      window or adjacent references, then global ones

Window and adjacent references stay in the scene, global ones in the video.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

Sampling = Literal["random", "fixed"]
Side = Literal["both", "past"]
FixedOrder = Literal["spaced", "shuffled"]


@dataclass(frozen=True)
class VideoFrames:
    """Numbers of one video's listed frames.

    Attributes:
        frame_indices: `frame_index` of each, ascending.
        scene: positions in `frame_indices` of the current scene.
    """

    frame_indices: Sequence[int] | np.ndarray
    scene: range


@runtime_checkable
class ReferenceSampler(Protocol):
    """Choice of a clip's frames.

    Attributes:
        num_frames: T, at least 1, the same for every clip.
        clip_index: place of the current frame in the clip.
        num_global: number of unordered frames from the whole video at the end of the clip; the
            frames before them are in temporal order.
        look_ahead: largest number of listed frames between the current frame and a later
            reference, 0 for a live system without delay; None for the whole video.
    """

    # Properties, so that a sampler may be immutable.
    @property
    def num_frames(self) -> int: ...
    @property
    def clip_index(self) -> int: ...
    @property
    def num_global(self) -> int: ...
    @property
    def look_ahead(self) -> int | None: ...

    def __call__(
        self, video: VideoFrames, position: int, rng: np.random.Generator | None
    ) -> list[int]:
        """Positions in `video` of the T frames of the clip around `position`.

        Args:
            video: candidate frames.
            position: place of the current frame, inside `video.scene`.
            rng: generator; None in evaluation, which has no random draws.
        """
        ...


class WindowSampler:
    """The current frame and T-1 references inside a window around it, in temporal order.

    Args:
        num_frames: T, at least 1.
        window: largest distance between a reference and the current frame, in frames of the video:
            by `frame_index`, also if only every n-th frame is listed. 0 repeats the current frame,
            as a control for the value of neighbours.
        sampling: "fixed" takes the listed frames nearest to evenly spaced distances up to the edge
            of the window; "random" draws different listed frames. Evaluation is always fixed.
        side: "both" takes half of the references from the past and half from the future (of an odd
            number one more from the past), "past" takes all from the past, as a live system must.

    A reference beyond the first or last frame of the scene becomes that frame, so clips at a border
    and in scenes shorter than T repeat frames. So do clips with fewer listed frames in the window
    than references; with none on a side, its references are the nearest frame outside the window.
    """

    num_global = 0

    def __init__(
        self, *, num_frames: int, window: int, sampling: Sampling, side: Side = "both"
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames} must be at least 1")
        if sampling not in get_args(Sampling) or side not in get_args(Side):
            raise ValueError(
                f"sampling={sampling!r} must be 'random' or 'fixed', side={side!r} 'both' or 'past'"
            )
        self.num_frames, self.window, self.sampling, self.side = num_frames, window, sampling, side
        num_future = 0 if side == "past" else (num_frames - 1) // 2
        self.clip_index = num_frames - 1 - num_future
        self.look_ahead = window if num_future else 0
        needed = max(1, self.clip_index, num_future)
        if window < needed and window != 0:
            raise ValueError(
                f"data.window={window} must be at least {needed} for num_frames={num_frames} and "
                f"side={side!r}, or the references could not be different frames; 0 repeats the "
                "current frame"
            )

    def __call__(
        self, video: VideoFrames, position: int, rng: np.random.Generator | None
    ) -> list[int]:
        """See `ReferenceSampler`."""
        # For long scenes: no frame further away than `window` places can be chosen.
        first = max(video.scene.start, position - self.window)
        stop = min(video.scene.stop, position + self.window + 1)
        current = int(video.frame_indices[position])
        before = [current - int(f) for f in video.frame_indices[first:position]][::-1]
        after = [int(f) - current for f in video.frame_indices[position + 1 : stop]]
        past = self._places(before, self.clip_index, rng)[::-1]
        future = self._places(after, self.num_frames - 1 - self.clip_index, rng)
        return [position - p for p in past] + [position] + [position + p for p in future]

    def _places(
        self, distances: list[int], count: int, rng: np.random.Generator | None
    ) -> list[int]:
        """Offsets in places of `count` frames of one side from the current one, ascending.

        `distances` are those of the listed frames of that side, ascending.
        """
        if self.window == 0 or count == 0:
            return [0] * count
        num_inside = bisect_right(distances, self.window)
        places = list(range(1, num_inside + 1)) or [min(1, len(distances))]
        if self.sampling == "fixed" or rng is None:
            spaced = [(2 * self.window * k + count) // (2 * count) for k in range(1, count + 1)]
            # Of equally near frames the one nearer to the current frame.
            away = [0, *distances]
            return [min(places, key=lambda p, d=d: abs(away[p] - d)) for d in spaced]
        if num_inside == len(distances):
            # Frames of the window beyond the border become the border frame.
            places = places[:num_inside]
            places += [num_inside] * (self.window - max(distances, default=0))
        repeats = (count - 1) // len(places)
        drawn = rng.choice(len(places), count - repeats * len(places), replace=False)
        return sorted(places * repeats + [places[i] for i in drawn])


class AdjacentSampler:
    """The `before` and `after` listed frames next to the current one, in temporal order.

    The same in training and in evaluation. At a border of the scene the border frame is repeated.
    """

    num_global = 0

    def __init__(self, *, before: int, after: int) -> None:
        if before < 0 or after < 0:
            raise ValueError(f"before={before} and after={after} must be 0 or more")
        self.num_frames, self.clip_index, self.look_ahead = before + 1 + after, before, after

    def __call__(
        self, video: VideoFrames, position: int, rng: np.random.Generator | None
    ) -> list[int]:
        """See `ReferenceSampler`."""
        first, last = video.scene.start, video.scene.stop - 1
        wanted = range(position - self.clip_index, position + self.look_ahead + 1)
        return [min(max(p, first), last) for p in wanted]


class GlobalSampler:
    """The current frame first, then `num_references` frames of the whole video.

    Args:
        num_references: number of references, at least 1.
        in_evaluation: "spaced" takes the same evenly spaced frames for every frame of a video;
            "shuffled" moves through a fixed shuffled order of the video by one frame per frame, as
            MEGA does (Chen et al., 2020), so that n - 1 of n references stay.

    In training distinct frames other than the current one are drawn; shorter videos repeat them.
    """

    clip_index = 0
    look_ahead = None

    def __init__(self, *, num_references: int, in_evaluation: FixedOrder = "spaced") -> None:
        if num_references < 1 or in_evaluation not in get_args(FixedOrder):
            raise ValueError(
                f"num_references={num_references} must be at least 1, in_evaluation="
                f"{in_evaluation!r} 'spaced' or 'shuffled'"
            )
        self.num_frames, self.num_global = 1 + num_references, num_references
        self.in_evaluation = in_evaluation

    def __call__(
        self, video: VideoFrames, position: int, rng: np.random.Generator | None
    ) -> list[int]:
        """See `ReferenceSampler`."""
        length, count = len(video.frame_indices), self.num_global
        if rng is not None:
            others = np.delete(np.arange(length), position) if length > 1 else np.array([position])
            drawn = rng.choice(others, min(count, len(others)), replace=False)
            references = np.resize(drawn, count)
        elif self.in_evaluation == "spaced":
            references = (2 * np.arange(count) + 1) * length // (2 * count)
        else:
            order = np.random.default_rng(length).permutation(length)
            references = order[(position + np.arange(count)) % length]
        return [position, *references.tolist()]


class MixedSampler:
    """The clip of `local`, then the references of `distant`.

    Args:
        local: sampler of the current frame and its neighbours.
        distant: sampler of global frames.
    """

    look_ahead = None

    def __init__(self, *, local: ReferenceSampler, distant: ReferenceSampler) -> None:
        if local.num_global or distant.num_global != distant.num_frames - 1 or distant.clip_index:
            raise ValueError(
                "a MixedSampler needs a GlobalSampler as distant and a sampler of neighbours as "
                f"local, but has {type(distant).__name__} and {type(local).__name__}"
            )
        self.local, self.distant = local, distant
        self.num_global, self.clip_index = distant.num_global, local.clip_index
        self.num_frames = local.num_frames + distant.num_global

    def __call__(
        self, video: VideoFrames, position: int, rng: np.random.Generator | None
    ) -> list[int]:
        """See `ReferenceSampler`."""
        references = self.distant(video, position, rng)[1:]
        return self.local(video, position, rng) + references
