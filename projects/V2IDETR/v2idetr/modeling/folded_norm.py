"""Frozen batch normalisation computed inside the convolution before it.

With fixed statistics, the scale and the shift of a normalisation are a factor of the weights and a
bias of the convolution: the same result without a pass over the whole map.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2idetr.modeling.depthwise_conv import depthwise_conv


def fold_frozen_norms(module: nn.Module) -> nn.Module:
    """Fold the frozen normalisation of every Detectron2 convolution below a module, in place.

    Parameters, buffers, their names and gradients do not change.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and child.bias is None and _has_frozen_norm(child):
            child.__class__ = FoldedConv2d
    return module


def fold_norm(convolution: nn.Conv2d, norm: nn.Module) -> bool:
    """Fold the frozen normalisation after a convolution into it; the caller must then skip it.

    The normalisation stays registered and keeps its tensors.

    Returns:
        False, without a change, if the convolution has a bias, does not pad with zeros or is of an
        unknown kind.
    """
    same = type(convolution).__name__ == "Conv2dSame"  # timm's, which is not imported here
    known = same or type(convolution) is nn.Conv2d
    if convolution.bias is not None or convolution.padding_mode != "zeros" or not known:
        return False
    convolution.__class__ = FoldedConv2d
    # Not registered a second time, so that each tensor has one name.
    vars(convolution).update(norm=norm, activation=None, pads_same=same)
    return True


def _has_frozen_norm(convolution: nn.Module) -> bool:
    """Whether a convolution is Detectron2's (not imported here) with a frozen normalisation."""
    norm = type(getattr(convolution, "norm", None)).__name__
    return norm == "FrozenBatchNorm2d" and hasattr(convolution, "activation")


class FoldedConv2d(nn.Conv2d):
    """A convolution and the frozen normalisation after it, as one convolution.

    Attributes:
        norm: FrozenBatchNorm2d after the convolution.
        activation: activation after the normalisation, or None.
        pads_same: TensorFlow's padding by the size of the input.
    """

    norm: nn.Module
    activation: Any
    pads_same = False
    _kept: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._folded()
        if torch.is_autocast_enabled(x.device.type):  # which casts weights, but not this bias
            bias = bias.to(torch.get_autocast_dtype(x.device.type))
        padding: Any = self.padding
        if self.pads_same:
            from timm.layers.padding import pad_same

            padding = (0, 0)
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        if self.groups == self.in_channels == self.out_channels and set(self.dilation) == {1}:
            x = depthwise_conv(x, weight, bias, self.stride, padding)
        else:
            x = F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, cached until one of their source tensors changes."""
        own = self.norm._buffers.values()  # faster than named_buffers(): this runs often
        made_from = (self.weight, *(buffer for buffer in own if buffer is not None))
        learning = self.weight.requires_grad and torch.is_grad_enabled()
        if learning or torch.compiler.is_compiling() or any(t.is_inference() for t in made_from):
            return self._fold()
        key = [(t.data_ptr(), t._version, t.device, t.dtype) for t in made_from]
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # for later use in training
                self._kept = (key, self._fold())
        return self._kept[1]

    def _fold(self) -> tuple[Tensor, Tensor]:
        norm: Any = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = self.weight * scale.view(-1, 1, 1, 1)
        if weight.device.type == "cpu":  # the faster layout there, also for the maps
            weight = weight.contiguous(memory_format=torch.channels_last)
        return weight, norm.bias - norm.running_mean * scale
