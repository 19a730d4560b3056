"""Multi-scale Spatiotemporal Interaction: frames of a clip exchange context, level by level.

V2I-DETR, section II-B, equation 1::

    Y^l = FFN(A^l(PE(F^l)) + F^l)

Shallow levels use a local interactor A (3D convolutions), deep levels a global one (self-attention
over all tokens of all frames); the blocks are those of UniFormer (Li et al., ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from v2idetr.modeling.depthwise_conv import DepthwiseConv3d
from v2idetr.modeling.interface import Features

Residual = Literal["uniformer", "paper"]


class MSI(nn.Module):
    """Mixing of the T frames of each clip at each feature level.

    Args:
        strides: strides of the input levels in pixels.
        roles: "local", "global" or "none" for each level.
        d: width.
        ffn_dim: hidden width of the feed-forward part.
        num_heads: number of heads of the global interactor.
        depth: number of blocks per level.
        residual: "uniformer": residuals around the position embedding, the interactor and the
            feed-forward part, whose last projections start at zero, so that MSI starts as the
            identity. "paper": equation 1 literally, one residual from F around A and PE and none
            around FFN, which cannot start as the identity.
        kernel_size: size of the local interactor's depth-wise convolution (time, height, width).

    Raises:
        ValueError: numbers of roles and strides differ; unknown role or residual; even
            ``kernel_size``; ``d`` is not divisible by ``num_heads``.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int] = (8, 16, 32, 64),
        roles: Sequence[str] = ("local", "local", "global", "global"),
        d: int = 256,
        ffn_dim: int = 1024,
        num_heads: int = 8,
        depth: int = 1,
        residual: Residual = "uniformer",
        kernel_size: int = 5,
    ) -> None:
        super().__init__()
        if len(roles) != len(strides):
            raise ValueError(f"MSI has {len(strides)} levels but {len(roles)} roles: {roles}.")
        if residual not in ("uniformer", "paper"):
            raise ValueError(f"MSI residual must be 'uniformer' or 'paper', got {residual!r}.")
        if kernel_size % 2 == 0:
            raise ValueError(f"MSI kernel_size must be odd, got {kernel_size}.")
        self.d, self.strides = d, tuple(strides)
        for role in roles:
            if role not in ("local", "global", "none"):
                raise ValueError(f"MSI role must be 'local', 'global' or 'none', got {role!r}.")

        def block(role: str) -> InteractionBlock:
            interactor = (
                LocalInteractor(d, kernel_size=kernel_size)
                if role == "local"
                else GlobalInteractor(d, num_heads=num_heads)
            )
            return InteractionBlock(d, interactor, ffn_dim=ffn_dim, residual=residual)

        # The weights of later modules must not depend on MSI: a teacher and its student start with
        # equal weights, and so do teachers with and without MSI.
        with torch.random.fork_rng(devices=[]):
            self.levels = nn.ModuleDict(
                {
                    str(stride): nn.ModuleList(block(role) for _ in range(depth))
                    for stride, role in zip(strides, roles, strict=True)
                    if role != "none"
                }
            )

    def forward(self, features: Features) -> Features:
        """Features of clips, clip-major -> features of the same shapes, frames mixed.

        Args:
            features: maps (C*T, d, h, w) by stride, of clips of ``features.num_frames``.

        Raises:
            ValueError: the features lack one of the levels.
        """
        mixed = dict(features.maps)
        for name, blocks in self.levels.items():
            assert isinstance(blocks, nn.ModuleList)
            stride = int(name)
            if stride not in mixed:
                raise ValueError(f"MSI has a level of stride {stride}; the detector has none.")
            clips = (-1, features.num_frames)
            x = mixed[stride].unflatten(0, clips).movedim(2, -1).contiguous()
            padding = None
            if features.padding is not None:
                padding = features.padding[stride].unflatten(0, clips)
            for block in blocks:
                x = block(x, padding)
            mixed[stride] = x.movedim(-1, 2).flatten(0, 1)
        return replace(features, maps=mixed)


class InteractionBlock(nn.Module):
    """Equation 1 at one level: position embedding, interactor, feed-forward.

    All norms are layer norms over channels. UniFormer has batch norms in its local blocks; with a
    few clips per batch, their statistics are noise, and they would couple clips and processes.
    """

    def __init__(
        self,
        d: int,
        interactor: LocalInteractor | GlobalInteractor,
        *,
        ffn_dim: int,
        residual: Residual,
    ) -> None:
        super().__init__()
        self.position = DepthwiseConv3d(d, 3)
        self.interactor = interactor
        self.ffn_norm = nn.LayerNorm(d)
        self.linear1, self.linear2 = nn.Linear(d, ffn_dim), nn.Linear(ffn_dim, d)
        self.literal = residual == "paper"
        if not self.literal:
            for last in (self.position, self.linear2, interactor.output):
                assert last.bias is not None
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(
        self, x: Float[Tensor, "C T h w d"], padding: Bool[Tensor, "C T h w"] | None
    ) -> Float[Tensor, "C T h w d"]:
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)
        placed = x + self.position(x.movedim(-1, 1)).movedim(1, -1)
        if padding is not None:
            placed = placed.masked_fill(padding.unsqueeze(-1), 0.0)
        mixed = self.interactor(placed, padding) + (x if self.literal else placed)
        update = self.linear2(F.gelu(self.linear1(self.ffn_norm(mixed))))
        return update if self.literal else mixed + update


class LocalInteractor(nn.Module):
    """Affinity in a small volume: pointwise, depth-wise k x k x k and pointwise convolution."""

    def __init__(self, d: int, *, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.input = nn.Linear(d, d)
        self.mix = DepthwiseConv3d(d, kernel_size)
        self.output = nn.Linear(d, d)

    def forward(
        self, x: Float[Tensor, "C T h w d"], padding: Bool[Tensor, "C T h w"] | None
    ) -> Float[Tensor, "C T h w d"]:
        value = self.input(self.norm(x))
        if padding is not None:
            value = value.masked_fill(padding.unsqueeze(-1), 0.0)
        return self.output(self.mix(value.movedim(-1, 1)).movedim(1, -1))


class GlobalInteractor(nn.Module):
    """Joint self-attention over all tokens of all frames."""

    def __init__(self, d: int, *, num_heads: int) -> None:
        super().__init__()
        if d % num_heads:
            raise ValueError(f"MSI: d={d} must be divisible by num_heads={num_heads}.")
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(d)
        self.input = nn.Linear(d, 3 * d)
        self.output = nn.Linear(d, d)

    def forward(
        self, x: Float[Tensor, "C T h w d"], padding: Bool[Tensor, "C T h w"] | None
    ) -> Float[Tensor, "C T h w d"]:
        tokens = self.norm(x.flatten(1, 3))  # (C, T*h*w, d)
        query, key, value = (
            self.input(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mask = None if padding is None else ~padding.flatten(1)[:, None, None]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(read.transpose(1, 2).flatten(2)).view(x.shape)
