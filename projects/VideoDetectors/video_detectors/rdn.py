"""RDN (Deng et al., ICCV 2019): features of regions, related to the regions of neighbouring frames.

    encode   region proposals of each frame alone, and their RoI features after the first layer
    detect   x = FC(x), x += A(x, best proposals of all frames of the clip), stage by stage; class
             and box from what comes out

A is ``RelationAttention``. This is the basic stage of the paper and the first step towards MEGA,
without relation distillation, as "RDN base" in github.com/Scalsol/mega.pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN, StandardROIHeads
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import Boxes, ImageList, Instances
from jaxtyping import Float
from torch import Tensor, nn

from v2idetr.data.reference_sampler import ReferenceSampler
from v2idetr.modeling.trainable import Sample
from video_detectors.detector import VideoDetector, in_original_pixels
from video_detectors.relation_attention import Regions, RelationAttention


@dataclass(frozen=True)
class Clip:
    """The best regions of the frames of a clip, by frame, after the first layer.

    Attributes:
        remembered: of frames before the window, in training (MEGA).
        local: of the current frame and its neighbours, in temporal order.
        distant: of frames of the whole video.
    """

    remembered: list[Regions]
    local: list[Regions]
    distant: list[Regions]


class RDN(VideoDetector):
    """Detector of the current frame of a clip.

    Args:
        net: Faster R-CNN; each layer of its ``box_head`` begins a stage.
        class_names, reference_sampler, evaluation_sampler, weights: see :class:`VideoDetector`.
        num_proposals: regions of each frame that others are related to.
        num_groups: see ``RelationAttention``.

    Raises:
        ValueError: the network is no Faster R-CNN, or its box head has other layers.
    """

    net: GeneralizedRCNN

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
    ) -> None:
        super().__init__(
            net=net,
            class_names=class_names,
            reference_sampler=reference_sampler,
            evaluation_sampler=evaluation_sampler,
            weights=weights,
        )
        if num_proposals < 1:
            raise ValueError(f"num_proposals={num_proposals} must be at least 1.")
        self.num_proposals = num_proposals
        d = _width(net)
        self.relations = nn.ModuleList(
            RelationAttention(d, num_groups=num_groups) for _ in self.layers
        )

    @property
    def roi_heads(self) -> StandardROIHeads:
        heads: Any = self.net.roi_heads
        return heads

    @property
    def layers(self) -> list[nn.Linear]:
        """Of the box head, one a stage."""
        head: Any = self.roi_heads.box_head
        return head.fcs

    # ------------------------------------------------------------------ training

    def losses(self, batched_inputs: list[Sample]) -> dict[str, Tensor]:
        """Faster R-CNN's losses of the current frames."""
        heads, predictor = self.roi_heads, self.roi_heads.box_predictor
        num_remembered = getattr(self.reference_sampler, "num_memory", 0)  # see mega.MemorySampler
        remembered = [f for s in batched_inputs for f in s["clip"][:num_remembered]]
        with torch.no_grad():
            past = self.seen(remembered)[-1] if remembered else []
        images, maps, seen = self.seen(
            [f for s in batched_inputs for f in s["clip"][num_remembered:]]
        )

        T = self.num_frames - num_remembered
        index = self.reference_sampler.clip_index - num_remembered
        own = {name: x[index::T] for name, x in maps.items()}
        own_images = ImageList(images.tensor[index::T], images.image_sizes[index::T])
        lesions = [sample["instances"].to(self.net.device) for sample in batched_inputs]
        proposals, losses = self.net.proposal_generator(own_images, own, lesions)
        sampled = heads.label_and_sample_proposals(proposals, lesions)
        related = []
        for number, key in enumerate(self.regions(own, sampled)):
            clip = past[number * num_remembered :][:num_remembered] + seen[number * T :][:T]
            related.append(self.related(key, split_clip(clip, self.reference_sampler)))
        return losses | predictor.losses(predictor(torch.cat(related)), sampled)

    def seen(self, frames: list[Sample]) -> tuple[ImageList, dict[str, Tensor], list[Regions]]:
        """Images and maps of frames, and the regions of each that others are related to."""
        images = self.net.preprocess_image(frames)
        maps = self.net.backbone(images.tensor)
        proposals = propose(self.net.proposal_generator, maps, images.image_sizes)
        best = [found[: self.num_proposals] for found in proposals]
        return images, maps, self.regions(maps, best)

    # ------------------------------------------------------------------ evaluation

    def encode(self, frames: list[Sample]) -> list[Instances]:
        """Region proposals of each frame, best ones first, with their ``features``."""
        images = self.net.preprocess_image(frames)
        maps = self.net.backbone(images.tensor)
        proposals = propose(self.net.proposal_generator, maps, images.image_sizes)
        for found, regions in zip(proposals, self.regions(maps, proposals), strict=True):
            found.features = regions.features
        return proposals

    def detect(self, sample: Sample, states: list[Instances]) -> Instances:
        """Detections of the current frame after non-maximum suppression."""
        sampler = self.evaluation_sampler or self.reference_sampler
        current, predictor = states[sample["clip_index"]], self.roi_heads.box_predictor
        best = [regions_of(found[: self.num_proposals]) for found in states]
        related = self.related_in_video(sample, regions_of(current), split_clip(best, sampler))
        (found,), _ = predictor.inference(predictor(related), [current])
        return in_original_pixels(found, sample)

    def related_in_video(self, sample: Sample, key: Regions, clip: Clip) -> Float[Tensor, "N d"]:
        """:meth:`related`, of successive frames."""
        return self.related(key, clip)

    # ------------------------------------------------------------------ both

    def regions(self, maps: dict[str, Tensor], proposals: list[Instances]) -> list[Regions]:
        """Regions of frames with their RoI features after the first layer."""
        heads = self.roi_heads
        boxes = [found.proposal_boxes for found in proposals]
        pooled = heads.box_pooler([maps[name] for name in heads.box_in_features], boxes)
        features = self.layers[0](pooled.flatten(1)).relu()
        together = Regions(Boxes.cat(boxes).tensor, features)
        return together.split([len(found) for found in boxes])

    def related(self, key: Regions, clip: Clip) -> Float[Tensor, "N d"]:
        """Features of the current frame's regions for their classes and boxes."""
        others = Regions.cat(clip.local)
        for stage, relation in enumerate(self.relations):
            if stage:
                key = key.with_features(self.layers[stage](key.features).relu())
            key = key.with_features(key.features + relation(key, others))
        return key.features


