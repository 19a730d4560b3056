"""Deformable DETR with explicit queries (Zhu et al., ICLR 2021).

With MSI in the fusion slot "features" it is the teacher of V2I-DETR; without any fusion it is a
detector for single images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from v2idetr.modeling.deformable_attention import DeformableAttention
from v2idetr.modeling.deformable_detr.weights import RULES
from v2idetr.modeling.detection_transformer import DetectionTransformer, xavier
from v2idetr.modeling.fusion import Fusion
from v2idetr.modeling.heads import MLP, DetectionHeads
from v2idetr.modeling.interface import (
    Context,
    Decoded,
    Features,
    Memory,
    Proposals,
    Queries,
    select_queries,
)
from v2idetr.modeling.position import position_maps, sine_embedding
from v2idetr.modeling.references import in_float32, move, token_centres
from v2idetr.modeling.token_attention import LocalAttention, SelfAttention, TokenGrid
from v2idetr.modeling.transformer import DecoderLayer, EncoderLayer, decode_with_boxes


class DeformableDETR(DetectionTransformer):
    """Images to decoded queries. Implements ``interface.DetectorNetwork``.

    Args:
        backbone: backbone module, see ``backbone.py``.
        num_classes: number of classes, K, without "no object".
        weights: ImageNet weights of the backbone, see ``backbone_weights.py``.
        strides: strides of the feature levels in pixels.
        d: width.
        num_queries: number of queries, N.
        num_encoder_layers, num_decoder_layers: number of layers.
        num_heads, num_points, ffn_dim, dropout: parameters of every layer.
        box_refine: refinement of the previous layer's box by every decoder layer, with separate
            heads for each layer.
        two_stage: queries from the encoder's best proposals instead of learnt embeddings; needs
            ``box_refine``.
        mixed_queries: with ``two_stage``, positions and references from the proposals, but learnt
            content (DINO, Zhang et al., ICLR 2023, section 3.4), so that proposals at one place
            give different queries from the first layer on.
        fusion: modules that mix the frames of a clip, see ``fusion.py``; None for images.
        isolate_padding: exclusion of padding from an image's features; False is the published
            behaviour, for parity with published checkpoints.

    Raises:
        ValueError: options, widths, levels or ``fusion`` do not fit together.
    """

    weight_rules = RULES

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        weights: str | None = "",
        strides: Sequence[int] = (8, 16, 32, 64),
        d: int = 256,
        num_queries: int = 100,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        box_refine: bool = False,
        two_stage: bool = False,
        mixed_queries: bool = False,
        fusion: Fusion | None = None,
        isolate_padding: bool = True,
    ) -> None:
        if two_stage and not box_refine:
            raise ValueError("two_stage=true needs box_refine=true: proposals are boxes to refine.")
        if mixed_queries and not two_stage:
            raise ValueError("mixed_queries=true needs two_stage=true, whose queries it mixes.")
        super().__init__(
            backbone=backbone,
            weights=weights,
            num_classes=num_classes,
            num_logits=num_classes,  # one sigmoid a class
            strides=strides,
            d=d,
            num_queries=num_queries,
            reference_dim=4 if two_stage else 2,
            neck_norm="group",
            isolate_padding=isolate_padding,
            fusion=fusion,
        )
        self.box_refine, self.two_stage = box_refine, two_stage
        attention = {"d": d, "num_heads": num_heads}
        reads = {"num_levels": len(self.strides), "num_points": num_points}
        layer = {"d": d, "ffn_dim": ffn_dim, "dropout": dropout}
        self.level_embed = nn.Parameter(torch.empty(len(self.strides), d))
        self.encoder = nn.ModuleList(
            EncoderLayer(LocalAttention(**attention, **reads), **layer)
            for _ in range(num_encoder_layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(
                SelfAttention(**attention, dropout=dropout),
                LocalAttention(**attention, **reads),
                **layer,
            )
            for _ in range(num_decoder_layers)
        )
        if two_stage:
            self.proposal_proj, self.proposal_norm = nn.Linear(d, d), nn.LayerNorm(d)
            width = d if mixed_queries else 2 * d
            self.query_proj, self.query_norm = nn.Linear(2 * d, width), nn.LayerNorm(width)
            self.content_embed = nn.Embedding(num_queries, d) if mixed_queries else None
        else:
            self.query_embed = nn.Embedding(num_queries, 2 * d)
            self.reference_points = nn.Linear(d, 2)
        heads = DetectionHeads.build(
            d=d,
            num_logits=num_classes,
            count=num_decoder_layers + two_stage if box_refine else 1,
            refine=box_refine,
        )
        self.class_heads, self.box_heads = heads.classes, heads.boxes
        self.reset_parameters()

    @property
    def heads(self) -> DetectionHeads:
        """Class and box heads; with two stages, the last ones are the encoder's."""
        return DetectionHeads(self.class_heads, self.box_heads, self.box_refine)

    def reset_parameters(self) -> None:
        """The official initialisation; backbone, neck and fusion have their own."""
        for stack in (self.encoder, self.decoder):
            xavier(stack)
            for module in stack.modules():
                if isinstance(module, DeformableAttention):
                    module.reset_parameters()
        if self.two_stage:
            xavier(self.proposal_proj, self.query_proj)
        nn.init.normal_(self.level_embed)
        if not self.two_stage:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        self.heads.reset_parameters()
        if not self.two_stage:  # references without size get an initial one
            first = self.box_heads[0]
            assert isinstance(first, MLP)
            nn.init.constant_(first.last.bias[2:], -2.0)

    # ------------------------------------------------------------------ the interface

    def positions(self, features: Features) -> dict[int, Tensor]:
        """Sine and level embedding of every level, by stride in pixels."""
        maps = position_maps(features, offset=-0.5)
        return {
            stride: m + embed.view(1, -1, 1, 1)
            for (stride, m), embed in zip(maps.items(), self.level_embed, strict=True)
        }

    def encode(self, features: Features) -> Memory:
        """Encoder and, with two stages, its proposals, made of tokens whose frames are mixed."""
        memory = super().encode(features)
        if self.two_stage:
            memory.proposals = self._propose(memory)
        return memory

    def initial_queries(self, memory: Memory) -> Queries:
        """Learnt queries, or the encoder's best proposals."""
        B = memory.tokens.shape[0]
        if memory.proposals is not None:
            return self._queries_from_proposals(memory.proposals)
        position, content = (x.contiguous() for x in self.query_embed.weight.split(self.d, dim=1))
        reference = in_float32(self.reference_points, position).sigmoid()
        return Queries(
            content.expand(B, -1, -1), position.expand(B, -1, -1), reference.expand(B, -1, -1)
        )

    def decode(self, memory: Memory, queries: Queries, context: Context | None = None) -> Decoded:
        """Queries of any number, with references of 2 or 4 numbers."""
        image = TokenGrid(memory.tokens, None, memory.padding, memory.shapes, memory.valid_ratios)
        images = [image] * len(self.decoder)
        return decode_with_boxes(self.decoder, queries, images, self.heads, context)

    # ------------------------------------------------------------------ two-stage

    def _propose(self, memory: Memory) -> Proposals:
        """One box per token: an anchor at its cell, doubling with the level, moved by the head."""
        centres = token_centres(memory.shapes, memory.valid_ratios)
        sizes = [
            centres.new_full((h * w, 2), 0.05 * 2.0**level)
            for level, (h, w) in enumerate(memory.shapes)
        ]
        anchors = torch.cat([centres, torch.cat(sizes).expand(centres.shape[0], -1, -1)], -1)
        valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1)
        if memory.padding is not None:
            valid = valid & ~memory.padding
        tokens = memory.tokens.masked_fill(~valid.unsqueeze(-1), 0.0)
        tokens = self.proposal_norm(self.proposal_proj(tokens))
        boxes = move(anchors.clamp(0.01, 0.99), in_float32(self.box_heads[-1], tokens))
        return Proposals(self.class_heads[-1](tokens), boxes, valid)

    def _queries_from_proposals(self, proposals: Proposals) -> Queries:
        S = proposals.logits.shape[1]
        if self.num_queries > S:
            raise ValueError(
                f"num_queries={self.num_queries} but the image has only {S} tokens to propose "
                "boxes from; use fewer queries or larger images."
            )
        # The first logit scores lesion against background, as in the official code.
        score = proposals.logits[..., 0].masked_fill(~proposals.valid, -torch.inf)
        best = score.topk(self.num_queries, dim=1).indices
        reference = select_queries(proposals.boxes, best).detach()
        embedded = self.query_norm(self.query_proj(sine_embedding(reference, self.d // 2)))
        if self.content_embed is not None:
            content = self.content_embed.weight.expand(embedded.shape[0], -1, -1)
            return Queries(content, embedded, reference)
        position, content = embedded.split(self.d, dim=-1)
        return Queries(content, position, reference)
