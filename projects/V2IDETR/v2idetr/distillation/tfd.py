"""Target-guided Feature Distillation (V2I-DETR, section II-C, equation 3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

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
from v2idetr.distillation.spatial_masks import Sigma, gaussian_mask
from v2idetr.modeling.interface import Features


class TargetGuidedFeatureDistillation(DistillationLoss):
    """L1 distance between the student's and the teacher's features, weighted by the lesions.

    ``L_bk = 1/N sum_ij M_ij sum_k |F_s - Y_t|``, mean over the images of the batch.

    Args:
        weight: lambda_bk of equation 6.
        stride: stride of the compared level in pixels; 32 for the last backbone stage.
        sigma: width of the Gaussians, see :func:`gaussian_mask`.
        sigma_ratio: sigma over box size for ``sigma="box"``.
        normalizer: N: "pixels" (cells of the image, without padding), "elements" (cells x channels)
            or "mask_sum".
        align: "none", or "conv1x1": a learnt projection of the student's features, for different
            widths or scales, dropped after training.
        student_dim, teacher_dim: widths of the features.
    """

    key = "tfd"
    reach = Reach.FEATURES
    compares_features = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        stride: int = 32,
        sigma: Sigma = "box",
        sigma_ratio: float = 1 / 6,
        normalizer: Normalizer = "pixels",
        align: Align = "none",
        student_dim: int = 256,
        teacher_dim: int = 256,
    ) -> None:
        super().__init__()
        one_of("tfd.sigma", sigma, Sigma)
        one_of("tfd.normalizer", normalizer, Normalizer)
        if sigma_ratio <= 0:
            raise ValueError(f"distillation.tfd.sigma_ratio must be above 0, got {sigma_ratio}.")
        self.weight, self.stride = weight, stride
        self.sigma: Sigma = sigma
        self.sigma_ratio = sigma_ratio
        self.normalizer: Normalizer = normalizer
        self.align = alignment("tfd", align, student_dim=student_dim, teacher_dim=teacher_dim)

    def forward(self, pairing: Pairing) -> Float[Tensor, ""]:
        """The weighted loss between the projected features."""
        return self.compare(
            pairing.student.memory.features, pairing.teacher.features, pairing.boxes_xyxy_px
        )

    def mask(self, boxes_xyxy_px: Float[Tensor, "_ 4"], h: int, w: int) -> Float[Tensor, "h w"]:
        """M of one image, see :func:`gaussian_mask`.

        Args:
            boxes_xyxy_px: lesions in pixels of the image.
            h, w: cells of the level, including padding.
        """
        return gaussian_mask(
            boxes_xyxy_px, self.stride, h, w, sigma=self.sigma, sigma_ratio=self.sigma_ratio
        )

    def compare(
        self,
        student: Features,
        teacher: Features,
        boxes_xyxy_px: list[Float[Tensor, "_ 4"]],
    ) -> Float[Tensor, ""]:
        """The weighted loss.

        Args:
            student, teacher: features of the same images.
            boxes_xyxy_px: lesions in pixels of these images.
        """
        ours, theirs = same_level("tfd.stride", self.stride, student, teacher)
        h, w = ours.shape[-2:]
        mask = torch.stack([self.mask(boxes, h, w) for boxes in boxes_xyxy_px])
        loss = weighted_mean(
            (self.align(ours) - theirs).abs().sum(1),  # channels are summed
            mask,
            normalizer=self.normalizer,
            padding=None if student.padding is None else student.padding[self.stride],
            channels=theirs.shape[1],
        )
        return self.weight * loss.mean()
