"""DETR with explicit queries (Carion et al., ECCV 2020): attention over all cells of one level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from v2idetr.modeling.detection_transformer import DetectionTransformer, xavier
from v2idetr.modeling.detr.weights import RULES
from v2idetr.modeling.fusion import Fusion
from v2idetr.modeling.heads import MLP
from v2idetr.modeling.interface import Context, Decoded, Features, Memory, Place, Queries
from v2idetr.modeling.position import position_maps
from v2idetr.modeling.references import in_float32
from v2idetr.modeling.token_attention import GlobalAttention, SelfAttention
from v2idetr.modeling.transformer import DecoderLayer, EncoderLayer, check_width

QueryContent = Literal["given", "zero"]


class DETR(DetectionTransformer):
    """Images to decoded queries. Implements ``interface.DetectorNetwork``.

    A query is its position embedding. References of its own queries are placeholders, the image's
    centre; those of other queries are ignored.

    Args:
        backbone: backbone module, see ``backbone.py``.
        num_classes: number of classes, K; the last of K + 1 logits is "no object".
        weights: ImageNet weights of the backbone, see ``backbone_weights.py``.
        strides: stride of the one feature level in pixels.
        d: width.
        num_queries: number of queries, N.
        num_encoder_layers, num_decoder_layers: number of layers.
        num_heads, ffn_dim, dropout: parameters of every layer.
        query_content: content of other networks' queries: "given" keeps it, "zero" replaces it by
            zero, as for DETR's own queries.
        fusion: modules that mix the frames of a clip, see ``fusion.py``; None for images.
        isolate_padding: exclusion of padding from an image's features; False is the published
            behaviour, for parity with published checkpoints.

    Raises:
        ValueError: several levels; ``d`` does not fit ``num_heads``; unknown ``query_content``.
    """

    weight_rules = RULES

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
        fusion: Fusion | None = None,
        isolate_padding: bool = True,
    ) -> None:
        check_width(d, num_heads)
        if len(strides) != 1:
            raise ValueError(f"net.strides must be one level for DETR, got {list(strides)}.")
        if query_content not in ("given", "zero"):
            raise ValueError(f"net.query_content must be 'given' or 'zero', got {query_content!r}.")
        super().__init__(
            backbone=backbone,
            weights=weights,
            num_classes=num_classes,
            num_logits=num_classes + 1,  # one softmax with "no object"
            strides=strides,
            d=d,
            num_queries=num_queries,
            reference_dim=2,
            neck_norm="none",
            isolate_padding=isolate_padding,
            fusion=fusion,
        )
        self.query_content = query_content
        attention = {"d": d, "num_heads": num_heads, "dropout": dropout}
        layer = {"d": d, "ffn_dim": ffn_dim, "dropout": dropout}
        self.encoder = nn.ModuleList(
            EncoderLayer(GlobalAttention(**attention), **layer) for _ in range(num_encoder_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(SelfAttention(**attention), GlobalAttention(**attention), **layer)
            for _ in range(num_decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(d)
        self.query_embed = nn.Embedding(num_queries, d)
        self.class_head = nn.Linear(d, self.num_logits)
        self.box_head = MLP([d, d, d, 4])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The official initialisation; heads and query embedding keep torch's."""
        xavier(self.encoder, self.decoder)
        for projection in self.neck.projections:
            assert isinstance(projection, nn.Conv2d)
            projection.reset_parameters()  # the neck's own is Deformable DETR's

    # ------------------------------------------------------------------ the interface

    def positions(self, features: Features) -> dict[int, Tensor]:
        """Sine embedding of every level, by stride in pixels."""
        return position_maps(features, offset=0.0)

    def initial_queries(self, memory: Memory) -> Queries:
        """Learnt positions without content."""
        B = memory.tokens.shape[0]
        position = self.query_embed.weight.expand(B, -1, -1)
        reference = position.new_full((B, self.num_queries, self.reference_dim), 0.5)
        return Queries(torch.zeros_like(position), position, reference)

    def decode(self, memory: Memory, queries: Queries, context: Context | None = None) -> Decoded:
        """Any number of queries; their references are ignored.

        Outputs pass through the decoder's LayerNorm, but the next layer's inputs do not. Therefore
        ``content``, not ``hidden``, is visible to other queries in a context.
        """
        if self.query_content == "zero":
            queries = _without_content(queries)
            if context is not None:
                context = replace(context, queries=_without_content(context.queries))
        image = self.token_grid(memory)
        content, contents = queries.content, []
        place = Place(queries.position, queries.reference)
        for index, layer in enumerate(self.decoder):
            beside = None if context is None else context.layer_input(index)
            content = layer(content, place, image, beside)
            contents.append(content)
        stream = torch.stack(contents)
        hidden = self.decoder_norm(stream)
        boxes = in_float32(self.box_head, hidden).sigmoid()
        return Decoded(hidden, self.class_head(hidden), boxes, stream)


def _without_content(queries: Queries) -> Queries:
    """The same queries with zeros for content."""
    # Times zero keeps the graph: DistributedDataParallel requires a gradient of its parameters.
    return replace(queries, content=queries.content * 0.0)
