"""STFT (Wu et al., MICCAI 2021): FCOS, refined by what its boxes select in other frames.

At each level, and for the towers of classification and regression apart, with F_u the tower of the
current frame, F_r those of its references, and b FCOS's box of each location: its edges relative to
the location, in cells, without gradient::

    spatial        G_u = ReLU(D(F_u, W b_u)),  G_r = ReLU(D(F_r, W (b_u - b_r)))
    temporal       H_c = G_uc + sum_r a_rc G_rc,  a_c = softmax_r(<G_uc, G_rc> / sqrt(h w))
    refinement     class logits and box shifts are 3 x 3 convolutions of H

D is a deformable 3 x 3 convolution in four groups whose offsets are W b, a 1 x 1 convolution; c is
a channel. A box shift is in halves of the FCOS box's width and height.

What the paper leaves open is as in the released code (github.com/lingyunwu14/STFT), which differs
in these points. Its backbone has deformable convolutions and global context blocks in res3 to res5
(10.6 million parameters); so has its FCOS, and neither has them here. Losses of FCOS are those of
Detectron2, which does not weight GIoU by centerness. References in evaluation are evenly spaced:
the code draws them anew for every frame, without a seed. It trains on frames with lesions alone, as
data.negative_share=0 does. Padding of a batch is not masked; the code trains one clip at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss, smooth_l1_loss
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import box_iou

from v2idetr.data.reference_sampler import ReferenceSampler
from v2idetr.modeling.detectron2_models import dense_losses
from v2idetr.modeling.references import in_float32
from v2idetr.modeling.trainable import Sample
from video_detectors.deformable_conv import DeformConv2d
from video_detectors.detector import VideoDetector, in_original_pixels

GROUPS = 4  # of the deformable convolution
MIN_IOU = 0.1  # between FCOS's box and the lesion that it is refined to
SHIFT_UNIT = 0.5  # of a box shift, in widths and heights of the box
SMOOTH_L1_BETA = 0.11


@dataclass(frozen=True)
class Level:
    """Towers and predictions of FCOS for B frames at one level, K classes."""

    cls_tower: Float[Tensor, "B d h w"]
    box_tower: Float[Tensor, "B d h w"]
    logits: Float[Tensor, "B K h w"]
    deltas: Float[Tensor, "B 4 h w"]
    centerness: Float[Tensor, "B 1 h w"]

    def __getitem__(self, frames: slice) -> Level:
        return Level(**{name: values[frames] for name, values in vars(self).items()})

    @classmethod
    def cat(cls, levels: Sequence[Level]) -> Level:
        """Frames of all levels, in order."""
        return cls(
            **{name: torch.cat([vars(at)[name] for at in levels]) for name in vars(levels[0])}
        )


@dataclass(frozen=True)
class Refined:
    """FCOS's boxes of C current frames at one level, and what becomes of them."""

    boxes_xyxy_px: Float[Tensor, "C N 4"]
    logits: Float[Tensor, "C N K"]
    shifts: Float[Tensor, "C N 4"]