def _width(net: Any) -> int:
    heads = getattr(net, "roi_heads", None)
    head: Any = getattr(heads, "box_head", None)
    fits = isinstance(net, GeneralizedRCNN) and isinstance(heads, StandardROIHeads)
    if not fits or not isinstance(head, FastRCNNConvFCHead):
        raise ValueError(
            f"net: {type(net).__name__} with {type(head).__name__} is no Faster R-CNN whose "
            "regions can be related: use StandardROIHeads with FastRCNNConvFCHead, as "
            "configs/models/faster_rcnn_c4.py does."
        )
    widths = {layer.out_features for layer in head.fcs}
    if head.conv_norm_relus or len(widths) != 1:
        raise ValueError(
            "net.roi_heads.box_head must have conv_dims=[] and fc_dims of one width, such as "
            "[1024, 1024]: each is the first layer of a stage."
        )
    return widths.pop()


def split_clip(frames: list[Regions], sampler: ReferenceSampler) -> Clip:
    """Frames in the order of a sampler -> the kinds of frames."""
    start = getattr(sampler, "num_memory", 0)
    end = len(frames) - sampler.num_global
    return Clip(frames[:start], frames[start:end], frames[end:])


def regions_of(found: Instances) -> Regions:
    """Proposals with ``features`` -> regions."""
    return Regions(found.proposal_boxes.tensor, found.features)


@torch.no_grad()
def propose(rpn: Any, maps: dict[str, Tensor], sizes: list[tuple[int, int]]) -> list[Instances]:
    """Detectron2's region proposals of frames, best ones first, also in training without losses.

    Args:
        rpn: Detectron2's RPN.
        maps: of the backbone.
        sizes: (height, width) of each frame in pixels, without padding.
    """
    features = [maps[name] for name in rpn.in_features]
    logits, deltas = rpn.rpn_head(features)
    return rpn.predict_proposals(
        rpn.anchor_generator(features),
        [permute_to_N_HWA_K(x, 1).squeeze(2) for x in logits],
        [permute_to_N_HWA_K(x, 4) for x in deltas],
        sizes,
    )
