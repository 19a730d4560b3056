"""Deformable attention by ``embedding_bag``: the default on CPUs before numba, for comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from v2idetr.modeling.deformable_attention import Implementation, Shapes


def read_bags(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    how: Implementation | None = None,
) -> Tensor:
    """As ``deformable_attention.deformable_read``, in float32 and without gradients.

    Each query and head is one weighted bag of 4 corners x points x levels rows of the values.
    """
    del how
    B, S, heads, c = value.shape
    N = locations.shape[1]
    rows, across, down = _corners(shapes, locations, S)
    corners = (down * weights.unsqueeze(-1)).unsqueeze(-1) * across.unsqueeze(-2)
    out = F.embedding_bag(
        rows,
        value.reshape(B * S * heads, c),
        per_sample_weights=corners.view(B * N * heads, -1),
        mode="sum",
    )
    return out.view(B, N, heads * c)


def _corners(shapes: Shapes, locations: Tensor, S: int) -> tuple[Tensor, Tensor, Tensor]:
    """The four cells around every read.

    Returns:
        rows (B*N*heads, levels*points*4): rows in the values, in the order (top, bottom) x
        (left, right);
        bilinear weights of (left, right) and of (top, bottom), zero outside the level; (..., 2).
    """
    B, N, heads = locations.shape[:3]
    size = torch.tensor([(w, h) for h, w in shapes]).view(-1, 1, 2)
    start = F.pad(size.prod(-1).view(-1).cumsum(0)[:-1], (1, 0)).to(torch.int32)
    cells = locations * size - 0.5
    low = cells.floor()
    fraction = cells - low
    # Far reads would overflow an int32; two cells outside is as empty.
    low = torch.minimum(low.clamp(min=-2), (size + 1).to(low.dtype)).to(torch.int32)
    rows, shares = [], []
    for axis in (0, 1):
        limit = size[..., axis : axis + 1].to(torch.int32)
        cell = torch.stack([low[..., axis], low[..., axis] + 1], -1)
        inside = ((cell >= 0) & (cell < limit)).to(locations.dtype)
        share = fraction[..., axis]
        shares.append(torch.stack([1 - share, share], -1) * inside)
        rows.append(cell.clamp(min=0).minimum(limit - 1))
    first = torch.arange(B, dtype=torch.int32).view(-1, 1, 1, 1, 1, 1) * S
    head = torch.arange(heads, dtype=torch.int32).view(-1, 1, 1, 1)
    width = size[..., :1].to(torch.int32)
    line = (rows[1] * width + start.view(-1, 1, 1) + first) * heads + head
    table_rows = line.unsqueeze(-1) + (rows[0] * heads).unsqueeze(-2)
    return table_rows.view(B * N * heads, -1), *shares
