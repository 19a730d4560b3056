"""Target-guided Feature Distillation (V2I-DETR, section II-C, equation 3)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from v2idetr.modeling.interface import Features

Sigma = Literal["box", "centernet", "ttfnet"]
Normalizer = Literal["pixels", "elements", "mask_sum"]


class TargetGuidedFeatureDistillation(nn.Module):
    """L1 distance between the student's and the teacher's features, weighted by the lesions.

    ``L_bk = 1/N sum_ij M_ij sum_k |F_s - Y_t|``, mean over the images of the batch.

    Args:
        weight: lambda_bk of equation 6.
        stride: which level, in pixels; the last backbone stage is 32.
        sigma: width of the Gaussians, see :func:`gaussian_mask`.
        sigma_ratio: sigma over box size for ``sigma="box"``.
        normalizer: what N counts: "pixels" (cells of the level), "elements" (cells x channels) or
            "mask_sum".
        align: "none", or "conv1x1": a learnt projection of the student's features, needed where
            widths or scales differ and dropped after training.
        student_dim, teacher_dim: widths.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        stride: int = 32,
        sigma: Sigma = "box",
        sigma_ratio: float = 1 / 6,
        normalizer: Normalizer = "pixels",
        align: Literal["none", "conv1x1"] = "none",
        student_dim: int = 256,
        teacher_dim: int = 256,
    ) -> None:
        super().__init__()
        _one_of("sigma", sigma, ("box", "centernet", "ttfnet"))
        _one_of("normalizer", normalizer, ("pixels", "elements", "mask_sum"))
        _one_of("align", align, ("none", "conv1x1"))
        if align == "none" and student_dim != teacher_dim:
            raise ValueError(
                f"The student's features have width {student_dim} and the teacher's {teacher_dim}: "
                "set distillation.tfd.align=conv1x1, or give both models one d."
            )
        if sigma_ratio <= 0:
            raise ValueError(f"distillation.tfd.sigma_ratio must be above 0, got {sigma_ratio}.")
        self.weight, self.stride, self.normalizer = weight, stride, normalizer
        self.sigma: Sigma = sigma
        self.sigma_ratio = sigma_ratio
        self.align = nn.Identity() if align == "none" else nn.Conv2d(student_dim, teacher_dim, 1)

    def forward(
        self,
        student: Features,
        teacher: Features,
        boxes_xyxy_px: list[Float[Tensor, "_ 4"]],
    ) -> Float[Tensor, ""]:
        """The weighted loss.

        Args:
            student, teacher: features of the same pictures.
            boxes_xyxy_px: the lesions, in pixels of these pictures.
        """
        for name, features in (("student", student), ("teacher", teacher)):
            if self.stride not in features.maps:
                raise ValueError(
                    f"distillation.tfd.stride={self.stride}, but the {name} has levels of strides "
                    f"{sorted(features.maps)}."
                )
        ours, theirs = student.maps[self.stride].float(), teacher.maps[self.stride].float()
        if ours.shape[-2:] != theirs.shape[-2:]:
            raise ValueError(
                f"The student's stride-{self.stride} map is {tuple(ours.shape[-2:])} cells and the "
                f"teacher's {tuple(theirs.shape[-2:])}: both must see the same padded pictures "
                "(one size_divisor)."
            )
        h, w = ours.shape[-2:]
        mask = torch.stack(
            [
                gaussian_mask(
                    boxes, self.stride, h, w, sigma=self.sigma, sigma_ratio=self.sigma_ratio
                )
                for boxes in boxes_xyxy_px
            ]
        )
        distance = (self.align(ours) - theirs.detach()).abs().sum(1)  # channels are summed
        loss = (mask * distance).flatten(1).sum(1) / self._count(student, mask, theirs.shape[1])
        return self.weight * loss.mean()

    def _count(self, features: Features, mask: Tensor, channels: int) -> Float[Tensor, " B"]:
        if self.normalizer == "mask_sum":
            return mask.flatten(1).sum(1).clamp(min=1e-6)
        if features.padding is None:
            cells = mask.new_full((len(mask),), mask[0].numel())
        else:
            cells = (~features.padding[self.stride]).flatten(1).sum(1).to(mask.dtype)
        return cells * channels if self.normalizer == "elements" else cells


