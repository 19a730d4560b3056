"""Depth-wise convolutions: torch's results and gradients, the same for any number of threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from v2idetr.modeling import depthwise_conv as module
from v2idetr.modeling import numba_kernels
from v2idetr.modeling.depthwise_conv import DepthwiseConv3d, depthwise_conv

Case = tuple[Tensor, Tensor, Tensor, tuple[int, ...], tuple[int, ...]]


def case(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: int, d: int = 70
) -> Case:
    torch.manual_seed(0)
    x = torch.randn(2, d, *size, requires_grad=True)
    weight = torch.randn(d, 1, *kernel, requires_grad=True)
    bias = torch.randn(d, requires_grad=True)
    n = len(size)
    return x, weight, bias, (stride,) * n, (padding,) * n


def by_torch(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple, padding: tuple) -> Tensor:
    conv = F.conv3d if weight.dim() == 5 else F.conv2d
    return conv(x, weight, bias, stride, padding, 1, len(weight))


def gradients(out: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    toward = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(out, leaves, toward)


@settings(deadline=None, max_examples=40)
@given(
    size=st.lists(st.integers(1, 7), min_size=2, max_size=3),
    kernel=st.lists(st.sampled_from([1, 2, 3, 5]), min_size=3, max_size=3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    channels_last=st.booleans(),
)
def test_results_and_gradients_are_torchs(
    size: list[int], kernel: list[int], stride: int, padding: int, channels_last: bool
) -> None:
    fits = [min(k, s + 2 * padding) for k, s in zip(kernel, size, strict=False)]
    x, weight, bias, strides, paddings = case(tuple(size), tuple(fits), stride, padding)
    given_x = x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x
    actual = depthwise_conv(given_x, weight, bias, strides, paddings)
    expected = by_torch(x, weight, bias, strides, paddings)
    torch.testing.assert_close(actual, expected)
    wanted = gradients(expected, x, weight, bias)
    for own, theirs in zip(gradients(actual, x, weight, bias), wanted, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(6, 7), (3, 6, 7)])
def test_our_gradients_are_used_where_torchs_are_slow(
    size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.Size] = []
    own = module._weight_gradient
    monkeypatch.setattr(
        module, "_weight_gradient", lambda *args: calls.append(args[1].shape) or own(*args)
    )
    slow = case(size, (5,) * len(size), 1, 2)
    gradients(depthwise_conv(*slow), *slow[:3])
    assert calls == [slow[1].shape]
    fast = case((6, 7), (3, 3), 1, 1)
    gradients(depthwise_conv(*fast), *fast[:3])
    assert len(calls) == 1


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_kernels, "MIN_WORK_PER_THREAD", 1)
    arguments = case((3, 8, 9), (5, 5, 5), 1, 2, d=300)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            weight = arguments[1].detach()
            x = arguments[0].detach()
            results.append(module._weight_gradient(x, weight, x, *arguments[3:]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_what_asks_for_no_gradient_gets_none() -> None:
    x, weight, bias, stride, padding = case((3, 4, 5), (3, 3, 3), 1, 1)
    out = depthwise_conv(x.detach(), weight, bias.detach(), stride, padding)
    out.sum().backward()
    assert weight.grad is not None and x.grad is None and bias.grad is None
    assert not depthwise_conv(x.detach(), weight.detach(), None, stride, padding).requires_grad


def test_without_numba_torch_computes_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_numba_works", lambda: False)
    arguments = case((6, 7), (5, 5), 1, 2)
    out = depthwise_conv(*arguments)
    assert "DepthwiseConv" not in str(out.grad_fn)
    assert torch.equal(out, by_torch(*arguments))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs(dtype: torch.dtype) -> None:
    module_3d = DepthwiseConv3d(4, 3).to(dtype)
    x = torch.randn(1, 4, 2, 3, 3, dtype=dtype, requires_grad=True)
    torch.testing.assert_close(
        module_3d(x), F.conv3d(x, module_3d.weight, module_3d.bias, 1, 1, 1, 4)
    )


def test_mixed_precision_convolves_in_half_precision() -> None:
    x = torch.randn(1, 4, 2, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = DepthwiseConv3d(4, 3)(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad is not None
