"""Weights of DETR: names in other code bases, and its architecture from tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from v2idetr.modeling import code_bases as names
from v2idetr.modeling.code_bases import (
    DETREX_DECODER,
    DETREX_ENCODER,
    OFFICIAL_DECODER,
    TRANSFORMERS_DECODER,
    TRANSFORMERS_ENCODER,
)
from v2idetr.modeling.renaming import Rule, State, joined
from v2idetr.modeling.weight_rules import (
    Architecture,
    Layout,
    WeightRules,
    transformer_settings,
)

OFFICIAL = Layout(
    name="official",
    title="the official code of DETR",
    marks=("transformer.decoder.layers.0.multihead_attn.in_proj_weight",),
    rules=(
        *names.OFFICIAL_SHARED,
        Rule("decoder.{}.self_attention.", f"{OFFICIAL_DECODER}self_attn."),
        Rule("decoder.{}.self_norm.", f"{OFFICIAL_DECODER}norm1."),
        Rule("decoder.{}.cross_attention.", f"{OFFICIAL_DECODER}multihead_attn."),
        Rule("decoder.{}.cross_norm.", f"{OFFICIAL_DECODER}norm2."),
        Rule("decoder_norm.", "transformer.decoder.norm."),
        Rule("neck.projections.0.", "input_proj."),
        Rule("class_head.", "class_embed."),
        Rule("box_head.", "bbox_embed."),
    ),
)

DETREX = Layout(
    name="detrex",
    title="detrex's DETR",
    marks=("transformer.decoder.layers.0.attentions.1.attn.in_proj_weight",),
    rules=(
        *names.DETREX_SHARED,
        Rule("encoder.{}.attention.", f"{DETREX_ENCODER}attentions.0.attn."),
        Rule("decoder.{}.cross_attention.", f"{DETREX_DECODER}attentions.1.attn."),
        Rule("decoder_norm.", "transformer.decoder.post_norm_layer."),
        Rule("neck.projections.0.", "input_proj."),
        Rule("query_embed.", "query_embed."),
        Rule("class_head.", "class_embed."),
        Rule("box_head.", "bbox_embed."),
    ),
    unused=names.DETREX_UNUSED,
)

TRANSFORMERS = Layout(
    name="transformers",
    title="transformers' DETR",
    marks=(
        "model.decoder.layers.0.encoder_attn.q_proj.weight",
        "class_labels_classifier.weight",
    ),
    rules=(
        *names.TRANSFORMERS_SHARED,
        *joined("encoder.{}.attention.", f"{TRANSFORMERS_ENCODER}self_attn."),
        *joined("decoder.{}.cross_attention.", f"{TRANSFORMERS_DECODER}encoder_attn."),
        Rule("decoder_norm.", "model.decoder.layernorm."),
        Rule("neck.projections.0.", "model.input_projection."),
        Rule("class_head.", "class_labels_classifier."),
        Rule("box_head.", "bbox_predictor."),
    ),
    spellings=names.TRANSFORMERS_SPELLINGS,
)


def _describe(state: State, known: Mapping[str, Any]) -> Architecture:
    settings = transformer_settings(state, known, class_head="class_head.weight")
    return settings | {"num_classes": settings["num_classes"] - 1}  # the last row is "no object"


def _transformers_config(architecture: Architecture) -> dict[str, Any]:
    own = {"model_type": "detr", "architectures": ["DetrForObjectDetection"]}
    return names.transformers_config(architecture) | own


RULES = WeightRules(
    marks=("decoder_norm.weight", "class_head.weight"),
    describe=_describe,
    layouts=(OFFICIAL, DETREX, TRANSFORMERS),
    class_heads="class_head.",
    transformers_config=_transformers_config,
)
