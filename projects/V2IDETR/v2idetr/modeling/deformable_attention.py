"""Multi-scale deformable attention: every query reads a few points of every feature level.

Five implementations of the read (Deformable DETR, equation 3):

- ``numba``: kernels for CPUs, without a compiler; the default there.
- ``triton``: kernels for NVIDIA GPUs, where torch brings Triton; the default there.
- ``compiled``: the package ``torch-ms-deform-attn``; the default on
  GPUs without Triton, if installed.
- ``grid_sample``: pure torch, the reference form; the default elsewhere.
- ``gather``: pure torch, by indices. Deterministic on a GPU, and for exports to devices with a
  wrong GridSample.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from v2idetr.modeling.numba_kernels import numba_works

logger = logging.getLogger(__name__)

Implementation = Literal["numba", "grid_sample", "gather", "compiled", "triton"]
Shapes = list[tuple[int, int]]
Read = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]

_chosen: Implementation | None = None  # see `reading_with`


def implementation(device_type: str = "cpu") -> Implementation:
    """The implementation for a type of device ("cpu", "cuda", ...)."""
    if _chosen is not None:
        return _chosen
    if device_type == "cpu":
        return "numba" if _numba_works() else "grid_sample"
    if device_type == "cuda" and _triton_works():
        return "triton"
    if torch.are_deterministic_algorithms_enabled():
        return "gather"
    return "compiled" if _compiled_works(device_type) else "grid_sample"


@contextmanager
def reading_with(how: Implementation) -> Iterator[None]:
    """Context in which every read uses one implementation, for exports and comparisons."""
    global _chosen
    before, _chosen = _chosen, how
    try:
        yield
    finally:
        _chosen = before


@cache
def _numba_works() -> bool:
    def check() -> bool:
        from v2idetr.modeling.deformable_numba import read_numba

        return _reads_ones(read_numba, "cpu")

    return numba_works(check, "deformable attention is slower than it could be")


@cache
def _triton_works() -> bool:
    """Whether Triton is installed and compiles its kernels for the current GPU."""
    try:
        from v2idetr.modeling.deformable_triton import read_triton

        return _reads_ones(read_triton, "cuda")
    except ImportError:
        return False
    except Exception as error:  # a compiler for GPUs can raise anything
        logger.warning("deformable attention is slower: Triton's kernels fail: %s", error)
        return False


@cache
def _compiled_works(device_type: str) -> bool:
    """Whether torch-ms-deform-attn is installed and has a kernel for this device."""
    try:
        import torch_ms_deform_attn  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    try:
        return _reads_ones(_read_compiled, device_type)
    except Exception as error:  # as above
        logger.warning("torch-ms-deform-attn is installed but fails on %s: %s", device_type, error)
        return False


def _reads_ones(read: Read, device_type: str) -> bool:
    """Whether a read of ones with a weight of two gives twos."""
    one = torch.ones(1, 1, 1, 8, device=device_type)
    points = torch.full((1, 1, 1, 1, 1, 2), 0.5, device=device_type)
    out = read(one, [(1, 1)], points, points[..., 0] * 4)
    return bool(torch.allclose(out, torch.full_like(out, 2)))


def deformable_read(
    value: Float[Tensor, "B S heads c"],
    shapes: Shapes,
    locations: Float[Tensor, "B N heads levels points 2"],
    weights: Float[Tensor, "B N heads levels points"],
    how: Implementation | None = None,
) -> Float[Tensor, "B N heads*c"]:
    """Weighted bilinear reads of the levels' values, zero outside a level.

    Args:
        value: values of all levels, one level after the other, row-major.
        shapes: (h, w) of each level.
        locations: (x, y) of each read in [0, 1] of its level; cell centres are at (i + 0.5) / w.
        weights: weight of each read.
        how: implementation; by default the best for the device.
    """
    how = how or implementation(value.device.type)
    # At least float32, because half precision loses the sub-cell position of a read.
    with torch.autocast(value.device.type, enabled=False):
        precise = torch.float64 if value.dtype == torch.float64 else torch.float32
        return _read_of(how)(value.to(precise), shapes, locations.to(precise), weights.to(precise))


def _read_of(how: Implementation) -> Read:
    if how == "numba":
        from v2idetr.modeling.deformable_numba import read_numba

        return read_numba
    if how == "triton":
        from v2idetr.modeling.deformable_triton import read_triton

        return read_triton
    return {"grid_sample": _read_grid_sample, "gather": _read_gather, "compiled": _read_compiled}[
        how
    ]


def _read_compiled(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    from torch_ms_deform_attn import ms_deform_attn  # pyright: ignore[reportMissingImports]

    spatial = torch.tensor(shapes, dtype=torch.long, device=value.device)
    starts = F.pad(spatial.prod(1).cumsum(0)[:-1], (1, 0))
    return ms_deform_attn(
        value.contiguous(), spatial, starts, locations.contiguous(), weights.contiguous()
    )


def _read_grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    # Level by level, queries last: no tensor of all reads is written and summed up, which takes
    # OpenVINO a third less time.
    B, _, heads, c = value.shape
    N = locations.shape[1]
    grid = (2 * locations - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)  # (B*heads, ..., N, 2)
    weights = weights.permute(0, 2, 3, 4, 1).flatten(0, 1).unsqueeze(2)
    out = value.new_zeros(())
    for level, level_value in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        table = level_value.flatten(2).transpose(1, 2).reshape(B * heads, c, *shapes[level])
        reads = F.grid_sample(table, grid[:, level], padding_mode="zeros", align_corners=False)
        out = out + (reads * weights[:, level]).sum(2)
    return out.view(B, heads * c, N).transpose(1, 2)


def _read_gather(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    B, _, heads, c = value.shape
    N = locations.shape[1]
    table = value.transpose(1, 2)  # (B, heads, S, c)
    out = value.new_zeros(B, heads, N, c)
    start = 0
    for level, (h, w) in enumerate(shapes):
        size = torch.tensor((w, h), dtype=value.dtype, device=value.device)
        points = locations[:, :, :, level].transpose(1, 2)  # (B, heads, N, points, 2)
        weight = weights[:, :, :, level].transpose(1, 2)
        cells = points * size - 0.5
        # Far reads would overflow an integer; two cells outside is as empty.
        not_finite = 0 * points.detach().sum(-1)
        cells = torch.minimum(cells.clamp(min=-2), size + 1)
        low = cells.detach().floor()
        fraction = cells - low
        for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
            column, line = low[..., 0].long() + right, low[..., 1].long() + below
            inside = (column >= 0) & (column < w) & (line >= 0) & (line < h)
            across = fraction[..., 0] if right else 1 - fraction[..., 0]
            down = fraction[..., 1] if below else 1 - fraction[..., 1]
            # Outside, the value is zero, but NaN and infinity must propagate.
            share = across * down * weight * inside + not_finite
            cell = start + line.clamp(0, h - 1) * w + column.clamp(0, w - 1)
            rows = table.gather(2, cell.flatten(2).unsqueeze(-1).expand(-1, -1, -1, c))
            out = out + (rows.view(*cell.shape, c) * share.unsqueeze(-1)).sum(3)
        start += h * w
    return out.transpose(1, 2).reshape(B, N, heads * c)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1).

    Args:
        d: width; divisible by ``num_heads``.
        num_heads: number of heads.
        num_levels: number of feature levels.
        num_points: number of reads per head and level.
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
        """Heads read in evenly spaced directions, point p at a distance of p + 1 cells."""
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
        """Values read by each query around its reference.

        Args:
            query: content plus position.
            reference: per level a centre (x, y), or a box (cx, cy, w, h), in [0, 1] of the padded
                level. Offsets count cells around a centre, and half sizes around a box.
            tokens: all levels, one after the other.
            shapes: (h, w) of each level.
            padding: True on padding, whose value is zero; None when there is none.
        """
        value = self.value_proj(tokens)
        if padding is not None:
            value = value.masked_fill(padding.unsqueeze(-1), 0.0)
        value = value.view(*value.shape[:2], self.num_heads, -1)
        locations, weights = self.reads(query, reference, shapes)
        read = deformable_read(value, shapes, locations, weights)
        return self.output_proj(read.to(query.dtype))

    def reads(
        self,
        query: Float[Tensor, "B N d"],
        reference: Float[Tensor, "B N levels ref"],
        shapes: Shapes,
    ) -> tuple[
        Float[Tensor, "B N heads levels points 2"], Float[Tensor, "B N heads levels points"]
    ]:
        """Locations in [0, 1] of the padded level, and weights, of each query's reads.

        The arguments are those of :meth:`forward`.
        """
        B, N, _ = query.shape
        grid = (B, N, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(B, N, self.num_heads, -1)
        weights = self.attention_weights(query).view(B, N, self.num_heads, -1).softmax(-1)
        centre = self._for_points(reference[..., :2])
        if reference.shape[-1] == 2:
            cells = torch.tensor([(w, h) for h, w in shapes], device=query.device)
            locations = centre + offsets / self._for_points(cells)
        else:
            half_size = self._for_points(reference[..., 2:] * 0.5)
            locations = centre + offsets / self.num_points * half_size
        return locations.view(*grid, 2), weights.view(grid)

    def _for_points(self, xy: Shaped[Tensor, "*batch levels 2"]) -> Tensor:
        """(x, y) of levels -> of all points of one head, (*batch, 1, levels * points * 2).

        Expanded, because rows of two numbers are too short for vector instructions.
        """
        return xy.unsqueeze(-2).expand(*xy.shape[:-1], self.num_points, 2).flatten(-3).unsqueeze(-2)
