"""Multi-scale deformable attention: every query reads a few points of every feature level.

Three implementations of one read (Deformable DETR, equation 3):

- ``bags``: pure torch. Each query and head is one weighted bag of 4 corners x points x levels rows
  of the value table, so the sum is one ``embedding_bag`` and nothing large is ever materialised.
  The fastest pure-torch way on a CPU.
- ``grid_sample``: pure torch, the textbook form. Used on other devices and for export.
- ``compiled``: the package ``torch-ms-deform-attn``, used wherever it is installed and works.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

Implementation = Literal["bags", "grid_sample", "compiled"]
Shapes = list[tuple[int, int]]


@cache
def implementation(device_type: str = "cpu") -> Implementation:
    """Which implementation runs on a kind of device ("cpu", "cuda", ...)."""
    if _compiled_works(device_type):
        return "compiled"
    return "bags" if device_type == "cpu" else "grid_sample"


def _compiled_works(device_type: str) -> bool:
    """Whether torch-ms-deform-attn is installed and has a kernel for this device."""
    try:
        from torch_ms_deform_attn import ms_deform_attn  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    try:
        one = torch.ones(1, 1, 1, 8, device=device_type)
        shapes = torch.ones(1, 2, dtype=torch.long, device=device_type)
        points = torch.full((1, 1, 1, 1, 1, 2), 0.5, device=device_type)
        read = ms_deform_attn(one, shapes, shapes[:, 0] * 0, points, points[..., 0] * 2)
        return bool(torch.allclose(read, torch.ones_like(read)))
    except Exception as error:  # a broken build must not stop a run that can do without it
        logger.warning("torch-ms-deform-attn is installed but fails on %s: %s", device_type, error)
        return False


def deformable_read(
    value: Float[Tensor, "B S heads c"],
    shapes: Shapes,
    locations: Float[Tensor, "B N heads levels points 2"],
    weights: Float[Tensor, "B N heads levels points"],
    how: Implementation | None = None,
) -> Float[Tensor, "B N heads*c"]:
    """Weighted bilinear reads of the levels' values; outside a level there are zeros.

    Args:
        value: values of all levels, one level after the other, row-major.
        shapes: (h, w) of each level.
        locations: where to read, (x, y) in [0, 1] of each level; a cell centre is at (i + 0.5) / w.
        weights: weight of each read.
        how: which implementation; by default the best for the device.
    """
    how = how or implementation(value.device.type)
    # Half precision loses the sub-cell position of a read: always computed in float32.
    with torch.autocast(value.device.type, enabled=False):
        value, locations, weights = value.float(), locations.float(), weights.float()
        if how == "compiled":
            return _read_compiled(value, shapes, locations, weights)
        if how == "grid_sample":
            return _read_grid_sample(value, shapes, locations, weights)
        return _BagRead.apply(value, shapes, locations, weights)


def _read_compiled(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    from torch_ms_deform_attn import ms_deform_attn  # pyright: ignore[reportMissingImports]

    spatial = torch.tensor(shapes, dtype=torch.long, device=value.device)
    starts = F.pad(spatial.prod(1).cumsum(0)[:-1], (1, 0))
    return ms_deform_attn(
        value.contiguous(), spatial, starts, locations.contiguous(), weights.contiguous()
    )


def _read_grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    B, _, heads, c = value.shape
    N = locations.shape[1]
    grid = 2 * locations - 1
    reads = []
    for level, level_value in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        table = level_value.flatten(2).transpose(1, 2).reshape(B * heads, c, *shapes[level])
        points = grid[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B*heads, N, points, 2)
        reads.append(F.grid_sample(table, points, padding_mode="zeros", align_corners=False))
    per_head = weights.transpose(1, 2).reshape(B * heads, 1, N, -1)
    out = (torch.cat(reads, dim=-1) * per_head).sum(-1)
    return out.view(B, heads * c, N).transpose(1, 2)


class _BagRead(torch.autograd.Function):
    """The read as one weighted ``embedding_bag``, with its first derivative by hand."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
    ) -> Tensor:
        B, S, heads, c = value.shape
        N = locations.shape[1]
        rows, across, down, across_inside, down_inside = _corners(shapes, locations, S)
        table = value.reshape(B * S * heads, c)
        corners = (down * weights.unsqueeze(-1)).unsqueeze(-1) * across.unsqueeze(-2)
        corners = corners.view(B * N * heads, -1)
        out = F.embedding_bag(rows, table, per_sample_weights=corners, mode="sum")
        ctx.shapes, ctx.sizes = shapes, (B, S, heads, c, N)
        ctx.save_for_backward(
            table, rows, corners, weights, across, down, across_inside, down_inside
        )
        return out.view(B, N, heads * c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        table, rows, corners, weights, across, down, across_inside, down_inside = ctx.saved_tensors
        B, S, heads, c, N = ctx.sizes
        grad_out = grad_out.reshape(B * N * heads, c).contiguous()
        grad_value = grad_locations = grad_weights = None

        if ctx.needs_input_grad[0]:
            # The transposed sum: every row of the table is a bag of the outputs that read it.
            flat = rows.reshape(-1)
            by_row = flat.argsort()
            starts = F.pad(flat.bincount(minlength=B * S * heads).cumsum(0)[:-1], (1, 0))
            grad_value = F.embedding_bag(
                by_row.to(rows.dtype) // rows.shape[1],
                grad_out,
                starts.to(rows.dtype),
                per_sample_weights=corners.view(-1)[by_row],
                mode="sum",
            ).view(B, S, heads, c)

        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            # d out / d corner weight is a dot product of a row with the output's gradient.
            with torch.enable_grad():
                probe = corners.detach().requires_grad_()
                read = F.embedding_bag(rows, table, per_sample_weights=probe, mode="sum")
            (grad_corners,) = torch.autograd.grad(read, probe, grad_out)
            top, bottom = grad_corners.view(*weights.shape, 2, 2).unbind(-2)
            mixed = top * down[..., :1] + bottom * down[..., 1:]  # left and right, rows mixed
            grad_weights = (mixed * across).sum(-1)
            mixed = mixed * across_inside
            sides = torch.stack([(top * across).sum(-1), (bottom * across).sum(-1)], -1)
            sides = sides * down_inside
            slope = torch.stack([mixed[..., 1] - mixed[..., 0], sides[..., 1] - sides[..., 0]], -1)
            scale = torch.tensor([(w, h) for h, w in ctx.shapes], device=weights.device)
            grad_locations = slope * weights.unsqueeze(-1) * scale.view(-1, 1, 2)

        return grad_value, None, grad_locations, grad_weights


def _corners(shapes: Shapes, locations: Tensor, S: int) -> tuple[Tensor, ...]:
    """The four cells around every read, in the order (top, bottom) x (left, right).

    Returns:
        rows (B*N*heads, levels*points*4): their rows in the table of (B, S, heads);
        bilinear weights of (left, right) and of (top, bottom), zero outside the level;
        1 where (left, right) and (top, bottom) lie inside the level, else 0; all (..., 2).
    """
    B, N, heads = locations.shape[:3]
    device = locations.device
    size = torch.tensor([(w, h) for h, w in shapes], device=device).view(-1, 1, 2)
    start = F.pad(size.prod(-1).view(-1).cumsum(0)[:-1], (1, 0)).to(torch.int32)
    cells = locations * size - 0.5
    low = cells.floor()
    fraction = cells - low
    # Far reads would overflow an int32; one cell outside is as empty as any other.
    low = torch.minimum(low.clamp(min=-2), (size + 1).to(low.dtype)).to(torch.int32)
    rows, weights, inside = [], [], []
    for axis in (0, 1):
        limit = size[..., axis : axis + 1].to(torch.int32)
        cell = torch.stack([low[..., axis], low[..., axis] + 1], -1)
        inside.append(((cell >= 0) & (cell < limit)).to(locations.dtype))
        share = fraction[..., axis]
        weights.append(torch.stack([1 - share, share], -1) * inside[-1])
        rows.append(cell.clamp(min=0).minimum(limit - 1))
    width = size[..., :1].to(torch.int32)
    first = torch.arange(B, dtype=torch.int32, device=device).view(-1, 1, 1, 1, 1, 1) * S
    head = torch.arange(heads, dtype=torch.int32, device=device).view(-1, 1, 1, 1)
    line = (rows[1] * width + start.view(-1, 1, 1) + first) * heads + head
    table_rows = line.unsqueeze(-1) + (rows[0] * heads).unsqueeze(-2)
    return table_rows.view(B * N * heads, -1), *weights, *inside


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1).

    Args:
        d: width; divisible by ``num_heads``.
        num_heads: heads.
        num_levels: feature levels.
        num_points: reads per head and level.
    """

    def __init__(self, *, d: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if d % num_heads:
            raise ValueError(f"d={d} must be divisible by num_heads={num_heads}.")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        reads = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(d, reads * 2)
        self.attention_weights = nn.Linear(d, reads)
        self.value_proj = nn.Linear(d, d)
        self.output_proj = nn.Linear(d, d)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look in eight compass directions, point p at a distance of p + 1 cells."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        radius = torch.arange(1, self.num_points + 1).view(1, 1, -1, 1)
        offsets = direction.view(-1, 1, 1, 2) * radius
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(
                offsets.expand(-1, self.num_levels, -1, -1).reshape(-1)
            )
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Float[Tensor, "B N d"],
        reference: Float[Tensor, "B N levels ref"],
        tokens: Float[Tensor, "B S d"],
        shapes: Shapes,
        padding: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B N d"]:
        """What each query reads around its reference.

        Args:
            query: content plus position.
            reference: per level a centre (x, y), or a box (cx, cy, w, h), in [0, 1] of the padded
                level. Offsets count cells around a centre, and half sizes around a box.
            tokens: all levels, one after the other.
            shapes: (h, w) of each level.
            padding: True on padding, whose value is zero; None when there is none.
        """
        B, N, _ = query.shape
        value = self.value_proj(tokens)
        if padding is not None:
            value = value.masked_fill(padding.unsqueeze(-1), 0.0)
        value = value.view(B, value.shape[1], self.num_heads, -1)
        grid = (B, N, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*grid, 2)
        weights = self.attention_weights(query).view(B, N, self.num_heads, -1).softmax(-1)
        centre = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 2:
            cells = torch.tensor([(w, h) for h, w in shapes], device=query.device)
            locations = centre + offsets / cells.view(-1, 1, 2)
        else:
            half_size = reference[:, :, None, :, None, 2:] * 0.5
            locations = centre + offsets / self.num_points * half_size
        read = deformable_read(value, shapes, locations, weights.view(grid))
        return self.output_proj(read.to(query.dtype))
