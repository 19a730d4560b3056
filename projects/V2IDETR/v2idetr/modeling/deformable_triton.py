"""The read of multi-scale deformable attention as Triton kernels, forward and backward.

    out(row) = sum over levels and points of  weight * bilinear(value of the level, location)

A row is one query and head of one image. A program computes a block of rows: it holds the block's
channels and loops over levels and points, so that nothing larger than the output is written. Cells,
borders and padding are those of ``grid_sample`` (zeros, align_corners=False).

Triton is part of PyTorch's CUDA builds; import this module lazily. RESULTS.md has its speed on an
H200; the size of blocks has not been tuned.

Legend: B images, S cells of all levels, N queries, c channels of a head.
"""

# ruff: noqa: ANN001, ANN202 (arguments of kernels have Triton's types)

from __future__ import annotations

from functools import lru_cache
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Shapes = list[tuple[int, int]]

BLOCK_ELEMENTS = 1024  # rows x channels of a program: 8 per thread with Triton's 4 warps
VARYING = ("blocks", "rows", "S")  # with the image size; one compilation for all
# Summation of the gradient of the values.
NO_VALUE_GRAD, ATOMIC, LISTED = 0, 1, 2


def read_triton(
    value: Float[Tensor, "B S heads c"],
    shapes: Shapes,
    locations: Float[Tensor, "B N heads levels points 2"],
    weights: Float[Tensor, "B N heads levels points"],
) -> Float[Tensor, "B N heads*c"]:
    """Weighted bilinear reads of the levels' values, as ``deformable_read``; once differentiable.

    The gradient of the values is a sum over the reads of a cell. By default it is computed with
    atomic additions, whose order varies. Under ``torch.use_deterministic_algorithms(True)`` the
    reads are sorted by cell and summed in their order: deterministic, but slower, with about 32
    bytes more for each of the four cells of every read. Outputs and the other gradients are always
    deterministic.

    Args:
        value: values of all levels, one level after the other, row-major; float32 or float64.
        shapes: (h, w) of each level.
        locations: (x, y) in [0, 1] of each level; zero outside. A location that is not finite
            gives NaN.
        weights: weight of each read.
    """
    assert value.dtype in (torch.float32, torch.float64), value.dtype
    assert value.dtype == locations.dtype == weights.dtype
    assert sum(h * w for h, w in shapes) == value.shape[1], (shapes, value.shape)
    return _TritonRead.apply(value, tuple(shapes), locations, weights)


