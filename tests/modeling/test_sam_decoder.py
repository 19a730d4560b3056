"""Attention of SAM-DETR's decoder against its formulae, written as loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.modeling.sam_levels import PICTURES, boxes, level_of, sine
from v2idetr.modeling.interface import Place
from v2idetr.modeling.sam_detr.decoder import (
    ConditionalSelfAttention,
    MatchingAttention,
    gaussian_bias,
    reset_biases,
    sam_decoder_layer,
)
from v2idetr.modeling.sam_detr.semantics_aligner import Aligned, Level
from v2idetr.modeling.transformer import DecoderLayer

D, HEADS = 8, 4


def aligned(*, N: int = 5, smca: bool = False) -> Aligned:
    shape = (2, N, HEADS)
    sharpness = torch.randn(*shape, 2) if smca else None
    points = torch.rand(*shape, 2) * 1.2 - 0.1
    return Aligned(torch.randn(*shape, D), torch.randn(*shape, D), points, sharpness)


def at(reference: Tensor) -> Place:
    return Place(torch.zeros(*reference.shape[:2], D), reference)


def layer(**changes) -> DecoderLayer:
    settings = {"d": D, "num_heads": HEADS, "ffn_dim": 12, "dropout": 0.0, "smca": False}
    module = sam_decoder_layer(**settings | changes)
    for parameter in module.parameters():  # norms and biases that do something
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return module


# ------------------------------------------------------------------------- self-attention


def self_attention(module: ConditionalSelfAttention, content: Tensor, reference: Tensor) -> Tensor:
    """Of one picture's queries (N, d) with references (N, 4)."""
    position = torch.stack([sine(float(r[0]), float(r[1]), D) for r in reference])
    query = module.query_content(content) + module.query_position(position)
    key = module.key_content(content) + module.key_position(position)
    value, width = module.value(content), D // HEADS
    out = torch.zeros_like(content)
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(content)):
            logits = [query[i, part] @ key[j, part] / math.sqrt(width) for j in range(len(content))]
            weights = torch.stack(logits).softmax(0)
            out[i, part] = sum(w * value[j, part] for j, w in enumerate(weights))
    return module.out(out)


@torch.no_grad()
def test_self_attention_projects_content_and_position_apart() -> None:
    module = ConditionalSelfAttention(d=D, num_heads=HEADS, dropout=0.0)
    content, reference = torch.randn(2, 6, D), boxes(2, 3)
    seen = module(content, at(reference))
    for b in range(2):
        want = self_attention(module, content[b], reference[b])
        torch.testing.assert_close(seen[b], want, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_queries_beside_are_seen_and_do_not_look() -> None:
    module = ConditionalSelfAttention(d=D, num_heads=HEADS, dropout=0.0)
    content, reference = torch.randn(2, 6, D), boxes(2, 3)
    everything = module(content, at(reference))
    beside = (content[:, 2:], at(reference[:, 2:]))
    some = module(content[:, :2], at(reference[:, :2]), beside)
    torch.testing.assert_close(some, everything[:, :2], atol=1e-6, rtol=1e-5)


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"d=32 must be divisible by num_heads=5"):
        ConditionalSelfAttention(d=32, num_heads=5, dropout=0.0)


# ------------------------------------------------------------------------- cross-attention


def matching(module: MatchingAttention, queries: Aligned, level: Level, b: int) -> Tensor:
    """What the queries of one picture read, loop by loop."""
    query = module.query_content(queries.content[b]) + module.query_position(queries.position[b])
    key = module.key_content(level.tokens[b]) + module.key_position(level.position[b])
    value, width = module.value(level.tokens[b]), D // HEADS
    h, w = level.shape
    columns, rows = level.image_cells[b].tolist()
    out = torch.zeros(query.shape[0], D)
    for n in range(query.shape[0]):
        for head in range(HEADS):
            logits = torch.full((h * w,), -torch.inf)
            for y in range(h):
                for x in range(w):
                    if y >= rows or x >= columns:
                        continue
                    cell = y * w + x
                    logits[cell] = query[n, head] @ key[cell] / math.sqrt(D)  # whole features
                    if queries.sharpness is not None:
                        px, py = (queries.points[b, n, head] * level.image_cells[b]).tolist()
                        sx, sy = queries.sharpness[b, n, head].tolist()
                        near = (sx * (px - x - 0.5)) ** 2 + (sy * (py - y - 0.5)) ** 2
                        logits[cell] -= near / 8
            part = slice(head * width, (head + 1) * width)
            out[n, part] = logits.softmax(0) @ value[:, part]
    return module.out(out)


@pytest.mark.parametrize("smca", [False, True])
@torch.no_grad()
def test_every_head_compares_whole_features_and_ignores_padding(smca: bool) -> None:
    module = MatchingAttention(d=D, num_heads=HEADS, dropout=0.0)
    queries, level = aligned(smca=smca), level_of(PICTURES)
    read = module(queries, level)
    for b in range(2):
        want = matching(module, queries, level, b)
        torch.testing.assert_close(read[b], want, atol=1e-5, rtol=1e-4)


def test_spatial_modulation_is_greatest_at_the_point_and_falls_with_its_sharpness() -> None:
    level = level_of([(6, 9)])
    point = torch.tensor([(3.5 / 9, 2.5 / 6)]).view(1, 1, 1, 2)  # the centre of column 3, row 2
    bias = gaussian_bias(point, torch.tensor([2.0, 1.0]).view(1, 1, 1, 2), level).view(6, 9)
    assert bias[2, 3].item() == pytest.approx(0.0, abs=1e-9)
    assert bias[2, 4].item() == pytest.approx(-4 / 8)
    assert bias[3, 3].item() == pytest.approx(-1 / 8)
    assert bias[0, 0].item() == pytest.approx(-(4 * 9 + 4) / 8)


# ------------------------------------------------------------------------- the layer


@pytest.mark.parametrize("smca", [False, True])
@torch.no_grad()
def test_a_layer_aligns_between_its_attentions_and_normalises_each_sum(smca: bool) -> None:
    module, level = layer(smca=smca), level_of(PICTURES)
    content, reference = torch.randn(2, 6, D), boxes(2, 3)

    def norm(x: Tensor, by: nn.LayerNorm) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * by.weight + by.bias

    seen = norm(content + module.self_attention(content, at(reference)), module.self_norm)
    read = module.cross_attention(module.aligner(seen, reference, level), level)
    x = norm(seen + read, module.cross_norm)
    want = norm(x + module.ffn.linear2(module.ffn.linear1(x).relu()), module.ffn.norm)
    have = module(content, at(reference), level)
    torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_padding_holds_does_not_reach_a_query() -> None:
    module, level = layer(smca=True), level_of(PICTURES)
    content, reference = torch.randn(2, 6, D), boxes(2, 3)
    assert level.padding is not None
    bright = replace(level, tokens=level.tokens.masked_fill(level.padding.unsqueeze(-1), -90.0))
    torch.testing.assert_close(
        module(content, at(reference), level),
        module(content, at(reference), bright),
        atol=1e-5,
        rtol=1e-5,
    )


def test_biases_behind_attention_and_points_start_at_zero() -> None:
    module = layer()
    reset_biases(module)
    outputs = (module.self_attention.out, module.cross_attention.out)
    for linear in (*outputs, module.aligner.salient_points.layers[-1]):
        assert not linear.bias.any()
