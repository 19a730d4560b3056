"""Awkward reads of deformable attention, and the textbook they are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = list[tuple[int, int]]
Read = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]


def textbook_read(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Every level through ``grid_sample``, then the weighted sum."""
    B, _, heads, c = value.shape
    N = locations.shape[1]
    reads = []
    for level, table in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        image = table.permute(0, 2, 3, 1).reshape(B * heads, c, *shapes[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        reads.append(F.grid_sample(image, grid, padding_mode="zeros", align_corners=False))
    shares = weights.transpose(1, 2).reshape(B * heads, 1, N, -1)
    out = (torch.cat(reads, -1) * shares).sum(-1)
    return out.view(B, heads * c, N).transpose(1, 2)


def _random(
    B: int, N: int, heads: int, c: int, shapes: Shapes, points: int, reach: float = 0.3
) -> tuple[Shapes, tuple[Tensor, Tensor, Tensor]]:
    """Locations lie between -reach and 1 + reach."""
    generator = torch.Generator().manual_seed(B + N + heads + c)
    S = sum(h * w for h, w in shapes)
    grid = (B, N, heads, len(shapes), points)
    return shapes, (
        torch.randn(B, S, heads, c, generator=generator),
        torch.rand(*grid, 2, generator=generator) * (1 + 2 * reach) - reach,
        torch.rand(grid, generator=generator),
    )


def _on_borders(size: int) -> tuple[Shapes, tuple[Tensor, Tensor, Tensor]]:
    """Reads exactly on the centres and edges of cells, also of those outside."""
    steps = torch.arange(-2, size + 3)
    along = torch.cat([steps / size, (steps + 0.5) / size])
    x, y = torch.meshgrid(along, along, indexing="ij")
    shapes, (value, _, _) = _random(1, 1, 1, 4, [(size, size)], 1)
    locations = torch.stack([x, y], -1).view(1, -1, 1, 1, 1, 2)
    return shapes, (value, locations, torch.ones(locations.shape[:-1]))


def _far_away() -> tuple[Shapes, tuple[Tensor, Tensor, Tensor]]:
    shapes, (value, locations, weights) = _random(1, 6, 1, 3, [(4, 5)], 2)
    far = torch.tensor([-1e30, -1e9, -50.0, 50.0, 1e9, 1e30])
    locations[..., 0] = far.view(1, 6, 1, 1, 1)
    return shapes, (value, locations, weights)


CASES: dict[str, tuple[Shapes, tuple[Tensor, Tensor, Tensor]]] = {
    "four levels, several images": _random(3, 9, 2, 8, [(6, 8), (3, 4), (2, 2), (1, 1)], 2),
    "one cell": _random(1, 5, 1, 32, [(1, 1)], 1),
    "one row and one column": _random(2, 7, 2, 4, [(1, 9), (6, 1)], 3),
    "c is no power of two": _random(2, 40, 3, 5, [(5, 7)], 2),
    "c is one": _random(1, 4, 2, 1, [(3, 3)], 2),
    "many channels, one row a program": _random(1, 2, 1, 1100, [(2, 3)], 1),
    "more rows than one program holds": _random(1, 35, 2, 32, [(4, 4)], 2),
    "mostly outside": _random(2, 20, 2, 6, [(4, 3), (2, 2)], 2, reach=3.0),
    "far away": _far_away(),
    **{f"on the borders of {size} cells": _on_borders(size) for size in (1, 2, 3, 7)},
}


def outputs_and_gradients(
    read: Read, case: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Output and gradients of one case, on the CPU."""
    shapes, inputs = CASES[case]
    value, locations, weights = (x.to(device, dtype).requires_grad_() for x in inputs)
    out = read(value, shapes, locations, weights)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(out, (value, locations, weights), gradient.to(out))
    names = ("output", "grad value", "grad locations", "grad weights")
    return {n: x.detach().cpu() for n, x in zip(names, (out, *gradients), strict=True)}


def assert_same_read(have: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Equal to within the rounding of float32, for numbers of the size of one times their count."""
    for name, expected in want.items():
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(
            have[name], expected, atol=1e-5 * scale, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )
