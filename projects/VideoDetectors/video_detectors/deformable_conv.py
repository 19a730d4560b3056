"""torchvision's deformable convolution under autocast, fast in training on a CPU, and counted.

Import it from here: without the formula below, ``torch.utils.flop_counter`` sees none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

__all__ = ["DeformConv2d", "deformable_conv_flops"]

SAMPLED_CELLS = 4  # of bilinear interpolation


class DeformConv2d(torchvision.ops.DeformConv2d):
    """torchvision's, in float32 also under autocast.

    It has no kernel for bfloat16 on CPUs, which also resolves positions only to 1/256. Its
    gradients take long on a CPU; there the taps are read by ``grid_sample``.
    """

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            input, offset = input.float(), offset.float()
            mask = None if mask is None else mask.float()
            if input.device.type == "cpu" and torch.is_grad_enabled():
                return self._by_grid_sample(input, offset, mask)
            return super().forward(input, offset, mask)

    def _by_grid_sample(
        self,
        x: Float[Tensor, "B C H W"],
        offset: Float[Tensor, "B GK2 h w"],
        mask: Float[Tensor, "B GK h w"] | None,
    ) -> Float[Tensor, "B O h w"]:
        """The same from the K taps of each of G groups of channels, read one by one.

        At whole cells, where the derivative by a position jumps, it may be that of the other side.
        """
        (B, C, H, W), (h, w) = x.shape, offset.shape[2:]
        K = prod(self.kernel_size)
        dy, dx = offset.view(B, -1, K, 2, h, w).unbind(3)
        G = dy.shape[1]
        rows, columns = (self._positions(axis, length, x) for axis, length in enumerate((h, w)))
        down = dy + rows.repeat_interleave(self.kernel_size[1], 0).unsqueeze(2)
        right = dx + columns.repeat(self.kernel_size[0], 1).unsqueeze(1)
        grid = torch.stack([(2 * right + 1) / W - 1, (2 * down + 1) / H - 1], -1)
        taps = F.grid_sample(
            x.reshape(B * G, C // G, H, W), grid.view(B * G, K * h, w, 2), align_corners=False
        ).view(B, G, C // G, K, h, w)
        if mask is not None:
            taps = taps * mask.view(B, G, 1, K, h, w)
        weight = self.weight.reshape(self.groups, self.out_channels // self.groups, -1)
        found = weight @ taps.reshape(B, self.groups, -1, h * w)
        found = found.view(B, self.out_channels, h, w)
        return found if self.bias is None else found + self.bias.view(-1, 1, 1)

    def _positions(self, axis: int, length: int, x: Tensor) -> Float[Tensor, "k length"]:
        """Rows (axis 0) or columns of the taps of every output cell, without offsets."""
        first = torch.arange(length, device=x.device) * self.stride[axis] - self.padding[axis]
        tap = torch.arange(self.kernel_size[axis], device=x.device) * self.dilation[axis]
        return (first + tap.unsqueeze(1)).to(x.dtype)


def deformable_conv_flops(
    x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """Operations of one deformable convolution; a multiply-add counts as two.

    Args:
        x, weight, out_shape: shapes of input, kernel and output.

    Each tap of the kernel is interpolated between four cells in every input channel, then the
    convolution is an ordinary one. Modulation is left out, as other element-wise products are.
    """
    outputs = out_shape[0] * prod(out_shape[2:])
    taps = prod(weight[2:])
    sampling = 2 * SAMPLED_CELLS * outputs * taps * x[1]
    convolution = 2 * outputs * taps * weight[0] * weight[1]
    return sampling + convolution


if torch.ops.torchvision.deform_conv2d not in flop_registry:
    register_flop_formula(torch.ops.torchvision.deform_conv2d)(deformable_conv_flops)
