"""Decoder layer of SAM-DETR: attention between features of one space (figures 2 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from v2idetr.modeling.dropout import Dropout
from v2idetr.modeling.heads import MLP
from v2idetr.modeling.interface import Beside, Place
from v2idetr.modeling.position import sine_embedding
from v2idetr.modeling.sam_detr.semantics_aligner import Aligned, Level, SemanticsAligner
from v2idetr.modeling.transformer import DecoderLayer


def sam_decoder_layer(
    *, d: int, num_heads: int, ffn_dim: int, dropout: float, smca: bool
) -> DecoderLayer:
    """Self-attention, semantic alignment, and cross-attention by similarity of features."""
    attention = {"d": d, "num_heads": num_heads}
    return DecoderLayer(
        self_attention=ConditionalSelfAttention(**attention, dropout=dropout),
        aligner=SemanticsAligner(**attention, smca=smca),
        cross_attention=MatchingAttention(**attention, dropout=dropout),
        d=d,
        ffn_dim=ffn_dim,
        dropout=dropout,
    )


def reset_biases(layer: DecoderLayer) -> None:
    """Zero output biases of both attentions and of the salient points, as in the official code."""
    own, cross, aligner = layer.self_attention, layer.cross_attention, layer.aligner
    assert isinstance(own, ConditionalSelfAttention) and isinstance(cross, MatchingAttention)
    assert isinstance(aligner, SemanticsAligner)
    for linear in (own.out, cross.out, aligner.salient_points.last):
        nn.init.zeros_(linear.bias)


class ConditionalSelfAttention(nn.Module):
    """Self-attention with separate projections of content and position (Conditional DETR).

    A query's position is the sine embedding of its reference's centre.
    """

    def __init__(self, *, d: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if d % num_heads:
            raise ValueError(f"d={d} must be divisible by num_heads={num_heads}.")
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content, self.query_position = nn.Linear(d, d), nn.Linear(d, d)
        self.key_content, self.key_position = nn.Linear(d, d), nn.Linear(d, d)
        self.value = nn.Linear(d, d)
        self.out = nn.Linear(d, d)

    def forward(
        self,
        content: Float[Tensor, "B N d"],
        place: Place,
        beside: Beside | None = None,
    ) -> Float[Tensor, "B N d"]:
        """``beside``: further queries, as keys and values."""
        reference = place.reference
        seen, places = content, reference
        if beside is not None:
            seen = torch.cat([content, beside[0]], 1)
            places = torch.cat([reference, beside[1].reference], 1)
        query = self.query_content(content) + self.query_position(
            _centre_embedding(content, reference)
        )
        key = self.key_content(seen) + self.key_position(_centre_embedding(seen, places))
        heads = [
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (query, key, self.value(seen))
        ]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MatchingAttention(nn.Module):
    """Cross-attention in which every head compares full features of width d.

    Each head has its own query, from one salient point, and d / heads channels of the values; keys
    are shared. With SMCA (Gao et al., ICCV 2021) a Gaussian around the salient
    point is added to the logits: ``-|s (p - c)|^2 / 8``, with the point p, a cell's centre c, both
    in cells, and the predicted sharpness s.
    """

    def __init__(self, *, d: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_content, self.query_position = nn.Linear(d, d), MLP([d, d, d])
        self.key_content, self.key_position = nn.Linear(d, d), MLP([d, d, d])
        self.value = nn.Linear(d, d)
        self.out = nn.Linear(d, d)
        self.dropout = Dropout(dropout)

    def forward(self, aligned: Aligned, level: Level) -> Float[Tensor, "B N d"]:
        query = self.query_content(aligned.content) + self.query_position(aligned.position)
        key = self.key_content(level.tokens) + self.key_position(level.position)
        value = self.value(level.tokens).unflatten(-1, (self.num_heads, -1))
        scale = query.shape[-1] ** -0.5
        logits = torch.einsum("bnhd,bsd->bhns", query * scale, key)
        if aligned.sharpness is not None:
            logits = logits + gaussian_bias(aligned.points, aligned.sharpness, level)
        if level.padding is not None:
            logits = logits.masked_fill(level.padding[:, None, None], -torch.inf)
        weights = self.dropout(logits.softmax(-1))
        return self.out(torch.einsum("bhns,bshc->bnhc", weights, value).flatten(2))


def gaussian_bias(
    points: Float[Tensor, "B N heads 2"], sharpness: Float[Tensor, "B N heads 2"], level: Level
) -> Float[Tensor, "B heads N S"]:
    """Logits of SMCA: minus the squared distance of every cell to the points, scaled, over 8."""
    h, w = level.shape
    in_cells = points * level.image_cells.view(-1, 1, 1, 2)
    weight = sharpness.square()
    along = []
    for axis, cells in enumerate((w, h)):
        centres = torch.arange(cells, device=points.device) + 0.5
        distance = in_cells[..., axis, None] - centres
        along.append(weight[..., axis, None] * distance.square())
    x, y = along  # (B, N, heads, w), (B, N, heads, h)
    return -(y.unsqueeze(-1) + x.unsqueeze(-2)).flatten(-2).transpose(1, 2) / 8


def _centre_embedding(
    like: Float[Tensor, "B N d"], reference: Float[Tensor, "B N 4"]
) -> Float[Tensor, "B N d"]:
    """Sine embedding of the references' centres, y before x; without gradient."""
    with torch.no_grad():
        return sine_embedding(reference[..., :2].flip(-1), like.shape[-1] // 2)
