"""The read of multi-scale deformable attention on CPUs, as numba kernels, forward and backward.

    out(row) = sum over levels and points of  weight * bilinear(value of the level, location)

A row is one query and head of one image. Its corners (four cells per read) are listed first; then
one loop sums their channels. Nothing larger than the output is written. Cells, borders and
padding are those of ``grid_sample`` (zeros, align_corners=False).

No sum is split over threads, so outputs and gradients are bitwise equal for any number of threads.
Import this module lazily: numba takes a second.

Legend: B images, S cells of all levels, N queries, c channels of a head.
"""

# ruff: noqa: ANN001, ANN202 (arguments of kernels have numba's types)

from __future__ import annotations

from functools import cache
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from v2idetr.modeling.numba_kernels import Kernel, compiled, share_out

Shapes = list[tuple[int, int]]

# Cells equal those of grid_sample bitwise, so only multiplications and additions may be fused; sums
# may also be reordered, for vectorization.
CELLS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
SUMS = {**CELLS, "fastmath": {"contract", "reassoc", "nsz"}}


def read_numba(
    value: Float[Tensor, "B S heads c"],
    shapes: Shapes,
    locations: Float[Tensor, "B N heads levels points 2"],
    weights: Float[Tensor, "B N heads levels points"],
) -> Float[Tensor, "B N heads*c"]:
    """Weighted bilinear reads of the levels' values, as ``deformable_read``; once differentiable.

    Args:
        value: values of all levels, one level after the other, row-major; float32 or float64.
        shapes: (h, w) of each level.
        locations: (x, y) in [0, 1] of each level; zero outside. A location that is not finite
            gives NaN.
        weights: weight of each read.
    """
    assert value.dtype == locations.dtype == weights.dtype
    assert sum(h * w for h, w in shapes) == value.shape[1], (shapes, value.shape)
    return _NumbaRead.apply(value, shapes, locations, weights)