class FeatureTransformation(nn.Module):
    """One tower of T frames and their boxes -> refined predictions of the first frame.

    Args:
        d: width of the tower, divisible by ``GROUPS``.
        num_outputs: number of predicted maps.
    """

    def __init__(self, d: int, num_outputs: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(4, GROUPS * 2 * 3 * 3, 1, bias=False)
        self.align = DeformConv2d(d, d, 3, padding=1, bias=False)
        self.predict = nn.Conv2d(d, num_outputs, 3, padding=1)
        for layer in (self.offsets, self.align, self.predict):
            nn.init.normal_(layer.weight, std=0.01)
        assert self.predict.bias is not None
        nn.init.zeros_(self.predict.bias)

    def forward(
        self, tower: Float[Tensor, "C T d h w"], boxes: Float[Tensor, "C T 4 h w"]
    ) -> Float[Tensor, "C outputs h w"]:
        current = boxes[:, :1]
        relative = torch.cat([current, current - boxes[:, 1:]], 1)
        offsets = in_float32(self.offsets, relative.flatten(0, 1))
        aligned = self.align(tower.flatten(0, 1), offsets).relu().unflatten(0, tower.shape[:2])
        return self.predict(aligned[:, 0] + attended(aligned[:, 0], aligned[:, 1:]))


def attended(
    current: Float[Tensor, "C d h w"], references: Float[Tensor, "C R d h w"]
) -> Float[Tensor, "C d h w"]:
    """Mean of the references, channel by channel, weighted by their similarity to the current one.

    Zero without references. In float32, also under autocast: similarities are sums over all cells.
    """
    with torch.autocast(current.device.type, enabled=False):
        current, references = current.float(), references.float()
        similarity = torch.einsum("cdhw,crdhw->crd", current, references)
        weights = (similarity / sqrt(current[0, 0].numel())).softmax(1)
        return torch.einsum("crd,crdhw->cdhw", weights, references)


class STFT(VideoDetector):
    """Detector of the current frame of a clip.

    Args:
        net: the single-frame detector.
        class_names, reference_sampler, evaluation_sampler, weights: see :class:`VideoDetector`.

    Raises:
        ValueError: the network is no FCOS, or not divisible into groups.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        class_names: Sequence[str],
        reference_sampler: ReferenceSampler,
        evaluation_sampler: ReferenceSampler | None = None,
        weights: str | None = None,
    ) -> None:
        if not isinstance(net, FCOS):
            raise ValueError(
                f"net: {type(net).__name__} is no FCOS, whose towers and boxes STFT needs: set "
                "net._target_=detectron2.modeling.FCOS, as configs/models/stft.py does."
            )
        super().__init__(
            net=net,
            class_names=class_names,
            reference_sampler=reference_sampler,
            evaluation_sampler=evaluation_sampler,
            weights=weights,
        )
        head: Any = net.head
        d = head.cls_score.in_channels
        if d % GROUPS:
            raise ValueError(
                f"net.head.conv_dims ends with {d}, which STFT's deformable convolutions cannot "
                f"divide into {GROUPS} groups: choose a multiple of {GROUPS}."
            )
        self.cls_transformation = FeatureTransformation(d, net.num_classes)
        self.box_transformation = FeatureTransformation(d, 4)
        bias = self.cls_transformation.predict.bias
        assert bias is not None
        with torch.no_grad():
            bias.copy_(head.cls_score.bias)  # lesions are as rare as for FCOS's own head

    # ------------------------------------------------------------------ training

    def losses(self, batched_inputs: list[Sample]) -> dict[str, Tensor]:
        """FCOS's losses of the current frames, and those of the refinement."""
        clips = [current_first(s["clip"], s["clip_index"]) for s in batched_inputs]
        levels = self.levels([frame for clip in clips for frame in clip])
        refined = self.refine(levels, self.num_frames)
        lesions = [sample["instances"].to(self.net.device) for sample in batched_inputs]
        current = [level[:: self.num_frames] for level in levels]
        predictions = [
            [vars(level)[name] for level in current] for name in ("logits", "deltas", "centerness")
        ]
        maps = [level.cls_tower for level in current]  # their sizes alone are needed
        with dense_losses(self.net):
            losses = self.net.forward_training(None, maps, predictions, lesions)
        return losses | self.refinement_losses(refined, lesions)

    def refinement_losses(
        self, refined: Sequence[Refined], lesions: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Focal loss and smooth L1, divided by the number of boxes with a lesion.

        A box is refined to the lesion with the largest IoU, if that is ``MIN_IOU`` or more.
        """
        net = self.net
        boxes, logits, shifts = (
            torch.cat([vars(level)[name] for level in refined], 1)
            for name in ("boxes_xyxy_px", "logits", "shifts")
        )
        matches = [match(*pair, net.num_classes) for pair in zip(boxes, lesions, strict=True)]
        classes, lesion_boxes = (torch.stack(parts) for parts in zip(*matches, strict=True))
        found = classes < net.num_classes
        count = found.sum().clamp(min=1)
        wanted = F.one_hot(classes, net.num_classes + 1)[..., :-1].to(logits.dtype)
        cls = sigmoid_focal_loss(
            logits,
            wanted,
            alpha=net.focal_loss_alpha,
            gamma=net.focal_loss_gamma,
            reduction="sum",
        )
        wanted = shifts_to(boxes[found], lesion_boxes[found])
        loc = smooth_l1_loss(shifts[found], wanted, beta=SMOOTH_L1_BETA, reduction="sum")
        return {"loss_stft_cls": cls / count, "loss_stft_loc": loc / count}

    # ------------------------------------------------------------------ evaluation

    def encode(self, frames: list[Sample]) -> list[list[Level]]:
        """FCOS's levels of each frame."""
        levels = self.levels(frames)
        return [[level[b : b + 1] for level in levels] for b in range(len(frames))]

    def detect(self, sample: Sample, states: list[list[Level]]) -> Instances:
        """Detections of the current frame after non-maximum suppression.

        The score is the geometric mean of FCOS's, which alone is compared with the threshold, and
        of the refined class probability.
        """
        clip = current_first(states, sample["clip_index"])
        levels = [Level.cat(frames) for frames in zip(*clip, strict=True)]
        size = tuple(sample["image"].shape[-2:])
        parts = [
            self._best(level[:1], refined, size)
            for level, refined in zip(levels, self.refine(levels, len(clip)), strict=True)
        ]
        found = Instances.cat(parts)
        keep = batched_nms(
            found.pred_boxes.tensor, found.scores, found.pred_classes, self.net.test_nms_thresh
        )
        best: Any = keep[: self.net.max_detections_per_image]
        return in_original_pixels(found[best], sample)

    def _best(self, level: Level, refined: Refined, size: tuple[int, ...]) -> Instances:
        """Detections of one level, the best ones."""
        net = self.net
        (logits,) = permute_to_N_HWA_K(level.logits, net.num_classes)
        (centerness,) = permute_to_N_HWA_K(level.centerness, 1)
        fcos = (logits.sigmoid() * centerness.sigmoid()).sqrt()
        scores = (fcos * refined.logits[0].sigmoid()).sqrt()
        candidates = fcos > net.test_score_thresh
        locations, classes = candidates.nonzero(as_tuple=True)
        scores, best = scores[candidates].topk(min(len(locations), net.test_topk_candidates))
        locations, classes = locations[best], classes[best]
        boxes = shifted(refined.boxes_xyxy_px[0, locations], refined.shifts[0, locations])
        found = Instances((size[0], size[1]))
        found.pred_boxes, found.scores, found.pred_classes = Boxes(boxes), scores, classes
        return found

    # ------------------------------------------------------------------ both

    def levels(self, frames: list[Sample]) -> list[Level]:
        """FCOS's levels of frames together, each seen alone."""
        net = self.net
        maps = net.backbone(net.preprocess_image(frames).tensor)
        head = net.head
        levels = []
        for name in net.head_in_features:
            cls_tower, box_tower = head.cls_subnet(maps[name]), head.bbox_subnet(maps[name])
            predictions = head.cls_score(cls_tower), head.bbox_pred(box_tower)
            centerness = head.ctrness(box_tower)
            levels.append(
                Level(cls_tower, box_tower, *(p.float() for p in (*predictions, centerness)))
            )
        return levels

    def refine(self, levels: Sequence[Level], num_frames: int) -> list[Refined]:
        """Refinement of the current frames.

        Args:
            levels: of clips, clip-major, each with its current frame first.
            num_frames: T.
        """
        anchors = self.net.anchor_generator([level.cls_tower for level in levels])
        return [
            self._refine(level, at.tensor, num_frames)
            for level, at in zip(levels, anchors, strict=True)
        ]

    def _refine(self, level: Level, anchors: Float[Tensor, "N 4"], T: int) -> Refined:
        h, w = level.deltas.shape[-2:]
        clips = (-1, T)
        deltas = permute_to_N_HWA_K(level.deltas.detach(), 4)
        boxes = torch.stack(
            [self.net.box2box_transform.apply_deltas(frame, anchors) for frame in deltas]
        )
        relative = relative_to_locations(boxes, anchors, (h, w)).unflatten(0, clips)
        logits = self.cls_transformation(level.cls_tower.unflatten(0, clips), relative)
        shifts = self.box_transformation(level.box_tower.unflatten(0, clips), relative)
        return Refined(
            boxes[::T],
            permute_to_N_HWA_K(logits.float(), self.net.num_classes),
            permute_to_N_HWA_K(shifts.float(), 4),
        )


def current_first(clip: Sequence[Any], index: int) -> list[Any]:
    """The current frame of a clip, then its references."""
    return [clip[index], *clip[:index], *clip[index + 1 :]]


def relative_to_locations(
    boxes_xyxy_px: Float[Tensor, "B N 4"], anchors: Float[Tensor, "N 4"], size: tuple[int, int]
) -> Float[Tensor, "B 4 h w"]:
    """Edges of the box of each location minus the location, in cells of a level of size (h, w).

    Both are clipped to [0, w - 1] and [0, h - 1], as in the released code.
    """
    h, w = size
    stride = anchors[:, 2:] - anchors[:, :2]
    last = anchors.new_tensor([w - 1, h - 1, w - 1, h - 1])
    locations = ((anchors[:, :2] + anchors[:, 2:]) / (2 * stride)).repeat(1, 2)
    edges = boxes_xyxy_px / stride.repeat(1, 2)
    clipped = edges.clamp(min=0).minimum(last) - locations.minimum(last)
    return clipped.transpose(1, 2).unflatten(2, (h, w))


def match(
    boxes: Float[Tensor, "N 4"], lesions: Instances, num_classes: int
) -> tuple[Int[Tensor, " N"], Float[Tensor, "N 4"]]:
    """Class and box of the lesion that each box is refined to; ``num_classes`` for none."""
    if not len(lesions):
        classes = torch.full(boxes.shape[:1], num_classes, device=boxes.device)
        return classes, torch.zeros_like(boxes)
    overlap, lesion = box_iou(boxes, lesions.gt_boxes.tensor).max(1)
    classes = lesions.gt_classes[lesion].masked_fill(overlap < MIN_IOU, num_classes)
    return classes, lesions.gt_boxes.tensor[lesion]


def shifts_to(boxes: Float[Tensor, "N 4"], wanted: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Shifts of the edges of boxes to other boxes; the inverse of :func:`shifted`."""
    return (wanted - boxes) / _unit(boxes)


def shifted(boxes: Float[Tensor, "N 4"], shifts: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Boxes with shifted edges."""
    return boxes + shifts * _unit(boxes)


def _unit(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    return SHIFT_UNIT * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