def gaussian_mask(
    boxes_xyxy_px: Float[Tensor, "M 4"],
    stride: int,
    h: int,
    w: int,
    *,
    sigma: Sigma = "box",
    sigma_ratio: float = 1 / 6,
) -> Float[Tensor, "h w"]:
    """The soft selection mask M: a Gaussian in every box, their maximum, L2 norm 1.

    A box that covers no cell centre selects the cell its centre lies in. Without boxes M is zero.

    Args:
        boxes_xyxy_px: lesions in pixels of the picture.
        stride: pixels per cell.
        h, w: cells of the level, padding included.
        sigma: "box": ``sigma_ratio`` times width and height; "centernet": a sixth of the diameter
            of CenterNet's code (Zhou et al., 2019), in both directions; "ttfnet": 0.54 / 3 of
            half the size, in each direction (Liu et al., 2020).
        sigma_ratio: for "box".
    """
    if not len(boxes_xyxy_px):
        return boxes_xyxy_px.new_zeros(h, w)
    low, high = (boxes_xyxy_px.float() / stride).split(2, dim=1)
    centre, size = (low + high) / 2, high - low
    device = centre.device
    x = torch.arange(w, device=device) + 0.5
    y = torch.arange(h, device=device) + 0.5
    inside_x = (x >= low[:, :1]) & (x <= high[:, :1])  # (M, w)
    inside_y = (y >= low[:, 1:]) & (y <= high[:, 1:])  # (M, h)
    spread = _spread(size, sigma, sigma_ratio)
    along_x = torch.exp(-((x - centre[:, :1]) ** 2) / (2 * spread[:, :1] ** 2)) * inside_x
    along_y = torch.exp(-((y - centre[:, 1:]) ** 2) / (2 * spread[:, 1:] ** 2)) * inside_y
    splats = along_y.unsqueeze(2) * along_x.unsqueeze(1)  # (M, h, w)

    missed = splats.flatten(1).amax(1) == 0
    if missed.any():
        column = centre[missed, 0].long().clamp(0, w - 1)
        row = centre[missed, 1].long().clamp(0, h - 1)
        splats[missed.nonzero().flatten(), row, column] = 1.0
    mask = splats.amax(0)
    mask = mask / mask.amax()  # the squares of tiny values would vanish
    return mask / mask.norm()


def _spread(size: Float[Tensor, "M 2"], sigma: Sigma, ratio: float) -> Float[Tensor, "M 2"]:
    """Standard deviations along x and y, in cells."""
    if sigma == "box":
        spread = size * ratio
    elif sigma == "ttfnet":
        spread = (2 * (0.54 / 2 * size).floor() + 1) / 6
    else:
        spread = ((2 * _centernet_radius(size).floor() + 1) / 6).unsqueeze(1).expand(-1, 2)
    return spread.clamp(min=1e-3)


def _centernet_radius(size: Float[Tensor, "M 2"], overlap: float = 0.7) -> Float[Tensor, " M"]:
    """The radius that CenterNet's code gives for an IoU of ``overlap``, in cells.

    Its formula divides by 2 where the root of the quadratic divides by 2a, so that the radius is
    0.27 of a square's side where 0.10 keeps that IoU. Kept, because the code of the paper's authors
    for other detectors has it too; of the three radii of that formula this is always the smallest.
    """
    total, area = size.sum(1), size.prod(1)
    b = 2 * overlap * total
    return (-b + (b**2 + 16 * overlap * (1 - overlap) * area).sqrt()) / 2


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"distillation.tfd.{key} must be one of {choices}, got {value!r}.")
