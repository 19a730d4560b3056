"""Self-attention of queries, and attention of queries and tokens to an image.

They are parts of the encoder and decoder layers in ``transformer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from v2idetr.modeling.deformable_attention import DeformableAttention, Shapes
from v2idetr.modeling.interface import Beside, Place


@dataclass
class TokenGrid:
    """Tokens of all levels of an image, the input of cross-attention.

    Attributes:
        tokens: tokens of all levels, concatenated, row-major.
        position: position embedding; None if unused, as in deformable attention.
        padding: True on padding; None without padding.
        shapes: (h, w) of each level.
        valid_ratios: share of each level's width and height without padding.
    """

    tokens: Float[Tensor, "B S d"]
    position: Float[Tensor, "B S d"] | None
    padding: Bool[Tensor, "B S"] | None
    shapes: Shapes
    valid_ratios: Float[Tensor, "B levels 2"]

    @cached_property
    def key(self) -> Float[Tensor, "B S d"]:
        """Tokens plus position, cached for all layers of a decoder."""
        assert self.position is not None
        return self.tokens + self.position


class SelfAttention(nn.MultiheadAttention):
    """Self-attention of queries; positions are added to queries and keys, not to values."""

    def __init__(self, *, d: int, num_heads: int, dropout: float) -> None:
        super().__init__(d, num_heads, dropout, batch_first=True)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, content: Float[Tensor, "B N d"], place: Place, beside: Beside | None = None
    ) -> Float[Tensor, "B N d"]:
        """``beside``: further queries, as keys and values."""
        where = key = content + place.position
        value = content
        if beside is not None:
            key = torch.cat([where, beside[0] + beside[1].position], 1)
            value = torch.cat([content, beside[0]], 1)
        return super().forward(where, key, value, need_weights=False)[0]


class GlobalAttention(nn.MultiheadAttention):
    """Attention of queries to every token of their image (DETR)."""

    def __init__(self, *, d: int, num_heads: int, dropout: float) -> None:
        super().__init__(d, num_heads, dropout, batch_first=True)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, content: Float[Tensor, "B N d"], place: Place, image: TokenGrid
    ) -> Float[Tensor, "B N d"]:
        own = content is image.tokens  # in an encoder
        read = super().forward(
            image.key if own else content + place.position,
            image.key,
            image.tokens,
            key_padding_mask=image.padding,
            need_weights=False,
        )
        return read[0]


class LocalAttention(DeformableAttention):
    """Deformable attention of queries to points around their references (Deformable DETR)."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, content: Float[Tensor, "B N d"], place: Place, image: TokenGrid
    ) -> Float[Tensor, "B N d"]:
        return super().forward(
            content + place.position,
            _references(place, image),
            image.tokens,
            image.shapes,
            image.padding,
        )

    def points(
        self, content: Float[Tensor, "B N d"], place: Place, image: TokenGrid
    ) -> tuple[
        Float[Tensor, "B N heads levels points 2"], Float[Tensor, "B N heads levels points"]
    ]:
        """Locations and weights of what :meth:`forward` reads, see :meth:`reads`."""
        return self.reads(content + place.position, _references(place, image), image.shapes)


def _references(place: Place, image: TokenGrid) -> Float[Tensor, "B N levels ref"]:
    """References of every level, in [0, 1] of the padded level."""
    scale = image.valid_ratios.unsqueeze(1)  # (B, 1, levels, 2)
    if place.reference.shape[-1] == 4:
        scale = torch.cat([scale, scale], -1)
    return place.reference.unsqueeze(2) * scale
