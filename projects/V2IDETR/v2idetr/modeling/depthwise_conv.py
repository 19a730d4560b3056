"""Depth-wise convolutions with a fast backward pass on CPUs.

oneDNN computes the weight gradient of kernels above 3 x 3, and both gradients of 3D kernels, many
times slower than the forward pass: a fifth of a training step of the demo's teacher (RESULTS.md).
Here the input gradient of a 3D convolution is a convolution with the mirrored kernel, and a numba
kernel sums the weight gradient.
"""

# ruff: noqa: ANN001, ANN202 (arguments of kernels have numba's types)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from v2idetr.modeling.numba_kernels import compiled, numba_works, share_out

CHANNELS_PER_BLOCK = 64  # so that the sums stay in the first-level cache


class DepthwiseConv3d(nn.Conv3d):
    """A depth-wise 3D convolution of stride 1 with outputs of the input's size.

    Args:
        d: number of channels.
        kernel_size: odd size along time, height and width.
    """

    def __init__(self, d: int, kernel_size: int) -> None:
        super().__init__(d, d, kernel_size, padding=kernel_size // 2, groups=d)

    def forward(self, input: Float[Tensor, "B d T h w"]) -> Float[Tensor, "B d T h w"]:
        return depthwise_conv(input, self.weight, self.bias, self.stride, self.padding)


def depthwise_conv(
    x: Float[Tensor, "B d *size"],
    weight: Float[Tensor, "d 1 *kernel"],
    bias: Float[Tensor, " d"] | None,
    stride: tuple[int, ...],
    padding: Any,
) -> Float[Tensor, "B d *out"]:
    """A 2D or 3D convolution with one filter per channel; arguments and result as in torch.

    Only once differentiable where this module's backward pass replaces torch's.
    """
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    slow = weight.dim() == 5 or max(weight.shape[2:]) > 3
    on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    special = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    ours = learning and slow and on_cpu and not special and not isinstance(padding, str)
    if ours and _numba_works():
        return _DepthwiseConv.apply(x, weight, bias, stride, padding)
    return _conv(weight)(x, weight, bias, stride, padding, 1, len(weight))


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return _conv(weight)(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d, stride, padding = len(weight), ctx.stride, ctx.padding
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            if weight.dim() == 5 and x.shape == grad_out.shape and set(stride) == {1}:
                mirrored = weight.flip((2, 3, 4))
                grad_x = F.conv3d(grad_out, mirrored, None, 1, padding, 1, d)
            else:
                ones, zeros, only_x = [1] * len(stride), [0] * len(stride), [True, False, False]
                grad_x = torch.ops.aten.convolution_backward(
                    grad_out, x, weight, None, stride, padding, ones, False, zeros, d, only_x
                )[0]
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, weight, grad_out, stride, padding)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_out.transpose(0, 1).flatten(1).sum(1)
        return grad_x, grad_weight, grad_bias, None, None


def _conv(weight: Tensor) -> Callable[..., Tensor]:
    """torch's convolution for filters of two or three dimensions."""
    return F.conv3d if weight.dim() == 5 else F.conv2d


def _weight_gradient(
    x: Tensor,
    weight: Tensor,
    grad_out: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Tensor:
    d, size = len(weight), weight.shape[2:]
    if len(size) == 2:  # one frame
        x, grad_out = x.unsqueeze(2), grad_out.unsqueeze(2)
        size, stride, padding = (1, *size), (1, *stride), (0, *padding)
    x, grad_out = (t.detach().movedim(1, -1).contiguous() for t in (x, grad_out))
    out = np.empty((*size, d), np.float32)
    share_out(
        _kernel(), -(-d // CHANNELS_PER_BLOCK), grad_out.numel() * len(out.reshape(-1, d)),
        *stride, *padding, x.numpy(), grad_out.numpy(), out,
    )  # fmt: skip
    return torch.from_numpy(out).movedim(-1, 0).reshape(weight.shape)


@no_type_check  # the tests' type checker would wrap what numba compiles
def _sum_products(first, last, st, sh, sw, pt, ph, pw, x, grad_out, out):
    """Weight gradient of channel blocks first..last: sums of inputs times output gradients.

    By rows of the filter, in an order that does not depend on the number of threads.

    Args:
        st, sh, sw, pt, ph, pw: stride and padding.
        x, grad_out, out: (B, T, H, W, d), (B, t, h, w, d) and (kt, kh, kw, d).
    """
    B, T, H, W, d = x.shape
    t, h, w = grad_out.shape[1:4]
    kt, kh, kw = out.shape[:3]
    for block in range(first, last):
        c0 = block * CHANNELS_PER_BLOCK
        c1 = min(d, c0 + CHANNELS_PER_BLOCK)
        sums = np.zeros((kw, c1 - c0), np.float32)
        for row in range(kt * kh):
            k, m = row // kh, row % kh
            sums[:] = 0
            for b in range(B):
                for f in range(t):
                    z = f * st + k - pt
                    if z < 0 or z >= T:
                        continue
                    for i in range(h):
                        y = i * sh + m - ph
                        if y < 0 or y >= H:
                            continue
                        for j in range(w):
                            gradient = grad_out[b, f, i, j, c0:c1]
                            for n in range(kw):
                                v = j * sw + n - pw
                                if v < 0 or v >= W:
                                    continue
                                values, total = x[b, z, y, v, c0:c1], sums[n]
                                for c in range(c1 - c0):
                                    total[c] += values[c] * gradient[c]
            out[k, m, :, c0:c1] = sums


@cache
def _kernel() -> Any:
    import numba

    number, read = numba.int64, numba.types.Array(numba.float32, 5, "C", readonly=True)
    written = numba.types.Array(numba.float32, 4, "C")
    of = (*[number] * 8, read, read, written)
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    return compiled({_sum_products: of}, **options)[0]


@cache
def _numba_works() -> bool:
    def check() -> bool:
        x, weight = torch.ones(1, 2, 2, 2, 2), torch.ones(2, 1, 1, 1, 1)
        return bool((_weight_gradient(x, weight, x, (1, 1, 1), (0, 0, 0)) == 8).all())

    return numba_works(check, "depth-wise convolutions train slowly")
