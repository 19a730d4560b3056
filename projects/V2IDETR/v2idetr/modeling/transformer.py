"""Encoder and decoder layers, post-norm (DETR, appendix A.3; Deformable DETR, section 4.1)."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from v2idetr.modeling.deformable_attention import DeformableAttention
from v2idetr.modeling.dropout import Dropout

Shapes = list[tuple[int, int]]


def check_width(d: int, num_heads: int) -> None:
    """Raise ValueError unless heads and the sine embedding of two axes can share a width out."""
    if d % num_heads or d % 4:
        raise ValueError(f"net.d={d} must be divisible by net.num_heads={num_heads} and by 4.")


class FeedForward(nn.Module):
    """x -> LayerNorm(x + MLP(x)), one hidden layer with ReLU."""

    def __init__(self, *, d: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(d, ffn_dim), nn.Linear(ffn_dim, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B N d"]) -> Float[Tensor, "B N d"]:
        hidden = self.dropout(self.linear1(x).relu_())
        return self.norm(x + self.dropout(self.linear2(hidden)))


class GlobalEncoderLayer(nn.Module):
    """Every token looks at every token of its picture, then a feed-forward step (DETR)."""

    def __init__(self, *, d: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(d, num_heads, dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)
        self.ffn = FeedForward(d=d, ffn_dim=ffn_dim, dropout=dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B S d"],
        position: Float[Tensor, "B S d"],
        padding: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S d"]:
        """``position`` is added to queries and keys, not to values; padding is not looked at."""
        where = tokens + position
        seen = self.attention(where, where, tokens, key_padding_mask=padding, need_weights=False)
        return self.ffn(self.attention_norm(tokens + self.dropout(seen[0])))


class EncoderLayer(nn.Module):
    """Every token reads around its own cell in all levels, then a feed-forward step."""

    def __init__(
        self,
        *,
        d: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(
            d=d, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.attention_norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)
        self.ffn = FeedForward(d=d, ffn_dim=ffn_dim, dropout=dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B S d"],
        position: Float[Tensor, "B S d"],
        reference: Float[Tensor, "B S levels 2"],
        shapes: Shapes,
        padding: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S d"]:
        read = self.attention(tokens + position, reference, tokens, shapes, padding)
        return self.ffn(self.attention_norm(tokens + self.dropout(read)))


class DecoderLayer(nn.Module):
    """Queries talk to each other, read the image around their references, and think."""

    def __init__(
        self,
        *,
        d: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(d, num_heads, dropout, batch_first=True)
        self.self_norm = nn.LayerNorm(d)
        self.cross_attention = DeformableAttention(
            d=d, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.cross_norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)
        self.ffn = FeedForward(d=d, ffn_dim=ffn_dim, dropout=dropout)

    def forward(
        self,
        content: Float[Tensor, "B N d"],
        position: Float[Tensor, "B N d"],
        reference: Float[Tensor, "B N levels ref"],
        tokens: Float[Tensor, "B S d"],
        shapes: Shapes,
        padding: Bool[Tensor, "B S"] | None,
        beside: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "B N d"]:
        """``beside``: see :func:`attend_to_queries`."""
        seen = attend_to_queries(self.self_attention, content, position, beside)
        content = self.self_norm(content + self.dropout(seen))
        read = self.cross_attention(content + position, reference, tokens, shapes, padding)
        return self.ffn(self.cross_norm(content + self.dropout(read)))


class GlobalDecoderLayer(nn.Module):
    """Queries talk to each other, look at every token of their picture, and think (DETR)."""

    def __init__(self, *, d: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(d, num_heads, dropout, batch_first=True)
        self.self_norm = nn.LayerNorm(d)
        self.cross_attention = nn.MultiheadAttention(d, num_heads, dropout, batch_first=True)
        self.cross_norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)
        self.ffn = FeedForward(d=d, ffn_dim=ffn_dim, dropout=dropout)

    def forward(
        self,
        content: Float[Tensor, "B N d"],
        position: Float[Tensor, "B N d"],
        key: Float[Tensor, "B S d"],
        value: Float[Tensor, "B S d"],
        padding: Bool[Tensor, "B S"] | None,
        beside: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "B N d"]:
        """``key`` is ``value`` with its position; ``beside``: see :func:`attend_to_queries`."""
        seen = attend_to_queries(self.self_attention, content, position, beside)
        content = self.self_norm(content + self.dropout(seen))
        read = self.cross_attention(
            content + position, key, value, key_padding_mask=padding, need_weights=False
        )
        return self.ffn(self.cross_norm(content + self.dropout(read[0])))


def attend_to_queries(
    attention: nn.MultiheadAttention,
    content: Float[Tensor, "B N d"],
    position: Float[Tensor, "B N d"],
    beside: tuple[Tensor, Tensor] | None,
) -> Float[Tensor, "B N d"]:
    """What queries see in each other and in those beside them.

    Args:
        attention: batch first.
        content, position: of the queries; the position is added to queries and keys, not to values.
        beside: content and position, (B, n, d) each, of further queries to look at.
    """
    where = key = content + position
    value = content
    if beside is not None:
        key = torch.cat([where, beside[0] + beside[1]], 1)
        value = torch.cat([content, beside[0]], 1)
    return attention(where, key, value, need_weights=False)[0]


class MLP(nn.Module):
    """Linear layers with ReLU between them; the last one is free."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu_()
        return self.layers[-1](x)