class _TritonRead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        shapes: tuple[tuple[int, int], ...],
        locations: Tensor,
        weights: Tensor,
    ) -> Tensor:
        value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
        B, _, heads, c = value.shape
        N = locations.shape[1]
        out = value.new_empty(B, N, heads * c)
        grid, sizes = _launch(value, locations, shapes)
        with torch.cuda.device_of(value):
            _forward_kernel[grid](value, locations, weights, out, **sizes)
        ctx.shapes = shapes
        ctx.save_for_backward(value, locations, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        grid, sizes = _launch(value, locations, ctx.shapes)
        grad_out = grad_out.contiguous()
        how = NO_VALUE_GRAD
        grad_value = cells = shares = value  # placeholders where the kernel does not write
        if ctx.needs_input_grad[0] and torch.are_deterministic_algorithms_enabled():
            how = LISTED
            entries = (*weights.shape, 4)
            small = value.numel() // max(value.shape[3], 1) < 2**31
            index_type = torch.int32 if small else torch.int64
            cells = torch.empty(entries, dtype=index_type, device=value.device)
            shares = weights.new_empty(entries)
        elif ctx.needs_input_grad[0]:
            how, grad_value = ATOMIC, torch.zeros_like(value)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        with torch.cuda.device_of(value):
            _backward_kernel[grid](
                value,
                locations,
                weights,
                grad_out,
                grad_locations,
                grad_weights,
                grad_value,
                cells,
                shares,
                **sizes,
                VALUE_GRAD=how,
            )
        if how == LISTED:
            grad_value = _sum_in_order(cells, shares, grad_out, value.shape)
        return grad_value if how else None, None, grad_locations, grad_weights


def _sum_in_order(
    cells: Tensor, shares: Tensor, grad_out: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Sum over the reads of each cell, always in the order of the reads.

    Args:
        cells: row in the table (B*S*heads, c) of each cell of a read.
        shares: the cell's share of the gradient of the read's row.
        grad_out: gradient of the output, (B, N, heads*c).
        shape: shape of the result, (B, S, heads, c).
    """
    B, S, heads, c = shape
    per_row = cells[0, 0, 0].numel() if cells.numel() else 1
    by_cell, order = cells.flatten().sort(stable=True)
    table_rows = torch.arange(B * S * heads, dtype=cells.dtype, device=cells.device)
    # Every row of the table is a weighted bag of rows of the output's gradient.
    return F.embedding_bag(
        order // per_row,
        grad_out.view(-1, c),
        torch.searchsorted(by_cell, table_rows),
        per_sample_weights=shares.flatten()[order],
        mode="sum",
    ).view(shape)


def _launch(
    value: Tensor, locations: Tensor, shapes: tuple[tuple[int, int], ...]
) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and sizes of both kernels."""
    B, S, heads, c = value.shape
    _, N, _, levels, points, _ = locations.shape
    block_c = triton.next_power_of_2(c)
    block_rows = max(1, BLOCK_ELEMENTS // block_c)
    blocks = triton.cdiv(N * heads, block_rows)
    sizes = {
        "levels_ptr": _level_table(shapes, value.device),
        "blocks": blocks,
        "rows": N * heads,
        "S": S,
        "HEADS": heads,
        "C": c,
        "LEVELS": levels,
        "POINTS": points,
        "BLOCK_ROWS": block_rows,
        "BLOCK_C": block_c,
    }
    return (B * blocks,), sizes


@lru_cache(maxsize=64)
def _level_table(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """(h, w, first cell) of each level; cached, because a copy to a GPU synchronises."""
    rows, start = [], 0
    for h, w in shapes:
        rows.append((h, w, start))
        start += h * w
    return torch.tensor(rows, dtype=torch.int32, device=device)


@no_type_check  # the tests' type checker would wrap what Triton compiles
@triton.jit(do_not_specialize=VARYING)
def _forward_kernel(
    value_ptr,
    locations_ptr,
    weights_ptr,
    out_ptr,
    levels_ptr,
    blocks,
    rows,
    S,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    image = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_C)
    in_row, in_channel = row < rows, channel < C
    head = row % HEADS
    row = image * rows + row  # int64: offsets may pass 2^31
    sum_ = tl.zeros((BLOCK_ROWS, BLOCK_C), dtype=value_ptr.dtype.element_ty)
    for read in range(LEVELS * POINTS):
        level = levels_ptr + (read // POINTS) * 3
        h, w, start = tl.load(level), tl.load(level + 1), tl.load(level + 2)
        entry = row * (LEVELS * POINTS) + read
        x = tl.load(locations_ptr + entry * 2, mask=in_row, other=0.0)
        y = tl.load(locations_ptr + entry * 2 + 1, mask=in_row, other=0.0)
        weight = tl.load(weights_ptr + entry, mask=in_row, other=0.0)
        left, x_share, has_left, has_right = _cells(x, w)
        top, y_share, has_top, has_bottom = _cells(y, h)
        first = (image * S + start) * HEADS + head
        for corner in tl.static_range(4):
            down, right = corner // 2, corner % 2
            inside = in_row & (has_bottom if down else has_top) & (has_right if right else has_left)
            share = (x_share if right else 1 - x_share) * (y_share if down else 1 - y_share)
            cell = first + ((top + down) * w + left + right).to(tl.int64) * HEADS
            sum_ += (weight * share)[:, None] * tl.load(
                value_ptr + cell[:, None] * C + channel[None, :],
                mask=inside[:, None] & in_channel[None, :],
                other=0.0,
            )
    tl.store(
        out_ptr + row[:, None] * C + channel[None, :],
        sum_,
        mask=in_row[:, None] & in_channel[None, :],
    )


@no_type_check
@triton.jit(do_not_specialize=VARYING)
def _backward_kernel(
    value_ptr,
    locations_ptr,
    weights_ptr,
    grad_out_ptr,
    grad_locations_ptr,
    grad_weights_ptr,
    grad_value_ptr,
    cells_ptr,
    shares_ptr,
    levels_ptr,
    blocks,
    rows,
    S,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VALUE_GRAD: tl.constexpr,
) -> None:
    image = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_C)
    in_row, in_channel = row < rows, channel < C
    head = row % HEADS
    row = image * rows + row  # int64: offsets may pass 2^31
    gradient = tl.load(
        grad_out_ptr + row[:, None] * C + channel[None, :],
        mask=in_row[:, None] & in_channel[None, :],
        other=0.0,
    )
    for read in range(LEVELS * POINTS):
        level = levels_ptr + (read // POINTS) * 3
        h, w, start = tl.load(level), tl.load(level + 1), tl.load(level + 2)
        entry = row * (LEVELS * POINTS) + read
        x = tl.load(locations_ptr + entry * 2, mask=in_row, other=0.0)
        y = tl.load(locations_ptr + entry * 2 + 1, mask=in_row, other=0.0)
        weight = tl.load(weights_ptr + entry, mask=in_row, other=0.0)
        left, x_share, has_left, has_right = _cells(x, w)
        top, y_share, has_top, has_bottom = _cells(y, h)
        first = (image * S + start) * HEADS + head
        grad_weight = tl.zeros((BLOCK_ROWS,), dtype=value_ptr.dtype.element_ty)
        grad_x, grad_y = grad_weight, grad_weight
        for corner in tl.static_range(4):
            down, right = corner // 2, corner % 2
            inside = in_row & (has_bottom if down else has_top) & (has_right if right else has_left)
            across = x_share if right else 1 - x_share
            along = y_share if down else 1 - y_share
            cell = first + ((top + down) * w + left + right).to(tl.int64) * HEADS
            offset = cell[:, None] * C + channel[None, :]
            mask = inside[:, None] & in_channel[None, :]
            found = tl.load(value_ptr + offset, mask=mask, other=0.0)
            agreement = tl.sum(gradient * found, axis=1)
            grad_weight += agreement * across * along
            grad_x += agreement * along * (1 if right else -1)
            grad_y += agreement * across * (1 if down else -1)
            if VALUE_GRAD == 1:
                addend = (weight * across * along)[:, None] * gradient
                tl.atomic_add(grad_value_ptr + offset, addend, mask=mask, sem="relaxed")
            elif VALUE_GRAD == 2:
                # A cell outside is replaced by the level's first cell with share zero.
                share = tl.where(inside, weight * across * along, 0.0)
                listed = tl.where(inside, cell, first).to(cells_ptr.dtype.element_ty)
                tl.store(cells_ptr + entry * 4 + corner, listed, mask=in_row)
                tl.store(shares_ptr + entry * 4 + corner, share, mask=in_row)
        tl.store(grad_weights_ptr + entry, grad_weight, mask=in_row)
        tl.store(grad_locations_ptr + entry * 2, grad_x * weight * w, mask=in_row)
        tl.store(grad_locations_ptr + entry * 2 + 1, grad_y * weight * h, mask=in_row)


@no_type_check
@triton.jit
def _cells(location, size):
    """The two cells beside a location on one axis.

    Returns:
        the lower cell, the share of the upper one, and whether each is inside. The index is exact
        if one of them is inside, and arbitrary otherwise, so that it fits an int32.
    """
    # The operations of grid_sample, so that floor gives the same cells.
    edge = tl.cast(size, location.dtype)
    cell = tl.fma((2.0 * location - 1.0) + 1.0, edge, -1.0) * 0.5
    low = tl.floor(cell)
    has_low = (low >= 0.0) & (low < edge)
    has_high = (low >= -1.0) & (low < edge - 1.0)
    index = tl.where(has_low | has_high, low, 0.0).to(tl.int32)
    return index, cell - low, has_low, has_high
