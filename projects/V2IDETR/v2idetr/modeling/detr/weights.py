"""Weights of DETR: names in other code bases, and its architecture from tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from v2idetr.modeling import code_bases
from v2idetr.modeling.renaming import State, joined
from v2idetr.modeling.weight_rules import Architecture, WeightRules, transformer_settings

HEADS = {"class_head.": "class_embed.", "box_head.": "bbox_embed."}
OFFICIAL = code_bases.OFFICIAL.layout(
    "DETR",
    marks=("transformer.decoder.layers.0.multihead_attn.in_proj_weight",),
    in_decoder={
        "self_attention.": "self_attn.",
        "self_norm.": "norm1.",
        "cross_attention.": "multihead_attn.",
        "cross_norm.": "norm2.",
    },
    others={
        "decoder_norm.": "transformer.decoder.norm.",
        "neck.projections.0.": "input_proj.",
        **HEADS,
    },
)
DETREX = code_bases.DETREX.layout(
    "DETR",
    marks=("transformer.decoder.layers.0.attentions.1.attn.in_proj_weight",),
    in_encoder={"attention.": "attentions.0.attn."},
    in_decoder={"cross_attention.": "attentions.1.attn."},
    others={
        "decoder_norm.": "transformer.decoder.post_norm_layer.",
        "neck.projections.0.": "input_proj.",
        "query_embed.": "query_embed.",
        **HEADS,
    },
)
TRANSFORMERS = code_bases.TRANSFORMERS.layout(
    "DETR",
    marks=(
        "model.decoder.layers.0.encoder_attn.q_proj.weight",
        "class_labels_classifier.weight",
    ),
    others={
        "decoder_norm.": "model.decoder.layernorm.",
        "neck.projections.0.": "model.input_projection.",
        "class_head.": "class_labels_classifier.",
        "box_head.": "bbox_predictor.",
    },
    rules=[
        *joined("encoder.{}.attention.", "model.encoder.layers.{}.self_attn."),
        *joined("decoder.{}.cross_attention.", "model.decoder.layers.{}.encoder_attn."),
    ],
)


def _describe(state: State, known: Mapping[str, Any]) -> Architecture:
    settings = transformer_settings(state, known, class_head="class_head.weight")
    return settings | {"num_classes": settings["num_classes"] - 1}  # the last row is "no object"


def _transformers_config(architecture: Architecture) -> dict[str, Any]:
    own = {"model_type": "detr", "architectures": ["DetrForObjectDetection"]}
    return code_bases.transformers_config(architecture) | own


RULES = WeightRules(
    marks=("decoder_norm.weight", "class_head.weight"),
    describe=_describe,
    layouts=(OFFICIAL, DETREX, TRANSFORMERS),
    class_heads="class_head.",
    transformers_config=_transformers_config,
)
