"""Batch normalisation over all processes, on any device.

torch's SyncBatchNorm needs a GPU, and Detectron2's keeps a biased variance, so that a run's
statistics would depend on its number of processes.
"""

from __future__ import annotations

from typing import Any

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn


def synchronised(module: nn.Module) -> nn.Module:
    """Let every BatchNorm2d below a module normalise with the batch of all processes, in place.

    Names of parameters and buffers do not change. All processes must have equal batch sizes.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _SyncNorm(child))
        else:
            synchronised(child)
    return module


class _SyncNorm(nn.BatchNorm2d):
    """A BatchNorm2d, and the activation that timm includes in it, over all processes."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        assert norm.affine and norm.track_running_stats and norm.momentum is not None
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self._parameters, self._buffers = norm._parameters, norm._buffers  # frozen ones stay so
        self.training = norm.training
        self.act: Any = getattr(norm, "act", nn.Identity())

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return self.act(super().forward(input))
        x = input.float()
        sums = torch.cat([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), _count(x)])
        sums = differentiable_all_reduce(sums)
        total, squares, count = sums.split([self.num_features, self.num_features, 1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        out = x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return self.act(out.to(input.dtype))


def _count(x: Tensor) -> Tensor:
    """Number of values of a channel, as a tensor of one element."""
    return x.new_tensor([x.numel() / x.shape[1]])
