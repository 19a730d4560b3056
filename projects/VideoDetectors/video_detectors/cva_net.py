"""CVA-Net (Lin et al., MICCAI 2022): a key frame's features, fused with neighbours and the video.

At each feature level, with x_t the projected features of frame t, u the key frame and g_t frames
from the whole video::

    inter-video fusion   y_t = x_t + LayerNorm(MHA(query g_t, key x_t, value x_t)),  t = u-1, u, u+1
    intra-video fusion   z = y_u + MHA(query y_u+1, key y_u-1, value y_u)

z replaces x_u in Deformable DETR. Its mean over the coarsest level, the video-level feature, is
trained to tell the classes of the video's lesions.

These formulae, the heads and the loss of the classes are those of the released code
(github.com/jhl-Det/CVA-Net, models/backbone.py and cva_net.py), which however shares one MHA and
LayerNorm among all levels and both fusions, and never computes the loss of the classes, nor those
of decoder layers before the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from jaxtyping import Bool, Float
from torch import Tensor, nn

from v2idetr.data.reference_sampler import ReferenceSampler
from v2idetr.modeling.criterion import Targets
from v2idetr.modeling.extra_queries import ExtraQueries
from v2idetr.modeling.interface import Decoded, Features
from v2idetr.modeling.trainable import Sample
from v2idetr.modeling.training import TrainingOutput
from video_detectors.transformer_detector import TransformerVideoDetector

# Places in a clip: the frame before the key frame, the key frame, the one after it, and for each of
# them a frame of the whole video.
LOCAL, KEY, FRAMES = 3, 1, 6


class CVANet(TransformerVideoDetector):
    """Detector of the key frame of a clip of six, see :data:`FRAMES`.

    Args:
        net: Deformable DETR with :class:`ClipFusion` in its slot "features"; without a fusion the
            detector is that of single frames, with any sampler.
        video_class_weight: weight of the loss of the video's classes; 0 for none, as in the
            released code.
        auxiliary_losses: losses of all decoder layers; false for the last one alone, as in the
            released code. Heads of other layers are frozen then.
        detector: see :class:`TransformerVideoDetector`.

    Raises:
        ValueError: a sampler chooses other clips.
    """

    net: Any

    def __init__(
        self,
        *,
        net: nn.Module,
        video_class_weight: float = 1.0,
        auxiliary_losses: bool = True,
        **detector: Any,
    ) -> None:
        super().__init__(net=net, **detector)
        self.video_class_weight, self.auxiliary_losses = video_class_weight, auxiliary_losses
        self.video_classes = None
        if video_class_weight:
            self.video_classes = nn.Linear(self.net.d, len(self.class_names))
        if not auxiliary_losses and self.net.box_refine:
            for layer in range(len(self.net.decoder) - 1):
                for head in self.net.heads.of_layer(layer):
                    head.requires_grad_(False)
        if self.fusion is not None:
            for key, sampler in self.samplers().items():
                _check_clips(key, sampler)
            if self.fusion.copy_last:  # the projection of that level is not used
                for unused in (self.net.neck.projections[-1], self.net.neck.norms[-1]):
                    unused.requires_grad_(False)

    @property
    def fusion(self) -> ClipFusion | None:
        """The module that mixes the frames of a clip."""
        return None if self.net.fusion is None else self.net.fusion.features

    def losses(
        self,
        frames: list[Sample],
        extra: Sequence[ExtraQueries] = (),
        num_boxes: float | None = None,
    ) -> TrainingOutput:
        """Losses of the key frames.

        Args:
            frames: all frames of all clips, clip-major.
            extra: not used here.
            num_boxes: see ``SetCriterion``.
        """
        assert not extra, "additional queries are of students"
        images, targets = self.images(frames), self.targets(self.labelled(frames))
        features = self.net.extract(images).select(self.index_of_labelled(frames))
        memory = self.net.encode(features)
        queries = self.net.queries(memory)
        decoded = self.net.decode(memory, queries)
        if not self.auxiliary_losses:
            decoded = Decoded(decoded.hidden[-1:], decoded.logits[-1:], decoded.boxes[-1:])
        losses = self.criterion(decoded, targets, proposals=memory.proposals, num_boxes=num_boxes)
        if self.video_classes is not None:
            logits = self.video_classes(video_feature(features))
            losses["loss_video_class"] = self.video_class_weight * class_loss(logits, targets)
        classification = self.criterion.classification
        return TrainingOutput(losses, images, targets, memory, queries, decoded, [], classification)

    def encode(self, frames: list[Sample]) -> list[Features]:
        """Projected features of each frame."""
        features = self.net.extract_images(self.images(frames))
        each = torch.arange(len(frames), device=self.device).split(1)
        return [features.select(index) for index in each]

    def detect(self, sample: Sample, states: list[Features]) -> Instances:
        """Detections of the key frame, by its fused features."""
        features = states[sample["clip_index"]]
        if self.fusion is not None:
            clip = self.fusion(clip_of(states))
            features = clip.select(torch.tensor([sample["clip_index"]], device=self.device))
        memory = self.net.encode(features)
        return self.detections(self.net.decode(memory, self.net.queries(memory)), sample)


class ClipFusion(nn.Module):
    """Features of clips of six frames -> the same, those of the key frame fused.

    Args:
        strides: strides of the levels in pixels.
        d: width.
        num_heads, dropout: of the attention.
        shared: one attention and LayerNorm for all levels, the same attention for both fusions, as
            in the released code; otherwise each level and each fusion has its own.
        copy_last: the last level is a copy of the one before, as in the released code, which
            projects no coarser level; otherwise it is a level as the others.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int] = (8, 16, 32, 64),
        d: int = 256,
        num_heads: int = 4,
        dropout: float = 0.1,
        shared: bool = False,
        copy_last: bool = False,
    ) -> None:
        super().__init__()
        if d % num_heads:
            raise ValueError(f"d={d} must be divisible by num_heads={num_heads}.")
        self.strides, self.d, self.copy_last = tuple(strides), d, copy_last
        self.fused = self.strides[:-1] if copy_last else self.strides
        if not self.fused:
            raise ValueError(f"copy_last=true needs a level to copy, but strides are {strides}.")
        # As MSI: the weights of later modules must not depend on these.
        with torch.random.fork_rng(devices=[]):
            self.levels = nn.ModuleList(
                LevelFusion(d, num_heads=num_heads, dropout=dropout, one_attention=shared)
                for _ in range(1 if shared else len(self.fused))
            )

    def forward(self, features: Features) -> Features:
        """Maps (C * 6, d, h, w) by stride -> maps of the same shapes."""
        assert features.num_frames == FRAMES, features.num_frames
        maps = dict(features.maps)
        for index, stride in enumerate(self.fused):
            clips = maps[stride].unflatten(0, (-1, FRAMES))
            padding = None
            if features.padding is not None:
                padding = features.padding[stride].unflatten(0, (-1, FRAMES))[:, KEY].flatten(1)
            fuse = self.levels[index % len(self.levels)]
            key = fuse(clips.flatten(3).transpose(2, 3), padding)
            key = key.transpose(1, 2).unflatten(2, clips.shape[-2:]).unsqueeze(1)
            maps[stride] = torch.cat([clips[:, :KEY], key, clips[:, KEY + 1 :]], 1).flatten(0, 1)
        if not self.copy_last:
            return replace(features, maps=maps)
        source, last = self.strides[-2:]

        def with_copy(by_stride: dict[int, Tensor]) -> dict[int, Tensor]:
            return by_stride | {last: by_stride[source]}

        return replace(
            features,
            maps=with_copy(maps),
            padding=features.padding and with_copy(features.padding),
            valid_ratios=features.valid_ratios and with_copy(features.valid_ratios),
        )


