"""Sine position embeddings (DETR, appendix; Deformable DETR's half-cell offset)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from v2idetr.modeling.interface import Features

TEMPERATURE = 10000.0


def sine_embedding(
    positions: Float[Tensor, "*batch axes"], width: int
) -> Float[Tensor, "*batch axes*{width}"]:
    """``width`` sines and cosines of each coordinate in [0, 1], coordinates concatenated."""
    index = torch.arange(width, dtype=torch.float32, device=positions.device)
    frequency = TEMPERATURE ** (2 * (index // 2) / width)
    angle = positions.float().unsqueeze(-1) * (2 * math.pi) / frequency
    waves = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1)
    return waves.flatten(-3)


def sine_map(
    padding: Bool[Tensor, "B h w"] | None,
    *,
    size: tuple[int, int, int],
    d: int,
    offset: float,
    device: torch.device,
    image_cells: Float[Tensor, "B 2"] | None = None,
) -> Float[Tensor, "B d h w"]:
    """Position embedding of every cell of one level, counted over the image without padding.

    Args:
        padding: True on padding; None without padding.
        size: (B, h, w).
        d: width; the first half of the channels is for y, the second for x.
        offset: addend of the cell numbers 1, 2, ...: 0 as in DETR, -0.5 as in Deformable DETR.
        device: device of the result.
        image_cells: (width, height) of the image in cells; by default whole cells, counted.
    """
    B, h, w = size
    keep = torch.ones(B, h, w, device=device) if padding is None else (~padding).float()
    y, x = keep.cumsum(1), keep.cumsum(2)
    width, height = (
        (x[:, :, -1:], y[:, -1:, :])
        if image_cells is None
        else image_cells.view(B, 2, 1, 1).unbind(1)
    )
    y, x = (y + offset) / (height + 1e-6), (x + offset) / (width + 1e-6)
    return sine_embedding(torch.stack([y, x], -1), d // 2).permute(0, 3, 1, 2)


def position_maps(
    features: Features, *, offset: float, exact: bool = False
) -> dict[int, Float[Tensor, "B d h w"]]:
    """Position embedding of every level, by stride.

    Args:
        features: feature levels.
        offset: see :func:`sine_map`.
        exact: image sizes by valid ratios instead of whole cells; with an offset of -0.5, cell
            centres then have the positions of references.
    """
    masks = features.padding or dict.fromkeys(features.maps)
    ratios = features.valid_ratios if exact else None
    maps, image_cells = {}, None
    for stride, m in features.maps.items():
        B, d, h, w = m.shape
        if ratios is not None:
            image_cells = ratios[stride] * torch.tensor([w, h], device=m.device)
        maps[stride] = sine_map(
            masks[stride],
            size=(B, h, w),
            d=d,
            offset=offset,
            device=m.device,
            image_cells=image_cells,
        )
    return maps
