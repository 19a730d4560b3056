"""SAM-DETR (Zhang et al., CVPR 2022): queries are reference boxes, made to match semantically.

The decoder's layers are in ``sam_decoder.py``, what they align in ``semantics_aligner.py``.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from v2idetr.modeling.backbone import padding_isolated
from v2idetr.modeling.backbone_weights import load_imagenet_weights
from v2idetr.modeling.deformable_attention import DeformableAttention
from v2idetr.modeling.folded_norm import fold_frozen_norms
from v2idetr.modeling.interface import Context, Decoded, Features, Images, Memory, Queries
from v2idetr.modeling.neck import Neck, flatten_levels
from v2idetr.modeling.position import position_maps
from v2idetr.modeling.references import in_float32, move, token_centres, valid_ratios
from v2idetr.modeling.sam_detr.decoder import SAMDecoderLayer
from v2idetr.modeling.sam_detr.semantics_aligner import Level
from v2idetr.modeling.sam_detr.weights import RULES
from v2idetr.modeling.transformer import MLP, EncoderLayer, GlobalEncoderLayer, check_width


class SAMDETR(nn.Module):
    """The network: images to decoded queries. Implements ``interface.DetectorNetwork``.

    A query is its reference box. It starts with content zero, and its position is the sine
    embedding of the reference's centre, made anew in every layer: ``Queries.position`` is zero and
    not looked at. Queries from elsewhere bring their content and a reference of four numbers.

    Args:
        backbone: see ``backbone.py``.
        num_classes: K; no "no object" class.
        weights: ImageNet weights of the backbone, see ``backbone_weights.py``.
        d: width.
        num_queries: N.
        num_encoder_layers, num_decoder_layers: depth.
        num_heads: of every layer; each head of the decoder has one salient point.
        ffn_dim, dropout: of every layer; the encoder of ``multi_scale`` has half the ``ffn_dim``.
        smca: a Gaussian around the salient points modulates the cross-attention (SAM-DETR w/ SMCA).
        multi_scale: C3, C4 and C5 and a deformable encoder instead of C5 and an ordinary one; the
            decoder's first third then reads C5, its second C4, its last C3.
        num_points: reads per head and level of the deformable encoder of ``multi_scale``.
        neck_norm: "group", as in the official runs of 12 epochs and at multiple scales, or "none",
            as in those of 50 epochs.
        isolate_padding: features of a picture do not depend on the padding beside it; False is the
            published behaviour, for parity with published checkpoints.

    Raises:
        ValueError: depth does not fit ``multi_scale``, or heads ``d``; unknown ``neck_norm``.
    """

    weight_rules = RULES
    backbone: Any  # a module with output_shape()

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
        isolate_padding: bool = True,
    ) -> None:
        super().__init__()
        self.strides = (8, 16, 32) if multi_scale else (32,)
        if num_decoder_layers % len(self.strides):
            raise ValueError(
                f"net.multi_scale=true gives each of {len(self.strides)} levels as many decoder "
                f"layers, but net.num_decoder_layers={num_decoder_layers} is no multiple of it."
            )
        check_width(d, num_heads)
        if neck_norm not in ("group", "none"):
            raise ValueError(f"net.neck_norm must be 'group' or 'none', got {neck_norm!r}.")
        self.d, self.num_classes, self.num_queries = d, num_classes, num_queries
        self.num_logits = num_classes  # one sigmoid a class
        self.reference_dim = 4
        self.isolate_padding, self.multi_scale = isolate_padding, multi_scale

        self.backbone = fold_frozen_norms(backbone)
        load_imagenet_weights(backbone, weights)
        self.neck = Neck(
            self.backbone.output_shape(),
            strides=self.strides,
            d=d,
            norm=neck_norm,
            isolate_padding=isolate_padding,
        )
        layer = {"d": d, "num_heads": num_heads, "dropout": dropout}
        if multi_scale:
            deformable = {"num_levels": len(self.strides), "num_points": num_points}
            self.level_embed = nn.Parameter(torch.empty(len(self.strides), d))
            self.encoder = nn.ModuleList(
                EncoderLayer(**layer, **deformable, ffn_dim=ffn_dim // 2)
                for _ in range(num_encoder_layers)
            )
        else:
            self.encoder = nn.ModuleList(
                GlobalEncoderLayer(**layer, ffn_dim=ffn_dim) for _ in range(num_encoder_layers)
            )
        self.decoder = nn.ModuleList(
            SAMDecoderLayer(**layer, ffn_dim=ffn_dim, smca=smca) for _ in range(num_decoder_layers)
        )
        self.query_embed = nn.Embedding(num_queries, 4)  # inverse sigmoid of cxcywh
        self.class_heads = nn.ModuleList(
            nn.Linear(d, num_classes) for _ in range(num_decoder_layers)
        )
        self.box_heads = nn.ModuleList(MLP([d, d, d, 4]) for _ in range(num_decoder_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The official initialisation; the backbone has its own.

        The official code sets the last layer of the salient points to zero and then overwrites its
        weights with those of the whole transformer; so do we.
        """
        for projection in self.neck.projections:
            assert isinstance(projection, nn.Conv2d)
            projection.reset_parameters()  # the neck's own is Deformable DETR's
        for stack in (self.encoder, self.decoder):
            for parameter in stack.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.encoder.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        if self.multi_scale:
            nn.init.normal_(self.level_embed)
        for layer in self.decoder:
            assert isinstance(layer, SAMDecoderLayer)
            layer.reset_biases()
        for head in self.class_heads:
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias, -math.log(99))  # focal loss: a prior of 1 % for "lesion"
        for head in self.box_heads:
            assert isinstance(head, MLP)
            for parameter in head.layers[-1].parameters():
                nn.init.zeros_(parameter)
        for heads in (self.class_heads, self.box_heads):
            for head in heads[1:]:
                head.load_state_dict(heads[0].state_dict())

    # ------------------------------------------------------------------ the interface

    def extract(self, images: Images) -> Features:
        """Backbone and neck."""
        with padding_isolated(self.backbone, images) if self.isolate_padding else nullcontext():
            maps = self.backbone(images.pixels)
        return self.neck(maps, images)

    def encode(self, features: Features) -> Memory:
        """Encoder, image by image."""
        tokens, shapes = flatten_levels(features.maps)
        position = flatten_levels(self._positions(features))[0].to(tokens.dtype)
        padding = None
        if features.padding is not None:
            padding = torch.cat([mask.flatten(1) for mask in features.padding.values()], 1)
        ratios = valid_ratios(features)
        if self.multi_scale:
            reference = token_centres(shapes, ratios).unsqueeze(2) * ratios.unsqueeze(1)
            for layer in self.encoder:
                tokens = layer(tokens, position, reference, shapes, padding)
        else:
            for layer in self.encoder:
                tokens = layer(tokens, position, padding)
        return Memory(features, tokens, padding, shapes, ratios)

    def queries(self, memory: Memory) -> Queries:
        """The detector's own N queries: learnt boxes, the same for each image."""
        B = memory.tokens.shape[0]
        reference = self.query_embed.weight.sigmoid().expand(B, -1, -1)
        nothing = reference.new_zeros(B, self.num_queries, self.d)
        return Queries(nothing, nothing, reference)

    def decode(
        self,
        memory: Memory,
        queries: Queries,
        context: Context | None = None,
    ) -> Decoded:
        """Decode queries against a memory; every layer refines the boxes of the layer before.

        Args:
            memory: of the same images.
            queries: any number; references of 4 numbers.
            context: decoded queries of the same images that these may look at in self-attention.
        """
        assert queries.reference.shape[-1] == 4, "SAM-DETR takes the region of a box"
        levels = self._levels(memory)
        # Nothing of the position counts. With weight zero it stays in the graph, because an adapter
        # that has made it must have a gradient under DistributedDataParallel.
        content = queries.content + 0 * queries.position
        reference = queries.reference
        hidden, logits, boxes = [], [], []
        for index, layer in enumerate(self.decoder):
            level = levels[-1 - index * len(levels) // len(self.decoder)]  # coarsest first
            beside = None
            if context is not None:
                beside = (context.layer_input(index), _layer_reference(context, index))
            content = layer(content, reference, level, beside)
            box = move(reference, in_float32(self.box_heads[index], content))
            hidden.append(content)
            logits.append(self.class_heads[index](content))
            boxes.append(box)
            reference = box.detach()
        return Decoded(torch.stack(hidden), torch.stack(logits), torch.stack(boxes))

    # ------------------------------------------------------------------ levels

    def _positions(self, features: Features) -> dict[int, Tensor]:
        """Position embedding of every level, by stride."""
        # Exact, because the sines of tokens are matched with those of references.
        maps = position_maps(features, offset=-0.5, exact=True)
        if not self.multi_scale:
            return maps
        return {
            stride: m + embed.view(1, -1, 1, 1)
            for (stride, m), embed in zip(maps.items(), self.level_embed, strict=True)
        }

    def _levels(self, memory: Memory) -> list[Level]:
        """The memory as decoder layers read it, finest level first."""
        cells = [h * w for h, w in memory.shapes]
        position = flatten_levels(self._positions(memory.features))[0].to(memory.tokens.dtype)
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
            picture = ratio * size
            # Cells that any pixel reaches; a whole number of cells stays one in spite of rounding.
            reached = (picture - 1e-3).ceil()
            edge = reached if self.isolate_padding else size.expand_as(picture)
            levels.append(Level(tokens, place, padding, (h, w), picture, edge))
        return levels


def _layer_reference(context: Context, layer: int) -> Tensor:
    """References of the context's queries as they entered a decoder layer."""
    return context.queries.reference if layer == 0 else context.decoded.boxes[layer - 1]
