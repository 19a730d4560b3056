"""MEGA (Chen et al., CVPR 2020): RDN whose neighbours know of the whole video and of their past.

    global     every region of the window takes from those of frames of the whole video, boxes aside
    local      stages of RDN, in which the best regions of every frame are related, too; in the last
               one those of the current frame alone
    memory     at every stage, regions of frames that have left the window are among the related
               ones, as they were at that stage when they left: each stage looks further back

The first local stage relates to ``num_proposals`` regions a frame, the later ones to the best
``num_distilled``. No gradient enters the memory. In training, where frames come in no order, it is
made of a few frames drawn from before the window.

Choices are those of github.com/Scalsol/mega.pytorch for ResNet-50: one global relation, before the
local stages. Its memory also has the first frame of a video again for every frame that it precedes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from v2idetr.data.reference_sampler import ReferenceSampler, VideoFrames
from v2idetr.modeling.trainable import Sample
from video_detectors.rdn import RDN, Clip
from video_detectors.relation_attention import Regions, RelationAttention

Stages = list[Regions]  # of one frame: its regions that others are related to, at each stage


class MEGA(RDN):
    """Detector of the current frame of a clip.

    Args:
        net, class_names, reference_sampler, evaluation_sampler, weights, num_proposals, num_groups:
            see :class:`RDN`; in training clips have frames of a :class:`MemorySampler`.
        num_distilled: regions of each frame after the first stage.
        memory_frames: frames that are remembered in evaluation; 0 for no memory.

    Raises:
        ValueError: see :class:`RDN`; samplers and memory do not agree.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        class_names: Sequence[str],
        reference_sampler: ReferenceSampler,
        evaluation_sampler: ReferenceSampler | None = None,
        weights: str | None = None,
        num_proposals: int = 75,
        num_groups: int = 16,
        num_distilled: int = 15,
        memory_frames: int = 25,
    ) -> None:
        super().__init__(
            net=net,
            class_names=class_names,
            reference_sampler=reference_sampler,
            evaluation_sampler=evaluation_sampler,
            weights=weights,
            num_proposals=num_proposals,
            num_groups=num_groups,
        )
        if not 1 <= num_distilled <= num_proposals:
            raise ValueError(
                f"num_distilled={num_distilled} must be between 1 and num_proposals={num_proposals}"
            )
        _check_samplers(reference_sampler, evaluation_sampler, memory_frames)
        self.num_distilled, self.memory_frames = num_distilled, memory_frames
        self.global_relation = None
        if reference_sampler.num_global:
            d = self.layers[0].out_features
            self.global_relation = RelationAttention(d, num_groups=num_groups, geometry=False)
        self.forget()

    def forget(self) -> None:
        """Empty the memory."""
        self._memory: deque[Stages] = deque(maxlen=self.memory_frames)
        self._first: tuple[int, Stages] | None = None  # of the last window: image_id

    def related(self, key: Regions, clip: Clip) -> Float[Tensor, "N d"]:
        """See :meth:`RDN.related`; the memory of frames of the clip, without gradient."""
        memory: list[Stages] = []
        if clip.remembered:
            with torch.no_grad():
                frames = [self.informed(frame, clip.distant) for frame in clip.remembered]
                _, memory = self.local_stages(frames[0].first(0), frames, [])
        return self.related_with(memory, key, clip)[0]

    def related_in_video(self, sample: Sample, key: Regions, clip: Clip) -> Float[Tensor, "N d"]:
        """The same with the memory of the frames before."""
        window = {frame["image_id"] for frame in sample["clip"][: len(clip.local)]}
        if self._first is not None and self._first[0] not in window:
            self._memory.append(self._first[1])
        features, frames = self.related_with(list(self._memory), key, clip)
        self._first = sample["clip"][0]["image_id"], [regions.detach() for regions in frames[0]]
        return features

    def related_with(
        self, memory: list[Stages], key: Regions, clip: Clip
    ) -> tuple[Float[Tensor, "N d"], list[Stages]]:
        """Features of the current frame's regions, and the frames of the window at each stage."""
        frames = [self.informed(frame, clip.distant) for frame in clip.local]
        return self.local_stages(self.informed(key, clip.distant), frames, memory)

    def informed(self, regions: Regions, distant: list[Regions]) -> Regions:
        """Regions that know of the whole video."""
        if self.global_relation is None:
            return regions
        taken = self.global_relation(regions, Regions.cat(distant))
        return regions.with_features(regions.features + taken)

    def local_stages(
        self, key: Regions, frames: list[Regions], memory: list[Stages]
    ) -> tuple[Float[Tensor, "N d"], list[Stages]]:
        """Relations of the current frame's regions, and of the best regions of all frames.

        Args:
            key: regions of the current frame.
            frames: of the window, its best ``num_proposals`` each.
            memory: frames before the window.

        Returns:
            features of ``key`` after the last stage, and what is to be remembered of each frame.
        """
        best = [frame.first(self.num_distilled) for frame in frames]
        related, last = frames, len(self.relations) - 1
        known: list[Stages] = [[] for _ in frames]
        for stage, relation in enumerate(self.relations):
            for stages, frame in zip(known, related, strict=True):
                stages.append(frame)
            others = Regions.cat(related + [stages[stage] for stages in memory])
            asking = Regions.cat([key, *best]) if stage < last else key
            features = asking.features + relation(asking, others)
            if stage < last:
                features = self.layers[stage + 1](features).relu()
                key, *best = asking.with_features(features).split([len(key), *map(len, best)])
                related = best
            else:
                key = key.with_features(features)
        return key.features, known