class LevelFusion(nn.Module):
    """Inter- and intra-video fusion of one level, see the module's docstring.

    Args:
        d, num_heads, dropout: of the attention.
        one_attention: the same attention for both fusions.
    """

    def __init__(self, d: int, *, num_heads: int, dropout: float, one_attention: bool) -> None:
        super().__init__()

        def attention() -> nn.MultiheadAttention:
            return nn.MultiheadAttention(d, num_heads, dropout, batch_first=True)

        self.inter_video, self.inter_norm = attention(), nn.LayerNorm(d)
        self.intra_video = None if one_attention else attention()

    def forward(
        self, clips: Float[Tensor, "C 6 n d"], padding: Bool[Tensor, "C n"] | None
    ) -> Float[Tensor, "C n d"]:
        """Tokens of the frames of clips -> those of the key frames, zero on padding.

        Args:
            clips: see :data:`FRAMES`.
            padding: True on padding, the same in all frames of a clip; None without padding.
        """
        local, distant = (part.flatten(0, 1) for part in clips.split(LOCAL, 1))
        masks = None if padding is None else padding.repeat_interleave(LOCAL, 0)
        read = _read(self.inter_video, distant, local, local, masks)
        before, key, after = (local + self.inter_norm(read)).unflatten(0, (-1, LOCAL)).unbind(1)
        fused = key + _read(self.intra_video or self.inter_video, after, before, key, padding)
        return fused if padding is None else fused.masked_fill(padding.unsqueeze(-1), 0.0)


def _read(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
) -> Tensor:
    return attention(query, key, value, key_padding_mask=padding, need_weights=False)[0]


def clip_of(frames: Sequence[Features]) -> Features:
    """Features of the frames of one clip, all of one size, together."""

    def together(by_stride: Sequence[dict[int, Tensor] | None]) -> dict[int, Tensor] | None:
        if by_stride[0] is None:
            return None
        return {stride: torch.cat([x[stride] for x in by_stride if x]) for stride in by_stride[0]}

    maps = together([frame.maps for frame in frames])
    assert maps is not None
    padding = together([frame.padding for frame in frames])
    ratios = together([frame.valid_ratios for frame in frames])
    return Features(maps, padding, ratios, len(frames))


def video_feature(features: Features) -> Float[Tensor, "C d"]:
    """Mean of the coarsest level over the cells of each image."""
    stride = max(features.maps)
    cells = features.maps[stride].float().flatten(2)
    if features.padding is None:
        return cells.mean(2)
    keep = ~features.padding[stride].flatten(1).unsqueeze(1)
    return (cells * keep).sum(2) / keep.sum(2)


def class_loss(logits: Float[Tensor, "C K"], targets: Targets) -> Float[Tensor, ""]:
    """Cross-entropy of each class against whether the frame has a lesion of it, mean of all.

    The released code has it for frames with lesions alone, where with one class it says nothing.
    """
    present = torch.zeros_like(logits, dtype=torch.float32)
    for row, labels in zip(present, targets.labels, strict=True):
        row[labels] = 1.0
    return F.binary_cross_entropy_with_logits(logits.float(), present)


def _check_clips(name: str, sampler: ReferenceSampler) -> None:
    have = sampler.num_frames, sampler.clip_index, sampler.num_global
    if have != (FRAMES, KEY, FRAMES - LOCAL):
        raise ValueError(
            f"{name} must choose the key frame between its neighbours, then {FRAMES - LOCAL} "
            f"frames of the whole video: a MixedSampler of AdjacentSampler(before=1, after=1) and "
            f"GlobalSampler(num_references={FRAMES - LOCAL}). Of the {have[0]} frames of "
            f"{type(sampler).__name__}, {have[2]} are of the whole video."
        )