class _NumbaRead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
    ) -> Tensor:
        # Head by head, so that the reads of a row are in fewer memory pages.
        value = value.transpose(1, 2).contiguous()
        locations, weights = locations.contiguous(), weights.contiguous()
        B, heads, _, c = value.shape
        N = locations.shape[1]
        out = value.new_empty(B, N, heads, c)
        levels = np.array(shapes, dtype=np.int64)
        arrays = [x.detach().numpy() for x in (value, locations, weights, out)]
        forward, _ = _kernels(value.dtype)
        share_out(forward, B * heads * N, weights.numel() * c, levels, *arrays)
        ctx.levels = levels
        ctx.save_for_backward(value, locations, weights)
        return out.view(B, N, heads * c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        grad_value = torch.zeros_like(value)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        tensors = (value, locations, weights, grad_out.contiguous().view(*weights.shape[:3], -1))
        gradients = (grad_value, grad_locations, grad_weights)
        arrays = [x.detach().numpy() for x in (*tensors, *gradients)]
        _, backward = _kernels(value.dtype)
        B, heads, _, c = value.shape
        # By image and head: one thread sums the gradients of their values.
        share_out(backward, B * heads, weights.numel() * c, ctx.levels, *arrays)
        return grad_value.transpose(1, 2), None, grad_locations, grad_weights


# ------------------------------------------------------------------------- kernels

# Rows of `shares` in `_list_reads`: share of each column and row (zero outside the level), then 1
# for each inside.
LEFT, RIGHT, TOP, BOTTOM, LEFT_INSIDE, RIGHT_INSIDE, TOP_INSIDE, BOTTOM_INSIDE = range(8)


@njit(**CELLS)
@no_type_check  # the tests' type checker would wrap what numba compiles
def _list_levels(levels, num_points, reads):
    """Width, height and first cell of the level of each read of a row."""
    starts = np.empty(reads, np.int64)
    sizes = np.empty((2, reads), np.int64)
    start = 0
    for level in range(levels.shape[0]):
        for read in range(level * num_points, (level + 1) * num_points):
            sizes[0, read], sizes[1, read], starts[read] = levels[level, 1], levels[level, 0], start
        start += levels[level, 0] * levels[level, 1]
    return sizes, starts


@njit(**CELLS)
@no_type_check
def _list_reads(first, locations, sizes, starts, cells, shares):
    """Cells and shares of all reads of a row.

    Without branches, half of which would be mispredicted: a cell outside is replaced by one inside
    with share zero.

    Args:
        first: index of the row's first read.
        locations: locations of all reads, flat.
        sizes, starts: sizes and first cells of the reads' levels, see `_list_levels`.
        cells: (4, reads), output: top left, top right, bottom left, bottom right, of a head's S.
        shares: (8, reads), output: see above.
    """
    number = locations.dtype.type
    zero, half, one, two = number(0), number(0.5), number(1), number(2)
    for read in range(starts.shape[0]):
        w, h, start = sizes[0, read], sizes[1, read], starts[read]
        width, height = number(w), number(h)
        # As grid_sample computes them from 2 * location - 1, roundings included.
        x, y = locations[2 * (first + read)], locations[2 * (first + read) + 1]
        not_finite = zero * (x + y)  # NaN, else 0
        x = ((x * two - one) + one) * (width * half) - half
        y = ((y * two - one) + one) * (height * half) - half
        # Beyond these limits all cells are outside; NaN fails each comparison and becomes -2.
        x, y = min(x, width) if x > -two else -two, min(y, height) if y > -two else -two
        column, row = np.floor(x), np.floor(y)
        inside_left = one if zero <= column < width else zero
        inside_right = one if -one <= column < width - one else zero
        inside_top = one if zero <= row < height else zero
        inside_bottom = one if -one <= row < height - one else zero
        shares[LEFT, read] = (column + one - x) * inside_left
        shares[RIGHT, read] = (x - column) * inside_right
        shares[TOP, read] = (row + one - y) * inside_top + not_finite
        shares[BOTTOM, read] = (y - row) * inside_bottom + not_finite
        shares[LEFT_INSIDE, read], shares[RIGHT_INSIDE, read] = inside_left, inside_right
        shares[TOP_INSIDE, read], shares[BOTTOM_INSIDE, read] = inside_top, inside_bottom
        left, top = int(column), int(row)
        right, left = min(max(left + 1, 0), w - 1), min(max(left, 0), w - 1)
        bottom, top = min(max(top + 1, 0), h - 1), min(max(top, 0), h - 1)
        bottom, top = start + bottom * w, start + top * w
        cells[0, read], cells[1, read] = top + left, top + right
        cells[2, read], cells[3, read] = bottom + left, bottom + right


@no_type_check
def _forward(first, last, levels, value, locations, weights, out):
    """Rows first..last, in the order (image, head, query): neighbours read the same cells."""
    _, heads, S, c = value.shape
    N, reads = locations.shape[1], locations.shape[3] * locations.shape[4]
    sizes, starts = _list_levels(levels, locations.shape[4], reads)
    cells, shares = np.empty((4, reads), np.int64), np.empty((8, reads), value.dtype)
    total = np.empty(c, value.dtype)
    flat_locations, flat_weights = locations.reshape(-1), weights.reshape(-1)
    table, flat_out = value.reshape(-1), out.reshape(-1)
    for row in range(first, last):
        place = (row // (heads * N) * N + row % N) * heads + row // N % heads  # image, query, head
        _list_reads(place * reads, flat_locations, sizes, starts, cells, shares)
        base = row // N * S
        total[:] = 0
        for read in range(reads):
            weight = flat_weights[place * reads + read]
            top, bottom = shares[TOP, read] * weight, shares[BOTTOM, read] * weight
            share_0, share_1 = top * shares[LEFT, read], top * shares[RIGHT, read]
            share_2, share_3 = bottom * shares[LEFT, read], bottom * shares[RIGHT, read]
            # Unsigned: numba would check each index for counting from the end.
            cell_0 = np.uint64((base + cells[0, read]) * c)
            cell_1 = np.uint64((base + cells[1, read]) * c)
            cell_2 = np.uint64((base + cells[2, read]) * c)
            cell_3 = np.uint64((base + cells[3, read]) * c)
            for k in range(np.uint64(c)):
                total[k] += (
                    share_0 * table[cell_0 + k]
                    + share_1 * table[cell_1 + k]
                    + share_2 * table[cell_2 + k]
                    + share_3 * table[cell_3 + k]
                )
        for k in range(c):
            flat_out[place * c + k] = total[k]


@no_type_check
def _backward(
    first,
    last,
    levels,
    value,
    locations,
    weights,
    grad_out,
    grad_value,
    grad_locations,
    grad_weights,
):
    """Images' heads first..last; adds to ``grad_value``, writes the other gradients."""
    _, heads, S, c = value.shape
    N, reads = locations.shape[1], locations.shape[3] * locations.shape[4]
    sizes, starts = _list_levels(levels, locations.shape[4], reads)
    cells, shares = np.empty((4, reads), np.int64), np.empty((8, reads), value.dtype)
    gradient = np.empty(c, value.dtype)
    flat_locations, flat_weights = locations.reshape(-1), weights.reshape(-1)
    table, flat_out = value.reshape(-1), grad_out.reshape(-1)
    grad_table, slopes = grad_value.reshape(-1), grad_locations.reshape(-1)
    grad_shares = grad_weights.reshape(-1)
    zero = value.dtype.type(0)
    for row in range(first * N, last * N):
        place = (row // (heads * N) * N + row % N) * heads + row // N % heads  # image, query, head
        _list_reads(place * reads, flat_locations, sizes, starts, cells, shares)
        base = row // N * S
        for k in range(c):
            gradient[k] = flat_out[place * c + k]
        for read in range(reads):
            weight = flat_weights[place * reads + read]
            left, right = shares[LEFT, read], shares[RIGHT, read]
            top, bottom = shares[TOP, read], shares[BOTTOM, read]
            cell_0 = np.uint64((base + cells[0, read]) * c)
            cell_1 = np.uint64((base + cells[1, read]) * c)
            cell_2 = np.uint64((base + cells[2, read]) * c)
            cell_3 = np.uint64((base + cells[3, read]) * c)
            dot_0 = dot_1 = dot_2 = dot_3 = zero
            for k in range(np.uint64(c)):
                dot_0 += gradient[k] * table[cell_0 + k]
                dot_1 += gradient[k] * table[cell_1 + k]
                dot_2 += gradient[k] * table[cell_2 + k]
                dot_3 += gradient[k] * table[cell_3 + k]
            # In separate loops: at a border two of them are the same cell.
            share_0, share_1 = top * left * weight, top * right * weight
            share_2, share_3 = bottom * left * weight, bottom * right * weight
            for k in range(np.uint64(c)):
                grad_table[cell_0 + k] += share_0 * gradient[k]
            for k in range(np.uint64(c)):
                grad_table[cell_1 + k] += share_1 * gradient[k]
            for k in range(np.uint64(c)):
                grad_table[cell_2 + k] += share_2 * gradient[k]
            for k in range(np.uint64(c)):
                grad_table[cell_3 + k] += share_3 * gradient[k]
            column_left, column_right = top * dot_0 + bottom * dot_2, top * dot_1 + bottom * dot_3
            row_top, row_bottom = left * dot_0 + right * dot_1, left * dot_2 + right * dot_3
            index = place * reads + read
            grad_shares[index] = left * column_left + right * column_right
            slope = (
                shares[RIGHT_INSIDE, read] * column_right - shares[LEFT_INSIDE, read] * column_left
            )
            slopes[2 * index] = slope * weight * sizes[0, read]
            slope = shares[BOTTOM_INSIDE, read] * row_bottom - shares[TOP_INSIDE, read] * row_top
            slopes[2 * index + 1] = slope * weight * sizes[1, read]


@cache
def _kernels(dtype: torch.dtype) -> list[Kernel]:
    """Forward and backward kernel for a dtype."""
    number = {torch.float32: numba.float32, torch.float64: numba.float64}[dtype]
    of = [numba.types.Array(number, ndim, "C") for ndim in range(7)]
    span, levels = (numba.int64, numba.int64), numba.types.Array(numba.int64, 2, "C")
    inputs = (*span, levels, of[4], of[6], of[5])
    signatures = {_forward: (*inputs, of[4]), _backward: (*inputs, of[4], of[4], of[6], of[5])}
    return compiled(signatures, **SUMS)
