"""Deformable DETR with explicit queries (Zhu et al., ICLR 2021).

With a temporal module between the neck and the encoder it is the teacher of V2I-DETR; without one
it is a detector for single images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from v2idetr.modeling.backbone import padding_isolated
from v2idetr.modeling.backbone_weights import load_imagenet_weights
from v2idetr.modeling.deformable_attention import DeformableAttention
from v2idetr.modeling.deformable_detr.weights import RULES
from v2idetr.modeling.folded_norm import fold_frozen_norms
from v2idetr.modeling.interface import (
    Context,
    Decoded,
    Features,
    Images,
    Memory,
    Proposals,
    Queries,
    select_queries,
)
from v2idetr.modeling.neck import Neck, flatten_levels
from v2idetr.modeling.position import position_maps, sine_embedding
from v2idetr.modeling.references import in_float32, move, token_centres, valid_ratios
from v2idetr.modeling.transformer import MLP, DecoderLayer, EncoderLayer


class DeformableDETR(nn.Module):
    """The network: images to decoded queries. Implements ``interface.DetectorNetwork``.

    Args:
        backbone: see ``backbone.py``.
        num_classes: K; no "no object" class.
        weights: ImageNet weights of the backbone, see ``backbone_weights.py``.
        strides: feature levels in pixels.
        d: width.
        num_queries: N.
        num_encoder_layers, num_decoder_layers: depth.
        num_heads, num_points, ffn_dim, dropout: of every layer.
        box_refine: every decoder layer refines the box of the layer before; heads are then not
            shared between layers.
        two_stage: queries are the encoder's best proposals instead of learnt embeddings; needs
            ``box_refine``.
        mixed_queries: with ``two_stage``, only position and reference come from the proposals and
            the content is learnt (DINO, Zhang et al., ICLR 2023, section 3.4): proposals of one
            place are then different queries from the first layer on.
        temporal: a module that mixes the T frames of each clip, level by level, or None.
        isolate_padding: features of a picture do not depend on the padding beside it; False is the
            published behaviour, for parity with published checkpoints.

    Raises:
        ValueError: options that need each other, widths, levels or ``temporal`` do not fit.
    """

    weight_rules = RULES
    backbone: Any  # a module with output_shape()

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
        temporal: nn.Module | None = None,
        isolate_padding: bool = True,
    ) -> None:
        super().__init__()
        if two_stage and not box_refine:
            raise ValueError("two_stage=true needs box_refine=true: proposals are boxes to refine.")
        if mixed_queries and not two_stage:
            raise ValueError("mixed_queries=true needs two_stage=true, whose queries it mixes.")
        self.d, self.num_classes, self.num_queries = d, num_classes, num_queries
        self.num_logits = num_classes  # one sigmoid a class
        self.strides = tuple(strides)
        self.box_refine, self.two_stage, self.isolate_padding = (
            box_refine,
            two_stage,
            isolate_padding,
        )
        self.reference_dim = 4 if two_stage else 2

        self.backbone = fold_frozen_norms(backbone)
        load_imagenet_weights(backbone, weights)
        self.neck = Neck(
            self.backbone.output_shape(), strides=self.strides, d=d, isolate_padding=isolate_padding
        )
        for name, own in (("d", d), ("strides", self.strides)):
            if getattr(temporal, name, own) != own:
                raise ValueError(
                    f"net.temporal.{name} is {getattr(temporal, name)}, but net.{name} is {own}; "
                    "the temporal module mixes the very features of the detector: make them agree."
                )
        self.temporal = temporal
        layer = {
            "d": d,
            "num_heads": num_heads,
            "num_levels": len(self.strides),
            "num_points": num_points,
            "ffn_dim": ffn_dim,
            "dropout": dropout,
        }
        self.level_embed = nn.Parameter(torch.empty(len(self.strides), d))
        self.encoder = nn.ModuleList(EncoderLayer(**layer) for _ in range(num_encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(**layer) for _ in range(num_decoder_layers))
        if two_stage:
            self.proposal_proj, self.proposal_norm = nn.Linear(d, d), nn.LayerNorm(d)
            width = d if mixed_queries else 2 * d
            self.query_proj, self.query_norm = nn.Linear(2 * d, width), nn.LayerNorm(width)
            self.content_embed = nn.Embedding(num_queries, d) if mixed_queries else None
        else:
            self.query_embed = nn.Embedding(num_queries, 2 * d)
            self.reference_points = nn.Linear(d, 2)
        heads = num_decoder_layers + two_stage if box_refine else 1
        self.class_heads = nn.ModuleList(nn.Linear(d, num_classes) for _ in range(heads))
        self.box_heads = nn.ModuleList(MLP([d, d, d, 4]) for _ in range(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The official initialisation; backbone, neck and temporal module have their own."""
        stacks = [self.encoder, self.decoder]
        if self.two_stage:
            stacks += [self.proposal_proj, self.query_proj]
        for stack in stacks:
            for parameter in stack.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
            for module in stack.modules():
                if isinstance(module, DeformableAttention):
                    module.reset_parameters()
        nn.init.normal_(self.level_embed)
        if not self.two_stage:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        for head in self.class_heads:
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias, -math.log(99))  # focal loss: a prior of 1 % for "lesion"
        for head in self.box_heads:
            nn.init.zeros_(_last_layer(head).weight)
            nn.init.zeros_(_last_layer(head).bias)
        for heads in (self.class_heads, self.box_heads):
            for head in heads[1:]:
                head.load_state_dict(heads[0].state_dict())
        if not self.two_stage:  # a bare centre needs a size; anchors and refined boxes have one
            nn.init.constant_(_last_layer(self.box_heads[0]).bias[2:], -2.0)

    # ------------------------------------------------------------------ the interface

    def extract(self, images: Images) -> Features:
        """Backbone, neck and, for clips, the temporal module."""
        with padding_isolated(self.backbone, images) if self.isolate_padding else nullcontext():
            maps = self.backbone(images.pixels)
        features = self.neck(maps, images)
        if self.temporal is not None:
            features = self.temporal(features, images.num_frames)
        return features

    def encode(self, features: Features) -> Memory:
        """Deformable encoder over all levels, image by image."""
        tokens, shapes = flatten_levels(features.maps)
        maps = position_maps(features, offset=-0.5)
        position = {
            stride: m + embed.view(1, -1, 1, 1)
            for (stride, m), embed in zip(maps.items(), self.level_embed, strict=True)
        }
        position_tokens = flatten_levels(position)[0].to(tokens.dtype)
        padding = None
        if features.padding is not None:
            padding = torch.cat([mask.flatten(1) for mask in features.padding.values()], 1)
        ratios = valid_ratios(features)
        reference = token_centres(shapes, ratios).unsqueeze(2) * ratios.unsqueeze(1)
        for layer in self.encoder:
            tokens = layer(tokens, position_tokens, reference, shapes, padding)
        memory = Memory(features, tokens, padding, shapes, ratios)
        if self.two_stage:
            memory.proposals = self._propose(memory)
        return memory

    def queries(self, memory: Memory) -> Queries:
        """The detector's own N queries for each image."""
        B = memory.tokens.shape[0]
        if memory.proposals is not None:
            return self._queries_from_proposals(memory.proposals)
        position, content = self.query_embed.weight.split(self.d, dim=1)
        reference = in_float32(self.reference_points, position).sigmoid()
        return Queries(
            content.expand(B, -1, -1), position.expand(B, -1, -1), reference.expand(B, -1, -1)
        )

    def decode(
        self,
        memory: Memory,
        queries: Queries,
        context: Context | None = None,
    ) -> Decoded:
        """Decode queries against a memory.

        Args:
            memory: of the same images.
            queries: any number; references of 2 or 4 numbers.
            context: decoded queries of the same images that these may look at in self-attention.
        """
        reference, content = queries.reference, queries.content
        hidden, logits, boxes = [], [], []
        for index, layer in enumerate(self.decoder):
            head = index if self.box_refine else 0
            scale = memory.valid_ratios.unsqueeze(1)  # (B, 1, levels, 2)
            if reference.shape[-1] == 4:
                scale = torch.cat([scale, scale], -1)
            beside = None
            if context is not None:
                beside = (context.layer_input(index), context.queries.position)
            content = layer(
                content,
                queries.position,
                reference.unsqueeze(2) * scale,
                memory.tokens,
                memory.shapes,
                memory.padding,
                beside,
            )
            box = move(reference, in_float32(self.box_heads[head], content))
            hidden.append(content)
            logits.append(self.class_heads[head](content))
            boxes.append(box)
            if self.box_refine:
                reference = box.detach()
        return Decoded(torch.stack(hidden), torch.stack(logits), torch.stack(boxes))

    # ------------------------------------------------------------------ two-stage

    def _propose(self, memory: Memory) -> Proposals:
        """A box at every token: its cell, of a size that doubles with the level, moved."""
        centres = token_centres(memory.shapes, memory.valid_ratios)
        sizes = [
            centres.new_full((h * w, 2), 0.05 * 2.0**level)
            for level, (h, w) in enumerate(memory.shapes)
        ]
        anchors = torch.cat([centres, torch.cat(sizes).expand(len(centres), -1, -1)], -1)
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
                f"num_queries={self.num_queries} but the picture has only {S} tokens to propose "
                "boxes from; use fewer queries or larger pictures."
            )
        # Proposals only know lesion from background: the first logit, as in the official code.
        score = proposals.logits[..., 0].masked_fill(~proposals.valid, -torch.inf)
        best = score.topk(self.num_queries, dim=1).indices
        reference = select_queries(proposals.boxes, best).detach()
        embedded = self.query_norm(self.query_proj(sine_embedding(reference, self.d // 2)))
        if self.content_embed is not None:
            content = self.content_embed.weight.expand(len(embedded), -1, -1)
            return Queries(content, embedded, reference)
        position, content = embedded.split(self.d, dim=-1)
        return Queries(content, position, reference)


def _last_layer(head: nn.Module) -> nn.Linear:
    assert isinstance(head, MLP)
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    return last
