"""SAM-DETR (Zhang et al., CVPR 2022): queries are reference boxes with semantic alignment.

The decoder's attentions are in ``decoder.py``, the aligner in ``semantics_aligner.py``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from v2idetr.modeling.deformable_attention import DeformableAttention
from v2idetr.modeling.detection_transformer import DetectionTransformer, xavier
from v2idetr.modeling.fusion import Fusion
from v2idetr.modeling.heads import DetectionHeads
from v2idetr.modeling.interface import Context, Decoded, Features, Memory, Queries
from v2idetr.modeling.position import position_maps
from v2idetr.modeling.sam_detr.decoder import reset_biases, sam_decoder_layer
from v2idetr.modeling.sam_detr.semantics_aligner import Level
from v2idetr.modeling.sam_detr.weights import RULES
from v2idetr.modeling.token_attention import GlobalAttention, LocalAttention
from v2idetr.modeling.transformer import DecoderLayer, EncoderLayer, check_width, decode_with_boxes


class SAMDETR(DetectionTransformer):
    """Images to decoded queries. Implements ``interface.DetectorNetwork``.

    A query is its reference box. Its content starts at zero, and its position is the sine embedding
    of the reference's centre in every layer: ``Queries.position`` is zero and ignored. Queries of
    other networks need content and a reference of four numbers.

    Args:
        backbone: backbone module, see ``backbone.py``.
        num_classes: number of classes, K, without "no object".
        weights: ImageNet weights of the backbone, see ``backbone_weights.py``.
        d: width.
        num_queries: number of queries, N.
        num_encoder_layers, num_decoder_layers: number of layers.
        num_heads: number of heads of every layer, and of the decoder's salient points.
        ffn_dim, dropout: parameters of every layer; half the ``ffn_dim`` in the encoder of
            ``multi_scale``.
        smca: Gaussian modulation of the cross-attention around the salient points (SMCA).
        multi_scale: C3, C4 and C5 with a deformable encoder instead of C5 with global attention;
            the decoder's first third then reads C5, its second C4, its last C3.
        num_points: number of reads per head and level of the deformable encoder.
        neck_norm: "group", as in the official runs of 12 epochs and with multiple scales, or
            "none", as in those of 50 epochs.
        fusion: modules that mix the frames of a clip, see ``fusion.py``; None for images.
        isolate_padding: exclusion of padding from an image's features; False is the published
            behaviour, for parity with published checkpoints.

    Raises:
        ValueError: number of layers does not fit ``multi_scale``, or ``d`` the heads; unknown
            ``neck_norm``.
    """

    weight_rules = RULES

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        weights: str | None = "",
        d: int = 256,
        num_queries: int = 100,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        smca: bool = False,
        multi_scale: bool = False,
        num_points: int = 4,
        neck_norm: str = "group",
        fusion: Fusion | None = None,
        isolate_padding: bool = True,
    ) -> None:
        strides = (8, 16, 32) if multi_scale else (32,)
        if num_decoder_layers % len(strides):
            raise ValueError(
                f"net.multi_scale=true gives each of {len(strides)} levels as many decoder "
                f"layers, but net.num_decoder_layers={num_decoder_layers} is no multiple of it."
            )
        check_width(d, num_heads)
        if neck_norm not in ("group", "none"):
            raise ValueError(f"net.neck_norm must be 'group' or 'none', got {neck_norm!r}.")
        super().__init__(
            backbone=backbone,
            weights=weights,
            num_classes=num_classes,
            num_logits=num_classes,  # one sigmoid a class
            strides=strides,
            d=d,
            num_queries=num_queries,
            reference_dim=4,
            neck_norm=neck_norm,
            isolate_padding=isolate_padding,
            fusion=fusion,
        )
        self.multi_scale = multi_scale
        attention = {"d": d, "num_heads": num_heads}
        layer = {"d": d, "dropout": dropout}
        if multi_scale:
            reads = {"num_levels": len(strides), "num_points": num_points}
            self.level_embed = nn.Parameter(torch.empty(len(strides), d))
            self.encoder = nn.ModuleList(
                EncoderLayer(LocalAttention(**attention, **reads), **layer, ffn_dim=ffn_dim // 2)
                for _ in range(num_encoder_layers)
            )
        else:
            self.encoder = nn.ModuleList(
                EncoderLayer(
                    GlobalAttention(**attention, dropout=dropout), **layer, ffn_dim=ffn_dim
                )
                for _ in range(num_encoder_layers)
            )
        self.decoder = nn.ModuleList(
            sam_decoder_layer(**layer, num_heads=num_heads, ffn_dim=ffn_dim, smca=smca)
            for _ in range(num_decoder_layers)
        )
        self.query_embed = nn.Embedding(num_queries, 4)  # inverse sigmoid of cxcywh
        heads = DetectionHeads.build(
            d=d, num_logits=num_classes, count=num_decoder_layers, refine=True
        )
        self.class_heads, self.box_heads = heads.classes, heads.boxes
        self.reset_parameters()

    @property
    def heads(self) -> DetectionHeads:
        """Class and box heads, one of each per decoder layer."""
        return DetectionHeads(self.class_heads, self.box_heads, refine=True)

    def reset_parameters(self) -> None:
        """The official initialisation; the backbone has its own.

        As in the official code, only the biases of the last layer of the salient points are zero.
        """
        for projection in self.neck.projections:
            assert isinstance(projection, nn.Conv2d)
            projection.reset_parameters()  # the neck's own is Deformable DETR's
        xavier(self.encoder, self.decoder)
        for module in self.encoder.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        if self.multi_scale:
            nn.init.normal_(self.level_embed)
        for layer in self.decoder:
            assert isinstance(layer, DecoderLayer)
            reset_biases(layer)
        self.heads.reset_parameters()

    # ------------------------------------------------------------------ the interface

    def initial_queries(self, memory: Memory) -> Queries:
        """Learnt boxes, the same for each image."""
        B = memory.tokens.shape[0]
        reference = self.query_embed.weight.sigmoid().expand(B, -1, -1)
        nothing = reference.new_zeros(B, self.num_queries, self.d)
        return Queries(nothing, nothing, reference)

    def decode(self, memory: Memory, queries: Queries, context: Context | None = None) -> Decoded:
        """Any number of queries, with references of 4 numbers."""
        assert queries.reference.shape[-1] == 4, "SAM-DETR needs reference boxes"
        levels, layers = self._levels(memory), len(self.decoder)
        images = [levels[-1 - i * len(levels) // layers] for i in range(layers)]  # coarsest first
        # The position is unused. With weight zero it stays in the graph, because the adapter that
        # made it needs a gradient under DistributedDataParallel.
        queries = replace(queries, content=queries.content + 0 * queries.position)
        return decode_with_boxes(self.decoder, queries, images, self.heads, context)

    # ------------------------------------------------------------------ levels

    def positions(self, features: Features) -> dict[int, Tensor]:
        """Position embedding of every level, by stride in pixels."""
        # Exact, because the embeddings of tokens are compared with those of references.
        maps = position_maps(features, offset=-0.5, exact=True)
        if not self.multi_scale:
            return maps
        return {
            stride: m + embed.view(1, -1, 1, 1)
            for (stride, m), embed in zip(maps.items(), self.level_embed, strict=True)
        }

    def _levels(self, memory: Memory) -> list[Level]:
        """Levels of the memory as inputs of decoder layers, finest first."""
        cells = [h * w for h, w in memory.shapes]
        position = self.token_grid(memory).position
        assert position is not None
        paddings = [None] * len(cells) if memory.padding is None else memory.padding.split(cells, 1)
        levels = []
        for tokens, place, padding, (h, w), ratio in zip(
            memory.tokens.split(cells, 1),
            position.split(cells, 1),
            paddings,
            memory.shapes,
            memory.valid_ratios.unbind(1),
            strict=True,
        ):
            size = ratio.new_tensor([w, h])
            image_cells = ratio * size
            # Number of cells with any pixel; the tolerance absorbs rounding of whole numbers.
            reached = (image_cells - 1e-3).ceil()
            edge = reached if self.isolate_padding else size.expand_as(image_cells)
            levels.append(Level(tokens, place, padding, (h, w), image_cells, edge))
        return levels
