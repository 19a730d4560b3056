"""Deformable convolutions are counted, and keep their precision."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from video_detectors.deformable_conv import DeformConv2d


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("modulated", [False, True])
def test_sampling_and_convolution_are_counted(groups, stride, modulated) -> None:
    conv = DeformConv2d(4, 6, 3, padding=1, stride=stride, groups=groups)
    rows, columns = (8, 10) if stride == 1 else (4, 5)
    offsets = torch.randn(2, 2 * 9 * 2, rows, columns)  # of two groups
    mask = torch.rand(2, 9 * 2, rows, columns) if modulated else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        conv(torch.randn(2, 4, 8, 10), offsets, mask)
    cells = 2 * rows * columns
    sampled = cells * 9 * 4 * 4  # taps, channels, cells of an interpolation
    convolved = cells * 9 * 6 * (4 // groups)
    assert counter.get_total_flops() == 2 * (sampled + convolved)


def test_under_autocast_it_is_float32() -> None:
    conv = DeformConv2d(4, 6, 3, padding=1)
    x, offsets, mask = torch.randn(1, 4, 5, 5), torch.randn(1, 18, 5, 5), torch.rand(1, 9, 5, 5)
    full = conv(x.bfloat16().float(), offsets, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv(x.bfloat16(), offsets, mask), full)
