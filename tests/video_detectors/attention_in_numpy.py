"""Attention of one image, head by head and query by query, in double precision."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ array(layer.weight).T + array(layer.bias)


def layer_norm(norm: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    mean, std = x.mean(-1, keepdims=True), np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return (x - mean) / std * array(norm.weight) + array(norm.bias)


def attended(attention: nn.MultiheadAttention, q, k, v, keep=slice(None)) -> np.ndarray:
    """Multi-head attention to the keys of a mask."""
    d = attention.embed_dim
    weight, bias = array(attention.in_proj_weight), array(attention.in_proj_bias)
    rows = [slice(i * d, (i + 1) * d) for i in range(3)]
    q, k, v = (x @ weight[r].T + bias[r] for x, r in zip((q, k, v), rows, strict=True))
    out, c = np.zeros_like(q), d // attention.num_heads
    for head in range(attention.num_heads):
        part = slice(head * c, (head + 1) * c)
        for row in range(len(q)):
            share = softmax(k[keep][:, part] @ q[row, part] / np.sqrt(c))
            out[row, part] = share @ v[keep][:, part]
    return linear(attention.out_proj, out)


def bilinear(table: np.ndarray, x: float, y: float) -> np.ndarray:
    """A map (h, w, c) at a point in cells, 0 being the centre of the first; zero outside."""
    h, w, c = table.shape
    value = np.zeros(c)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < h and 0 <= column < w:
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * table[row, column]
    return value


def deformably_attended(attention, query, references, levels, masks) -> np.ndarray:
    """Deformable attention to maps.

    Args:
        attention: a ``DeformableAttention``.
        query: (N, d).
        references: (N, levels, 2 or 4), in [0, 1] of each level.
        levels: a map (h, w, d) each.
        masks: (h, w) each, True on padding.
    """
    heads, points, d = attention.num_heads, attention.num_points, query.shape[1]
    grid = (len(query), heads, len(levels), points)
    offsets = linear(attention.sampling_offsets, query).reshape(*grid, 2)
    weights = linear(attention.attention_weights, query).reshape(len(query), heads, -1)
    values = [
        np.where(mask[..., None], 0.0, linear(attention.value_proj, level))
        for level, mask in zip(levels, masks, strict=True)
    ]
    out, c = np.zeros_like(query), d // heads
    for n, head in np.ndindex(*grid[:2]):
        part = slice(head * c, (head + 1) * c)
        shares = softmax(weights[n, head]).reshape(grid[2:])
        for level, point in np.ndindex(*grid[2:]):
            h, w = levels[level].shape[:2]
            reference, offset = references[n, level], offsets[n, head, level, point]
            if len(reference) == 2:
                x, y = reference + offset / (w, h)
            else:
                x, y = reference[:2] + offset / points * reference[2:] / 2
            read = bilinear(values[level][..., part], x * w - 0.5, y * h - 0.5)
            out[n, part] += shares[level, point] * read
    return linear(attention.output_proj, out)


def feed_forward(ffn, x: np.ndarray) -> np.ndarray:
    """A ``FeedForward`` without dropout."""
    hidden = np.maximum(linear(ffn.linear1, x), 0)
    return layer_norm(ffn.norm, x + linear(ffn.linear2, hidden))
