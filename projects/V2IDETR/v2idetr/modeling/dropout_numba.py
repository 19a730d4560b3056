"""Dropout on CPUs as a numba kernel.

torch draws its numbers in sequence and keeps a factor for each: a fifth of a training step
(RESULTS.md). Here a number is a hash of a seed and of the element's index, so that elements are
computed in parallel, the result does not depend on the number of threads, and the backward pass
recomputes the numbers.
"""

# ruff: noqa: ANN001, ANN202 (arguments of kernels have numba's types)

from __future__ import annotations

from functools import cache
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from v2idetr.modeling.numba_kernels import Kernel, compiled, share_out


def dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Dropout: elements are zero with probability p, the others divided by 1 - p.

    The seed is drawn from torch's generator.

    Args:
        x: float32 on a CPU, fewer than 2**32 elements.
        p: probability in [0, 1), rounded to 32 bits.
    """
    assert x.numel() < 2**32
    seed = np.random.SeedSequence(int(torch.randint(2**63 - 1, ()))).generate_state(2)
    return _Dropout.apply(x, p, seed)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: np.ndarray) -> Tensor:
        ctx.p, ctx.seed = p, seed
        x = x.contiguous()
        out = torch.empty_like(x)
        arrays = [t.detach().view(-1).numpy() for t in (x, out)]
        limit, scale = np.uint32(round(p * 2**32)), np.float32(1 / (1 - p))
        share_out(_kernel(), x.numel(), x.numel(), *seed, limit, scale, *arrays)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return _Dropout.apply(grad_out, ctx.p, ctx.seed), None, None


@no_type_check  # the tests' type checker would wrap what numba compiles
def _drop(first, last, seed_0, seed_1, limit, scale, x, out):
    """Elements first..last, multiplied by zero if their hash is below the limit, else by scale.

    The hash is the finaliser of MurmurHash3 with half of the seed before each of two rounds.
    """
    word = np.uint32  # numba widens every product
    zero = np.float32(0)
    for i in range(np.uint64(first), np.uint64(last)):  # unsigned, or it is not vectorized
        h = word(word(word(i) * word(0x9E3779B1)) + seed_0)
        h = word((h ^ (h >> word(16))) * word(0x85EBCA6B)) ^ seed_1
        h = word((h ^ (h >> word(13))) * word(0xC2B2AE35))
        h = word(h ^ (h >> word(16)))
        out[i] = x[i] * (scale if h >= limit else zero)


@cache
def _kernel() -> Kernel:
    flat, word = numba.types.Array(numba.float32, 1, "C"), numba.uint32
    of = (numba.int64, numba.int64, word, word, word, numba.float32, flat, flat)
    return compiled({_drop: of}, nogil=True, error_model="numpy")[0]
