"""References of queries and tokens: centres or boxes in [0, 1] of the unpadded image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from v2idetr.modeling.interface import Features


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) with x and 1 - x clamped to at least ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def move(
    reference: Float[Tensor, "B N ref"], delta: Float[Tensor, "B N 4"]
) -> Float[Tensor, "B N 4"]:
    """A reference moved by a box head's output; a reference without size gets it from the head.

    In float32: in half precision the inverse sigmoid has few digits near 0 and 1.
    """
    start = inverse_sigmoid(reference.float())
    if start.shape[-1] == 2:
        start = torch.cat([start, torch.zeros_like(start)], -1)
    return (start + delta.float()).sigmoid()


def in_float32(module: nn.Module, x: Tensor) -> Tensor:
    """A module's output in float32, also under autocast, for positions.

    bfloat16 resolves positions only to 1/512 of the image.
    """
    with torch.autocast(x.device.type, enabled=False):
        return module(x.float())


def valid_ratios(features: Features) -> Float[Tensor, "B levels 2"]:
    """Share of each level's width and height covered by the image."""
    if features.valid_ratios is None:
        first = next(iter(features.maps.values()))
        return torch.ones(first.shape[0], len(features.maps), 2, device=first.device)
    return torch.stack(list(features.valid_ratios.values()), 1)


def token_centres(
    shapes: list[tuple[int, int]], ratios: Float[Tensor, "B levels 2"]
) -> Float[Tensor, "B S 2"]:
    """Centre (x, y) of every token's cell in [0, 1] of the unpadded image.

    Args:
        shapes: (h, w) of each level.
        ratios: see :func:`valid_ratios`.
    """
    device = ratios.device
    centres = []
    for level, (h, w) in enumerate(shapes):
        y = (torch.arange(h, device=device) + 0.5) / h
        x = (torch.arange(w, device=device) + 0.5) / w
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(1, -1, 2)
        centres.append(grid / ratios[:, level : level + 1])
    return torch.cat(centres, 1)