class MemorySampler:
    """Frames from before a window, in temporal order, then the clip of the window.

    Args:
        local: sampler of the window, whose references may be of the whole video as well.
        num_memory: number of frames before the window.
        nearest, farthest: distance to the current frame in frames of the video, by `frame_index`.

    With fewer such frames in the scene they are repeated, with none the scene's first frame is.
    In training they are drawn, otherwise evenly spaced.
    """

    def __init__(
        self, *, local: ReferenceSampler, num_memory: int, nearest: int, farthest: int
    ) -> None:
        if num_memory < 1 or not 1 <= nearest <= farthest:
            raise ValueError(
                f"num_memory={num_memory} must be at least 1, and 1 <= nearest={nearest} <= "
                f"farthest={farthest}"
            )
        self.local, self.num_memory = local, num_memory
        self.nearest, self.farthest = nearest, farthest
        self.num_frames = num_memory + local.num_frames
        self.clip_index = num_memory + local.clip_index
        self.num_global, self.look_ahead = local.num_global, local.look_ahead

    def __call__(
        self, video: VideoFrames, position: int, rng: np.random.Generator | None
    ) -> list[int]:
        """See `ReferenceSampler`."""
        first = video.scene.start
        indices = np.asarray(video.frame_indices[first:position])
        away = video.frame_indices[position] - indices
        (inside,) = np.nonzero((away >= self.nearest) & (away <= self.farthest))
        past = first + inside if len(inside) else np.array([first])
        count = self.num_memory
        if rng is not None:
            drawn = np.resize(rng.permutation(past), count)
        else:
            drawn = past[(2 * np.arange(count) + 1) * len(past) // (2 * count)]
        return [*np.sort(drawn).tolist(), *self.local(video, position, rng)]


def _check_samplers(
    train: ReferenceSampler, evaluation: ReferenceSampler | None, memory_frames: int
) -> None:
    drawn = getattr(train, "num_memory", 0)
    if memory_frames < 0 or bool(memory_frames) != bool(drawn):
        raise ValueError(
            f"memory_frames={memory_frames}, but reference_sampler draws {drawn} frames from "
            "before the window: use a MemorySampler, or set memory_frames=0."
        )
    if getattr(evaluation or train, "num_memory", 0):
        raise ValueError(
            "evaluation_sampler must give a window alone, without a MemorySampler: frames that "
            "have left it are remembered."
        )
    if evaluation is not None and bool(evaluation.num_global) != bool(train.num_global):
        raise ValueError(
            "reference_sampler and evaluation_sampler must both have frames of the whole video, "
            "or neither."
        )
