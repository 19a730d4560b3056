"""Deformable convolutions are torchvision's in training, too, counted, and keep their precision."""

from __future__ import annotations

import pytest
import torch
import torchvision
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


@pytest.mark.parametrize("kernel", [1, 3, (3, 2)])
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"padding": (1, 2), "dilation": (2, 1)}])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("modulated", [False, True])
def test_values_and_gradients_are_torchvisions(kernel, settings, groups, modulated) -> None:
    torch.manual_seed(0)
    conv = DeformConv2d(8, 6, kernel, groups=groups, bias=not modulated, **settings)
    x = torch.randn(2, 8, 7, 9)
    rows, columns = torch.nn.functional.conv2d(
        x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
    ).shape[2:]
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    offsets = 4 * torch.randn(2, 4 * taps * 2, rows, columns)  # of four groups; some lie outside
    mask = torch.rand(2, 4 * taps, rows, columns) if modulated else None
    inputs = [t.requires_grad_() for t in (x, offsets, mask, *conv.parameters()) if t is not None]
    want = torchvision.ops.deform_conv2d(
        x, offsets, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, mask
    )
    have = conv(x, offsets, mask)
    torch.testing.assert_close(have, want)
    direction = torch.randn_like(want)
    for mine, theirs in zip(
        torch.autograd.grad(have, inputs, direction),
        torch.autograd.grad(want, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
