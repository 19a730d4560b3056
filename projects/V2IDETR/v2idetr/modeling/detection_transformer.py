"""Base of all detection transformers: backbone, neck, fusion, order of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from v2idetr.modeling.backbone import padding_isolated
from v2idetr.modeling.backbone_weights import load_imagenet_weights
from v2idetr.modeling.folded_norm import fold_frozen_norms
from v2idetr.modeling.fusion import Fusion, Slot
from v2idetr.modeling.interface import Context, Decoded, Features, Images, Memory, Place, Queries
from v2idetr.modeling.neck import Neck, flatten_levels
from v2idetr.modeling.references import token_centres, valid_ratios
from v2idetr.modeling.token_attention import TokenGrid


class DetectionTransformer(nn.Module):
    """Images to decoded queries. Implements ``interface.DetectorNetwork``.

    A subclass adds encoder, decoder and heads, and defines ``positions``, ``initial_queries`` and
    ``decode``.

    Args:
        backbone: backbone module, see ``backbone.py``.
        weights: ImageNet weights of the backbone, see ``backbone_weights.py``.
        num_classes: number of classes, K.
        num_logits: number of logits per query, see ``classification.py``.
        strides: strides of the feature levels in pixels.
        d: width.
        num_queries: number of queries, N.
        reference_dim: dimension of a query's reference, 2 or 4.
        neck_norm: "group" or "none", see ``neck.py``.
        isolate_padding: exclusion of padding from an image's features; False is the published
            behaviour, for parity with published checkpoints.
        fusion: modules that mix the frames of a clip; None for a detector of single images.

    Raises:
        ValueError: levels or fusion do not fit.
    """

    backbone: Any  # a module with output_shape()
    encoder: nn.ModuleList

    def __init__(
        self,
        *,
        backbone: nn.Module,
        weights: str | None,
        num_classes: int,
        num_logits: int,
        strides: Sequence[int],
        d: int,
        num_queries: int,
        reference_dim: int,
        neck_norm: Literal["group", "none"],
        isolate_padding: bool,
        fusion: Fusion | None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_logits, self.num_queries = num_classes, num_logits, num_queries
        self.d, self.strides, self.reference_dim = d, tuple(strides), reference_dim
        self.isolate_padding = isolate_padding
        self.backbone = fold_frozen_norms(backbone)
        load_imagenet_weights(backbone, weights)
        self.neck = Neck(
            self.backbone.output_shape(),
            strides=self.strides,
            d=d,
            norm=neck_norm,
            isolate_padding=isolate_padding,
        )
        for name, own in (("d", d), ("strides", self.strides)):
            mixer = None if fusion is None else fusion.features
            if getattr(mixer, name, own) != own:
                raise ValueError(
                    f"net.fusion.features.{name} is {getattr(mixer, name)}, but net.{name} is "
                    f"{own}: set both to the same value."
                )
        self.fusion = fusion

    def extract(self, images: Images) -> Features:
        """Backbone and neck for each image, then the slot "features"."""
        features = self.extract_images(images)
        if self.fusion is not None and self.fusion.features is not None:
            features = self.fusion.features(features)
        return features

    def encode(self, features: Features) -> Memory:
        """Encoder for each image, then the slot "memory"."""
        memory = self.encode_images(features)
        if self.fusion is not None and self.fusion.memory is not None:
            memory = self.fusion.memory(memory)
        return memory

    def queries(self, memory: Memory) -> Queries:
        """The detector's N queries for each image, then the slot "queries"."""
        queries = self.initial_queries(memory)
        if self.fusion is not None and self.fusion.queries is not None:
            queries = self.fusion.queries(queries, memory)
        return queries

    def forward(self, images: Images, current: Int[Tensor, " n"] | None = None) -> Decoded:
        """All steps; with ``current``, only these images are decoded, see ``DetectorNetwork``."""
        if current is None:
            memory = self.encode(self.extract(images))
            return self.decode(memory, self.queries(memory))
        features = self.extract(images)
        select_early = not self.mixes_frames_after("features")
        memory = self.encode(features.select(current) if select_early else features)
        if select_early:
            return self.decode(memory, self.queries(memory))
        select_early = not self.mixes_frames_after("memory")
        memory = memory.select(current) if select_early else memory
        queries = self.queries(memory)
        if not select_early:
            memory, queries = memory.select(current), queries.of_images(current)
        return self.decode(memory, queries)

    def mixes_frames_after(self, slot: Slot) -> bool:
        """Whether frames are mixed in a slot after this one."""
        return self.fusion is not None and self.fusion.is_used_after(slot)

    def extract_images(self, images: Images) -> Features:
        """Backbone and neck, for each image."""
        with padding_isolated(self.backbone, images) if self.isolate_padding else nullcontext():
            maps = self.backbone(images.pixels)
        return self.neck(maps, images)

    def encode_images(self, features: Features) -> Memory:
        """Encoder over the tokens of all levels, for each image."""
        tokens, shapes = flatten_levels(features.maps)
        padding, ratios = joined_padding(features), valid_ratios(features)
        memory = Memory(features, tokens, padding, shapes, ratios)
        image = self.token_grid(memory)
        assert image.position is not None
        place = Place(image.position, token_centres(shapes, ratios))
        for layer in self.encoder:
            image = replace(image, tokens=layer(place, image))
        memory.tokens = image.tokens
        return memory

    def token_grid(self, memory: Memory) -> TokenGrid:
        """The tokens of a memory with their position embedding."""
        position = flatten_levels(self.positions(memory.features))[0].to(memory.tokens.dtype)
        return TokenGrid(
            memory.tokens, position, memory.padding, memory.shapes, memory.valid_ratios
        )

    def positions(self, features: Features) -> dict[int, Float[Tensor, "B d h w"]]:
        """Position embedding of every level, by stride in pixels."""
        raise NotImplementedError

    def initial_queries(self, memory: Memory) -> Queries:
        """Queries of each image, N each."""
        raise NotImplementedError

    def decode(self, memory: Memory, queries: Queries, context: Context | None = None) -> Decoded:
        """Decoder outputs of queries for the memory of the same images.

        Args:
            memory: encoder output.
            queries: any number of queries.
            context: decoded queries of the same images, visible to ``queries`` in self-attention.
        """
        raise NotImplementedError


def xavier(*modules: nn.Module) -> None:
    """Xavier-uniform initialisation of all parameters of two or more dimensions."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)


def joined_padding(features: Features) -> Tensor | None:
    """Padding of the tokens of all levels, (B, S); None without padding."""
    if features.padding is None:
        return None
    return torch.cat([mask.flatten(1) for mask in features.padding.values()], 1)
