"""Encoder and decoder layers, post-norm (DETR, appendix A.3; Deformable DETR, section 4.1).

Layers get their attentions, which differ between detector families, as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from v2idetr.modeling.dropout import Dropout
from v2idetr.modeling.heads import DetectionHeads
from v2idetr.modeling.interface import Beside, Context, Decoded, Place, Queries
from v2idetr.modeling.references import in_float32, move
from v2idetr.modeling.token_attention import TokenGrid


def check_width(d: int, num_heads: int) -> None:
    """Raise ValueError unless the width fits the heads and the sine embedding of two axes."""
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


class EncoderLayer(nn.Module):
    """Attention of every token to its image, then a feed-forward step.

    Args:
        attention: (content, place, image) -> content, see ``token_attention.py``.
        d, ffn_dim, dropout: width, hidden width of the feed-forward step and dropout rate.
    """

    def __init__(self, attention: nn.Module, *, d: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)
        self.ffn = FeedForward(d=d, ffn_dim=ffn_dim, dropout=dropout)

    def forward(self, place: Place, image: TokenGrid) -> Float[Tensor, "B S d"]:
        """``place``: positions and references of the tokens."""
        read = self.attention(image.tokens, place, image)
        return self.ffn(self.attention_norm(image.tokens + self.dropout(read)))


class DecoderLayer(nn.Module):
    """Self-attention of queries, cross-attention to the image, then a feed-forward step.

    Args:
        self_attention: (content, place, beside) -> content.
        cross_attention: (content, place, image) -> content.
        aligner: (content, reference, image) -> input of the cross-attention in place of content
            and place (SAM-DETR); None for other families.
        d, ffn_dim, dropout: width, hidden width of the feed-forward step and dropout rate.
    """

    def __init__(
        self,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        *,
        d: int,
        ffn_dim: int,
        dropout: float,
        aligner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_norm = nn.LayerNorm(d)
        self.aligner = aligner
        self.cross_attention = cross_attention
        self.cross_norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)
        self.ffn = FeedForward(d=d, ffn_dim=ffn_dim, dropout=dropout)

    def forward(
        self,
        content: Float[Tensor, "B N d"],
        place: Place,
        image: Any,
        beside: Beside | None = None,
    ) -> Float[Tensor, "B N d"]:
        """Content of the queries after the layer.

        Args:
            content, place: content, positions and references of the queries.
            image: input of the cross-attention.
            beside: further queries, visible in self-attention.
        """
        seen = self.self_attention(content, place, beside)
        content = self.self_norm(content + self.dropout(seen))
        if self.aligner is None:
            read = self.cross_attention(content, place, image)
        else:
            read = self.cross_attention(self.aligner(content, place.reference, image), image)
        return self.ffn(self.cross_norm(content + self.dropout(read)))


def decode_with_boxes(
    layers: nn.ModuleList,
    queries: Queries,
    images: Sequence[Any],
    heads: DetectionHeads,
    context: Context | None,
) -> Decoded:
    """Decode queries with a box head that moves the references after every layer.

    Args:
        layers: decoder layers.
        queries: queries with references of 2 or 4 numbers.
        images: input of each layer's cross-attention.
        heads: class and box heads; with one per layer, each refines the box of the layer before.
        context: decoded queries, visible in self-attention.
    """
    reference, content = queries.reference, queries.content
    hidden, logits, boxes = [], [], []
    for index, (layer, image) in enumerate(zip(layers, images, strict=True)):
        beside = None if context is None else context.layer_input(index)
        content = layer(content, Place(queries.position, reference), image, beside)
        class_head, box_head = heads.of_layer(index)
        box = move(reference, in_float32(box_head, content))
        hidden.append(content)
        logits.append(class_head(content))
        boxes.append(box)
        if heads.refine:
            reference = box.detach()
    return Decoded(torch.stack(hidden), torch.stack(logits), torch.stack(boxes))
