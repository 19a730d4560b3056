"""torchvision's deformable convolution under autocast, and with its operations counted.

Import it from here: without the formula below, ``torch.utils.flop_counter`` sees none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

__all__ = ["DeformConv2d", "deformable_conv_flops"]

SAMPLED_CELLS = 4  # of bilinear interpolation


class DeformConv2d(torchvision.ops.DeformConv2d):
    """torchvision's, in float32 also under autocast.

    It has no kernel for bfloat16 on CPUs, which also resolves positions only to 1/256.
    """

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            mask = None if mask is None else mask.float()
            return super().forward(input.float(), offset.float(), mask)


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
