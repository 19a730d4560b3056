"""Detection frame by frame: what is known of a frame is computed once, and kept while it is needed.

A video detector of this package works in two steps, in batches of clips and in streams alike::

    encode   frames -> states, each of its frame alone     expensive, once a frame
    detect   states of a clip -> detections                the frames of the clip together
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from v2idetr.data.reference_sampler import ReferenceSampler, VideoFrames
from v2idetr.modeling.trainable import Sample

State = Any  # of one frame; tensors or a dataclass of them
PROBED = 2001  # frames of a video that shows how far a sampler looks


@dataclass(frozen=True)
class Reach:
    """How far a sampler's references are from the current frame in evaluation, in listed frames.

    Attributes:
        back: to the earliest reference, global ones aside.
        ahead: to the latest; None for a sampler of the whole video.
        num_global: number of references from the whole video.
    """

    back: int
    ahead: int | None
    num_global: int

    @classmethod
    def of(cls, sampler: ReferenceSampler) -> Reach:
        """Measured in the middle of a video without gaps."""
        frames = np.arange(PROBED)
        current = PROBED // 2
        places = sampler(VideoFrames(frames, range(PROBED)), current, None)
        near = places[: len(places) - sampler.num_global]
        return cls(current - min(near), sampler.look_ahead, sampler.num_global)

    @property
    def kept(self) -> int:
        """Number of frames whose states a stream needs at a time."""
        return self.back + 1 + (self.ahead or 0) + self.num_global


class FrameStates:
    """States of some frames of one video, the latest ones.

    Args:
        capacity: number of states kept, besides those of the current clip.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._known: dict[int, tuple[int, State]] = {}  # image_id -> frame_index and state

    def __len__(self) -> int:
        return len(self._known)

    def missing(self, clip: Sequence[Sample]) -> list[Sample]:
        """The frames of a clip without a state, each once."""
        return list({f["image_id"]: f for f in clip if f["image_id"] not in self._known}.values())

    def add(self, frames: Sequence[Sample], states: Sequence[State]) -> None:
        """Keep the states of frames."""
        for frame, state in zip(frames, states, strict=True):
            self._known[frame["image_id"]] = frame["frame_index"], state

    def of(self, clip: Sequence[Sample]) -> list[State]:
        """The states of a clip's frames; forgets the earliest ones of others."""
        ids = [frame["image_id"] for frame in clip]
        states = [self._known[i][1] for i in ids]
        others = sorted(self._known.keys() - set(ids), key=lambda i: self._known[i][0])
        for i in others[: max(0, len(self._known) - self.capacity)]:
            del self._known[i]
        return states


class VideoMemory:
    """Evaluation of a detector frame by frame, a mixin before ``torch.nn.Module``.

    A subclass has ``reference_sampler`` and ``evaluation_sampler`` (None for the same), and defines
    ``encode`` and ``detect``; one that carries more from frame to frame also ``forget``.
    """

    order = "video"
    reference_sampler: ReferenceSampler
    evaluation_sampler: ReferenceSampler | None
    _states: FrameStates | None = None

    def encode(self, frames: list[Sample]) -> list[State]:
        """What is known of each frame alone; the frames have one size."""
        raise NotImplementedError

    def detect(self, sample: Sample, states: list[State]) -> Instances:
        """Detections of the current frame, in pixels of the original frame.

        Args:
            sample: see ``data/clip_mapper.py``.
            states: of the frames of its clip.
        """
        raise NotImplementedError

    def forget(self) -> None:
        """Discard what is carried from frame to frame, other than the states."""

    def reset(self) -> None:
        """Begin a new video."""
        self._states = None
        self.forget()

    def follow(self, batched_inputs: list[Sample]) -> list[dict[str, Instances]]:
        """Detections of successive frames of one video."""
        if self._states is None:
            sampler = self.evaluation_sampler or self.reference_sampler
            self._states = FrameStates(Reach.of(sampler).kept)
        results = []
        for sample in batched_inputs:
            new = self._states.missing(sample["clip"])
            if new:
                self._states.add(new, self.encode(new))
            results.append({"instances": self.detect(sample, self._states.of(sample["clip"]))})
        return results


def images_of(frames: list[Sample], device: torch.device) -> Tensor:
    """Images (B, 3, H, W) of frames of one size, in [0, 255]."""
    return torch.stack([frame["image"] for frame in frames]).to(device, non_blocking=True)
