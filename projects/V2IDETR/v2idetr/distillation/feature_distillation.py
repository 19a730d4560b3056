"""Feature and embedding distillation, rows 2 to 4, 6 and 7 of Table IV (V2I-DETR, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from v2idetr.distillation.distances import (
    Align,
    Normalizer,
    alignment,
    one_of,
    same_level,
    weighted_mean,
)
from v2idetr.distillation.knowledge import Reach
from v2idetr.distillation.loss import DistillationLoss, Pairing
from v2idetr.distillation.spatial_masks import attention_mask, box_mask
from v2idetr.modeling.interface import Features

Mask = Literal["none", "box", "attention"]
Distance = Literal["l1", "mse"]


class FeatureDistillation(DistillationLoss):
    """FD: distance between the student's and the teacher's backbone features.

    ``L = 1/N sum_ijk |M_ij F_s - M_ij F_t|``, or the squares of these differences, summed over the
    levels, mean over the images of the batch. The attention mask is DETRDistill's (Chang et al.,
    ICCV 2023): one per decoder layer of the teacher, with the losses summed over layers.

    Args:
        weight: weight of the loss.
        strides: strides of the compared levels in pixels.
        mask: weights of the cells: "none": 1 for all cells of the image; "box": 1 in the boxes of
            lesions; "attention": attention of the teacher's queries, see :func:`attention_mask`.
        distance: "l1" (equation 2) or "mse" (the paper's text, and DETRDistill).
        normalizer: N: "pixels" (cells of the image, without padding), "elements" (cells x channels)
            or "mask_sum" (M, or its squares with "mse"). Equation 2 reads as "pixels", with
            a loss of 290 for unrelated features of unit variance and d = 256, far above a
            detection loss.
        align: "none", or "conv1x1": a learnt projection of the student's features, for different
            widths or scales, dropped after training.
        student_dim, teacher_dim: widths of the features.
    """

    key = "fd"
    nearest = Reach.FEATURES  # of the teacher's maps
    compares_features = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        strides: Sequence[int] = (32,),
        mask: Mask = "none",
        distance: Distance = "l1",
        normalizer: Normalizer = "elements",
        align: Align = "none",
        student_dim: int = 256,
        teacher_dim: int = 256,
    ) -> None:
        super().__init__()
        one_of(f"{self.key}.mask", mask, Mask)
        one_of(f"{self.key}.distance", distance, Distance)
        one_of(f"{self.key}.normalizer", normalizer, Normalizer)
        if not strides:
            raise ValueError(f"distillation.{self.key}.strides must name a level, such as [32].")
        self.weight, self.strides = weight, tuple(strides)
        self.mask: Mask = mask
        self.distance: Distance = distance
        self.normalizer: Normalizer = normalizer
        self.align = nn.ModuleDict(
            {
                str(stride): alignment(
                    self.key, align, student_dim=student_dim, teacher_dim=teacher_dim
                )
                for stride in self.strides
            }
        )

    @property
    def reach(self) -> Reach:
        """Last required step of the teacher."""
        return Reach.DECODED if self.mask == "attention" else self.nearest

    def forward(self, pairing: Pairing) -> Float[Tensor, ""]:
        """The weighted loss between the maps."""
        attended = pairing.attended if self.mask == "attention" else None
        return self.compare(*self._maps(pairing), pairing.boxes_xyxy_px, attended)

    def _maps(self, pairing: Pairing) -> tuple[Features, Features]:
        """Maps of the student and of the teacher."""
        return pairing.student.memory.features, pairing.teacher.features

    def compare(
        self,
        student: Features,
        teacher: Features,
        boxes_xyxy_px: list[Float[Tensor, "_ 4"]],
        attended: Float[Tensor, "L B d"] | None = None,
    ) -> Float[Tensor, ""]:
        """The weighted loss.

        Args:
            student, teacher: maps of the same images.
            boxes_xyxy_px: lesions in pixels of these images.
            attended: sum of the teacher's queries, see :func:`attended_queries`, for the
                attention mask.
        """
        losses = []
        for stride in self.strides:
            ours, theirs = same_level(f"{self.key}.strides", stride, student, teacher)
            padding = None if student.padding is None else student.padding[stride]
            difference = self.align[str(stride)](ours) - theirs
            squared = self.distance == "mse"
            distance = (difference.square() if squared else difference.abs()).sum(1)
            for mask in self._masks(theirs, stride, padding, boxes_xyxy_px, attended):
                loss = weighted_mean(
                    distance,
                    mask.square() if squared else mask,
                    normalizer=self.normalizer,
                    padding=padding,
                    channels=theirs.shape[1],
                )
                losses.append(loss.mean())
        return self.weight * torch.stack(losses).sum()

    def _masks(
        self,
        teacher: Float[Tensor, "B d h w"],
        stride: int,
        padding: Bool[Tensor, "B h w"] | None,
        boxes_xyxy_px: list[Tensor],
        attended: Tensor | None,
    ) -> list[Float[Tensor, "B h w"]]:
        """Masks M, one per decoder layer for "attention"."""
        B, _, h, w = teacher.shape
        if self.mask == "box":
            return [torch.stack([box_mask(boxes, stride, h, w) for boxes in boxes_xyxy_px])]
        if self.mask == "attention":
            assert attended is not None
            return [attention_mask(layer, teacher, padding) for layer in attended]
        everywhere = teacher.new_ones(B, h, w)
        return [everywhere if padding is None else everywhere.masked_fill(padding, 0.0)]


class EmbeddingDistillation(FeatureDistillation):
    """ED: the same distance between the outputs of the encoders."""

    key = "ed"
    nearest = Reach.MEMORY
    compares_features = False

    def _maps(self, pairing: Pairing) -> tuple[Features, Features]:
        assert pairing.teacher.encoded is not None
        return pairing.student.memory.encoded(), pairing.teacher.encoded
