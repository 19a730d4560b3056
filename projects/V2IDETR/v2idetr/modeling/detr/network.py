"""DETR with explicit queries (Carion et al., ECCV 2020): attention over all cells of one level."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from v2idetr.modeling.backbone import padding_isolated
from v2idetr.modeling.backbone_weights import load_imagenet_weights
from v2idetr.modeling.detr.weights import RULES
from v2idetr.modeling.folded_norm import fold_frozen_norms
from v2idetr.modeling.interface import Context, Decoded, Features, Images, Memory, Queries
from v2idetr.modeling.neck import Neck, flatten_levels
from v2idetr.modeling.position import position_maps
from v2idetr.modeling.references import in_float32, valid_ratios
from v2idetr.modeling.transformer import MLP, GlobalDecoderLayer, GlobalEncoderLayer, check_width

QueryContent = Literal["given", "zero"]


class DETR(nn.Module):
    """The network: images to decoded queries. Implements ``interface.DetectorNetwork``.

    A query is its position; it looks wherever attention takes it. The references of its queries
    are placeholders, the picture's centre, and those of foreign queries are not read.

    Args:
        backbone: see ``backbone.py``.
        num_classes: K; the network gives K + 1 logits, the last is "no object".
        weights: ImageNet weights of the backbone, see ``backbone_weights.py``.
        strides: the one feature level, in pixels.
        d: width.
        num_queries: N.
        num_encoder_layers, num_decoder_layers: depth.
        num_heads, ffn_dim, dropout: of every layer.
        query_content: what becomes of the content of queries from elsewhere, DETR's own being zero:
            "given" keeps it, "zero" leaves them their position alone.
        isolate_padding: features of a picture do not depend on the padding beside it; False is the
            published behaviour, for parity with published checkpoints.

    Raises:
        ValueError: more than one level; heads do not share ``d`` out; unknown ``query_content``.
    """

    weight_rules = RULES
    backbone: Any  # a module with output_shape()

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        weights: str | None = "",
        strides: Sequence[int] = (32,),
        d: int = 256,
        num_queries: int = 100,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        query_content: QueryContent = "given",
        isolate_padding: bool = True,
    ) -> None:
        super().__init__()
        check_width(d, num_heads)
        if len(strides) != 1:
            raise ValueError(f"net.strides must be one level for DETR, got {list(strides)}.")
        if query_content not in ("given", "zero"):
            raise ValueError(f"net.query_content must be 'given' or 'zero', got {query_content!r}.")
        self.d, self.num_classes, self.num_queries = d, num_classes, num_queries
        self.num_logits = num_classes + 1  # one softmax with "no object"
        self.strides = tuple(strides)
        self.query_content, self.isolate_padding = query_content, isolate_padding
        self.reference_dim = 2

        self.backbone = fold_frozen_norms(backbone)
        load_imagenet_weights(backbone, weights)
        self.neck = Neck(
            self.backbone.output_shape(),
            strides=self.strides,
            d=d,
            norm="none",
            isolate_padding=isolate_padding,
        )
        layer = {"d": d, "num_heads": num_heads, "ffn_dim": ffn_dim, "dropout": dropout}
        self.encoder = nn.ModuleList(GlobalEncoderLayer(**layer) for _ in range(num_encoder_layers))
        self.decoder = nn.ModuleList(GlobalDecoderLayer(**layer) for _ in range(num_decoder_layers))
        self.decoder_norm = nn.LayerNorm(d)
        self.query_embed = nn.Embedding(num_queries, d)
        self.class_head = nn.Linear(d, self.num_logits)
        self.box_head = MLP([d, d, d, 4])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The official initialisation; heads and query embedding keep torch's."""
        for stack in (self.encoder, self.decoder):
            for parameter in stack.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for projection in self.neck.projections:
            assert isinstance(projection, nn.Conv2d)
            projection.reset_parameters()  # the neck's own is Deformable DETR's

    # ------------------------------------------------------------------ the interface

    def extract(self, images: Images) -> Features:
        """Backbone and projection."""
        with padding_isolated(self.backbone, images) if self.isolate_padding else nullcontext():
            maps = self.backbone(images.pixels)
        return self.neck(maps, images)

    def encode(self, features: Features) -> Memory:
        """Attention between all cells, image by image."""
        tokens, shapes = flatten_levels(features.maps)
        padding = None
        if features.padding is not None:
            padding = features.padding[self.strides[0]].flatten(1)
        position = _position(features, tokens)
        for layer in self.encoder:
            tokens = layer(tokens, position, padding)
        return Memory(features, tokens, padding, shapes, valid_ratios(features))

    def queries(self, memory: Memory) -> Queries:
        """The detector's own N queries for each image."""
        B = memory.tokens.shape[0]
        position = self.query_embed.weight.expand(B, -1, -1)
        reference = position.new_full((B, self.num_queries, self.reference_dim), 0.5)
        return Queries(torch.zeros_like(position), position, reference)

    def decode(
        self,
        memory: Memory,
        queries: Queries,
        context: Context | None = None,
    ) -> Decoded:
        """Decode queries against a memory.

        A layer goes on with what the layer before left, and the outputs are that after the
        decoder's LayerNorm; so ``hidden`` is not what other queries see of these in a context, but
        ``content`` is.

        Args:
            memory: of the same images.
            queries: any number; their references are not read.
            context: decoded queries of the same images that these may look at in self-attention.
        """
        if self.query_content == "zero":
            queries = _without_content(queries)
            if context is not None:
                context = replace(context, queries=_without_content(context.queries))
        key = memory.tokens + _position(memory.features, memory.tokens)
        content, contents = queries.content, []
        for index, layer in enumerate(self.decoder):
            beside = None
            if context is not None:
                beside = (context.layer_input(index), context.queries.position)
            content = layer(content, queries.position, key, memory.tokens, memory.padding, beside)
            contents.append(content)
        stream = torch.stack(contents)
        hidden = self.decoder_norm(stream)
        boxes = in_float32(self.box_head, hidden).sigmoid()
        return Decoded(hidden, self.class_head(hidden), boxes, stream)


def _position(features: Features, tokens: Tensor) -> Tensor:
    """Sine embedding of every token's cell, (B, S, d)."""
    return flatten_levels(position_maps(features, offset=0.0))[0].to(tokens.dtype)


def _without_content(queries: Queries) -> Queries:
    """The same queries with zeros for content."""
    # Times zero keeps the graph: DistributedDataParallel waits for a gradient of what made it.
    return replace(queries, content=queries.content * 0.0)
