"""Levels, references and places that the tests of SAM-DETR's parts share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from v2idetr.modeling.sam_detr.semantics_aligner import Level

PICTURES = [(6, 9), (4, 5)]  # (h, w) in cells, in a level of 6 x 9


def level_of(
    pictures: list[tuple[int, int]], *, d: int = 8, isolated: bool = True, fill: float = 7.0
) -> Level:
    """Random tokens; ``fill`` on padding."""
    h, w = (max(axis) for axis in zip(*pictures, strict=True))
    B = len(pictures)
    padding = torch.ones(B, h, w, dtype=torch.bool)
    for row, (height, width) in zip(padding, pictures, strict=True):
        row[:height, :width] = False
    tokens = torch.randn(B, h * w, d).masked_fill(padding.flatten(1).unsqueeze(-1), fill)
    picture = torch.tensor([(float(width), float(height)) for height, width in pictures])
    edge = picture if isolated else torch.tensor([[float(w), float(h)]]).expand(B, 2)
    mask = padding.flatten(1) if padding.any() else None
    return Level(tokens, torch.randn(B, h * w, d), mask, (h, w), picture, edge)


def map_of(level: Level) -> Tensor:
    B, _, d = level.tokens.shape
    return level.tokens.transpose(1, 2).reshape(B, d, *level.shape)


def boxes(B: int, N: int) -> Tensor:
    """References of all sizes, some of them reaching beyond the picture."""
    centre = torch.rand(B, N, 2)
    size = torch.rand(B, N, 2) ** 2
    special = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.0, 1.0, 0.9, 0.9], [0.3, 0.6, 1e-4, 1e-4]])
    return torch.cat([torch.cat([centre, size], -1), special.expand(B, -1, -1)], 1)


def sine(x: float, y: float, d: int) -> Tensor:
    """Positional embedding of a place: d / 2 numbers for y, then d / 2 for x."""
    numbers = []
    for coordinate in (y, x):
        for i in range(d // 2):
            angle = coordinate * 2 * math.pi / 10000 ** (2 * (i // 2) / (d // 2))
            numbers.append(math.cos(angle) if i % 2 else math.sin(angle))
    return torch.tensor(numbers)
