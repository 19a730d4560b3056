"""Where a student is compared with its teacher: cells of a map, chosen by lesions or by queries."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from v2idetr.modeling.interface import Decoded

Sigma = Literal["box", "centernet", "ttfnet"]

# Of DETRDistill's code (Chang et al., ICCV 2023).
MOST_QUERIES = 100
LEAST_ATTENTION = 0.01

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
    """The soft selection mask M: a Gaussian in every box, their maximum, L2 norm 1.

    Every lesion has its highest value, 1 before the norm, on the cell that is nearest its centre.
    A box that covers no cell centre selects the cell its centre lies in. Without boxes M is zero.

    Args:
        boxes_xyxy_px: lesions in pixels of the image.
        stride: pixels per cell.
        h, w: cells of the level, padding included.
        sigma: "box": ``sigma_ratio`` times width and height; "centernet": a sixth of the diameter
            of CenterNet's code (Zhou et al., 2019), in both directions; "ttfnet": 0.54 / 3 of
            half the size, in each direction (Liu et al., 2020).
        sigma_ratio: for "box".
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
    splats = _with_the_missed(along_y.unsqueeze(2) * along_x.unsqueeze(1), centre)
    # On coarse maps the nearest cell centre can be far out on a small lesion's Gaussian.
    mask = (splats / splats.amax((1, 2), keepdim=True)).amax(0)
    return mask / mask.norm()


def box_mask(
    boxes_xyxy_px: Float[Tensor, "M 4"], stride: int, h: int, w: int
) -> Float[Tensor, "h w"]:
    """1 on the cells whose centre lies in a box, 0 elsewhere.

    A box that covers no cell centre selects the cell its centre lies in.

    Args:
        boxes_xyxy_px: lesions in pixels of the image.
        stride: pixels per cell.
        h, w: cells of the level, padding included.
    """
    if not len(boxes_xyxy_px):
        return boxes_xyxy_px.new_zeros(h, w)
    inside_y, inside_x = _inside(boxes_xyxy_px, stride, h, w)
    covered = (inside_y.unsqueeze(2) & inside_x.unsqueeze(1)).float()
    return _with_the_missed(covered, _in_cells(boxes_xyxy_px, stride)[0]).amax(0)


# ------------------------------------------------------------------ queries


def attended_queries(
    decoded: Decoded,
    scores: Float[Tensor, "L B N K"],
    boxes_cxcywh: list[Float[Tensor, "_ 4"]],
) -> Float[Tensor, "L B d"]:
    """What a decoder looks for: directions of its queries, the better the heavier, summed.

    The weight of a query is its class score times its best IoU with a lesion; where there is no
    lesion, its score. The 100 pairs of query and class that score best take part.

    Args:
        decoded: the queries after every layer.
        scores: probability of each class.
        boxes_cxcywh: the lesions of every image, in [0, 1] of the unpadded image.
    """
    N, K = scores.shape[2:]
    overlap = torch.stack(
        [_best_overlap(decoded.boxes[:, image], own) for image, own in enumerate(boxes_cxcywh)], 1
    )
    best, pair = scores.flatten(2).topk(min(MOST_QUERIES, N * K), dim=-1)
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
    """How much a decoder layer attends to each cell: ``sum_n w_n cos(q_n, F)``, at most 1.

    The sum over queries has been taken already: a cosine with unit vectors is linear in them.
    Clamped from below and divided by its maximum as in DETRDistill's code.

    Args:
        attended: of this layer, see :func:`attended_queries`.
        features: the map of the same network.
        padding: True on padding, where the mask is zero; None when nothing is padded.
    """
    mask = torch.einsum("bd,bdhw->bhw", attended, F.normalize(features.float(), dim=1))
    mask = mask.clamp(min=LEAST_ATTENTION)
    if padding is not None:
        mask = mask.masked_fill(padding, 0.0)
    return mask / mask.flatten(1).amax(1).view(-1, 1, 1)


# ------------------------------------------------------------------ parts


def _in_cells(
    boxes_xyxy_px: Float[Tensor, "M 4"], stride: int
) -> tuple[Float[Tensor, "M 2"], Float[Tensor, "M 2"]]:
    """Centres and sizes."""
    low, high = (boxes_xyxy_px.float() / stride).split(2, dim=1)
    return (low + high) / 2, high - low


def _inside(
    boxes_xyxy_px: Float[Tensor, "M 4"], stride: int, h: int, w: int
) -> tuple[Bool[Tensor, "M h"], Bool[Tensor, "M w"]]:
    """Rows and columns of cells whose centre lies in each box."""
    low, high = (boxes_xyxy_px.float() / stride).split(2, dim=1)
    x = torch.arange(w, device=low.device) + 0.5
    y = torch.arange(h, device=low.device) + 0.5
    return (y >= low[:, 1:]) & (y <= high[:, 1:]), (x >= low[:, :1]) & (x <= high[:, :1])


def _with_the_missed(
    splats: Float[Tensor, "M h w"], centre: Float[Tensor, "M 2"]
) -> Float[Tensor, "M h w"]:
    """A box that selects nothing gets the cell its centre lies in."""
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
    """IoU of each box with the lesion it covers best; 1 where there is no lesion."""
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
