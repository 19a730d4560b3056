"""Spatial masks of feature distillation: weights of a map's cells, from lesions or queries."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from v2idetr.modeling.interface import Decoded

Sigma = Literal["box", "centernet", "ttfnet"]

# From DETRDistill's code (Chang et al., ICCV 2023).
MAX_QUERIES = 100
MIN_ATTENTION = 0.01

# ------------------------------------------------------------------ lesions


def gaussian_mask(
    boxes_xyxy_px: Float[Tensor, "M 4"],
    stride: int,
    h: int,
    w: int,
    *,
    sigma: Sigma = "box",
    sigma_ratio: float = 1 / 6,
) -> Float[Tensor, "h w"]:
    """Soft selection mask M: maximum of one Gaussian per box, with L2 norm 1.

    The maximum of every lesion, 1 before normalisation, is on the cell nearest its centre. A box
    without a cell centre selects the cell of its own centre. Without boxes M is zero.

    Args:
        boxes_xyxy_px: lesions in pixels of the image.
        stride: pixels per cell.
        h, w: cells of the level, including padding.
        sigma: "box": ``sigma_ratio`` times width and height; "centernet": a sixth of the diameter
            in CenterNet's code (Zhou et al., 2019), in both directions; "ttfnet": 0.54 / 3 of half
            the size, in each direction (Liu et al., 2020).
        sigma_ratio: sigma over box size for "box".
    """
    if not len(boxes_xyxy_px):
        return boxes_xyxy_px.new_zeros(h, w)
    centre, size = _in_cells(boxes_xyxy_px, stride)
    inside_y, inside_x = _inside(boxes_xyxy_px, stride, h, w)
    x = torch.arange(w, device=centre.device) + 0.5
    y = torch.arange(h, device=centre.device) + 0.5
    spread = _spread(size, sigma, sigma_ratio)
    along_x = torch.exp(-((x - centre[:, :1]) ** 2) / (2 * spread[:, :1] ** 2)) * inside_x
    along_y = torch.exp(-((y - centre[:, 1:]) ** 2) / (2 * spread[:, 1:] ** 2)) * inside_y
    splats = _with_centre_cells(along_y.unsqueeze(2) * along_x.unsqueeze(1), centre)
    # On coarse maps, the nearest cell centre can be far from a small lesion's centre.
    mask = (splats / splats.amax((1, 2), keepdim=True)).amax(0)
    return mask / mask.norm()


def box_mask(
    boxes_xyxy_px: Float[Tensor, "M 4"], stride: int, h: int, w: int
) -> Float[Tensor, "h w"]:
    """1 on cells with their centre in a box, 0 elsewhere.

    A box without a cell centre selects the cell of its own centre.

    Args:
        boxes_xyxy_px: lesions in pixels of the image.
        stride: pixels per cell.
        h, w: cells of the level, including padding.
    """
    if not len(boxes_xyxy_px):
        return boxes_xyxy_px.new_zeros(h, w)
    inside_y, inside_x = _inside(boxes_xyxy_px, stride, h, w)
    covered = (inside_y.unsqueeze(2) & inside_x.unsqueeze(1)).float()
    return _with_centre_cells(covered, _in_cells(boxes_xyxy_px, stride)[0]).amax(0)


# ------------------------------------------------------------------ queries


def attended_queries(
    decoded: Decoded,
    scores: Float[Tensor, "L B N K"],
    boxes_cxcywh: list[Float[Tensor, "_ 4"]],
) -> Float[Tensor, "L B d"]:
    """Score-weighted sum of L2-normalised query features, per decoder layer.

    The weight of a query is its class score times its best IoU with a lesion, or its score without
    lesions. The sum is over the 100 pairs of query and class with the highest scores.

    Args:
        decoded: decoded queries of every layer.
        scores: probability of each class.
        boxes_cxcywh: lesions of every image in [0, 1] of the unpadded image.
    """
    N, K = scores.shape[2:]
    overlap = torch.stack(
        [_best_overlap(decoded.boxes[:, image], own) for image, own in enumerate(boxes_cxcywh)], 1
    )
    best, pair = scores.flatten(2).topk(min(MAX_QUERIES, N * K), dim=-1)
    query = pair // K
    weight = best * overlap.gather(2, query)
    direction = F.normalize(decoded.hidden.float(), dim=-1)
    direction = direction.gather(2, query.unsqueeze(-1).expand(-1, -1, -1, direction.shape[-1]))
    return (weight.unsqueeze(-1) * direction).sum(2)


def attention_mask(
    attended: Float[Tensor, "B d"],
    features: Float[Tensor, "B d h w"],
    padding: Bool[Tensor, "B h w"] | None,
) -> Float[Tensor, "B h w"]:
    """Attention of a decoder layer to each cell, ``sum_n w_n cos(q_n, F)``, scaled to at most 1.

    The sum over unit vectors is computed first, because a cosine with them is linear. Clamped from
    below and divided by its maximum as in DETRDistill's code.

    Args:
        attended: sum of this layer's query features, see :func:`attended_queries`.
        features: map of the same network.
        padding: True on padding, where the mask is zero; None without padding.
    """
    mask = torch.einsum("bd,bdhw->bhw", attended, F.normalize(features.float(), dim=1))
    mask = mask.clamp(min=MIN_ATTENTION)
    if padding is not None:
        mask = mask.masked_fill(padding, 0.0)
    return mask / mask.flatten(1).amax(1).view(-1, 1, 1)


# ------------------------------------------------------------------ parts


def _in_cells(
    boxes_xyxy_px: Float[Tensor, "M 4"], stride: int
) -> tuple[Float[Tensor, "M 2"], Float[Tensor, "M 2"]]:
    """Centres and sizes in cells."""
    low, high = (boxes_xyxy_px.float() / stride).split(2, dim=1)
    return (low + high) / 2, high - low


def _inside(
    boxes_xyxy_px: Float[Tensor, "M 4"], stride: int, h: int, w: int
) -> tuple[Bool[Tensor, "M h"], Bool[Tensor, "M w"]]:
    """Rows and columns with cell centres in each box."""
    low, high = (boxes_xyxy_px.float() / stride).split(2, dim=1)
    x = torch.arange(w, device=low.device) + 0.5
    y = torch.arange(h, device=low.device) + 0.5
    return (y >= low[:, 1:]) & (y <= high[:, 1:]), (x >= low[:, :1]) & (x <= high[:, :1])


def _with_centre_cells(
    splats: Float[Tensor, "M h w"], centre: Float[Tensor, "M 2"]
) -> Float[Tensor, "M h w"]:
    """Masks with the cell of the centre for each box that selects no cell."""
    h, w = splats.shape[-2:]
    missed = splats.flatten(1).amax(1) == 0
    if missed.any():
        column = centre[missed, 0].long().clamp(0, w - 1)
        row = centre[missed, 1].long().clamp(0, h - 1)
        splats[missed.nonzero().flatten(), row, column] = 1.0
    return splats


def _best_overlap(
    boxes: Float[Tensor, "L N 4"], lesions: Float[Tensor, "M 4"]
) -> Float[Tensor, "L N"]:
    """Largest IoU of each box with a lesion; 1 without lesions."""
    if not len(lesions):
        return boxes.new_ones(boxes.shape[:2], dtype=torch.float32)
    iou = box_iou(
        box_convert(boxes.float().flatten(0, 1), "cxcywh", "xyxy"),
        box_convert(lesions.float(), "cxcywh", "xyxy"),
    )
    return iou.amax(1).view(boxes.shape[:2])


def _spread(size: Float[Tensor, "M 2"], sigma: Sigma, ratio: float) -> Float[Tensor, "M 2"]:
    """Standard deviations along x and y, in cells."""
    if sigma == "box":
        spread = size * ratio
    elif sigma == "ttfnet":
        spread = (2 * (0.54 / 2 * size).floor() + 1) / 6
    else:
        spread = ((2 * centernet_radius(size).floor() + 1) / 6).unsqueeze(1).expand(-1, 2)
    return spread.clamp(min=1e-3)


def centernet_radius(size: Float[Tensor, "M 2"], overlap: float = 0.7) -> Float[Tensor, " M"]:
    """Radius of CenterNet's code for an IoU of ``overlap``, in cells.

    Its formula divides by 2 where the root of the quadratic divides by 2a, so that the radius is
    0.27 of a square's side instead of 0.10. The formula is kept because other code of the paper's
    authors has it too; of its three radii this is always the smallest.
    """
    total, area = size.sum(1), size.prod(1)
    b = 2 * overlap * total
    return (-b + (b**2 + 16 * overlap * (1 - overlap) * area).sqrt()) / 2
