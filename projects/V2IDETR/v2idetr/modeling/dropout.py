"""Dropout with a fast kernel on CPUs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from v2idetr.modeling.numba_kernels import numba_works


class Dropout(nn.Dropout):
    """torch's dropout; on CPUs, in float32, drawn by a numba kernel (``dropout_numba``)."""

    def forward(self, input: Tensor) -> Tensor:
        ours = self.training and 0 < self.p < 1 and not self.inplace
        if not ours or input.device.type != "cpu" or input.dtype != torch.float32:
            return super().forward(input)
        if torch.compiler.is_compiling() or not _numba_works():
            return super().forward(input)
        from v2idetr.modeling.dropout_numba import dropout

        return dropout(input, self.p)


@cache
def _numba_works() -> bool:
    def check() -> bool:
        from v2idetr.modeling.dropout_numba import dropout

        with torch.random.fork_rng(devices=[]):
            return bool(torch.isin(dropout(torch.ones(8), 0.5), torch.tensor([0.0, 2.0])).all())

    return numba_works(check, "dropout is slower than it could be")
