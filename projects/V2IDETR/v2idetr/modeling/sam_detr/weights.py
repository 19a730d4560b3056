"""Weights of SAM-DETR: names in its official code, and its architecture from tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from v2idetr.modeling import code_bases
from v2idetr.modeling.renaming import Rule, State
from v2idetr.modeling.weight_rules import (
    Architecture,
    SecondName,
    WeightRules,
    deformable_points,
    transformer_settings,
)

OFFICIAL = code_bases.OFFICIAL.layout(
    "SAM-DETR",
    marks=("transformer.decoder.layers.0.point1.0.weight",),
    in_decoder={
        "self_attention.query_content.": "sa_qcontent_proj.",
        "self_attention.query_position.": "sa_qpos_proj.",
        "self_attention.key_content.": "sa_kcontent_proj.",
        "self_attention.key_position.": "sa_kpos_proj.",
        "self_attention.value.": "sa_v_proj.",
        "self_attention.out.": "self_attn.out_proj.",
        "self_norm.": "norm1.",
        "aligner.region_proj.bias": "point1.0.bias",
        # ReLUs stand between the layers of an nn.Sequential
        **{f"aligner.salient_points.layers.{i}.": f"point2.{2 * i}." for i in range(4)},
        "aligner.content_gate.": "attn1.",
        "aligner.position_gate.": "attn2.",
        "cross_attention.query_content.": "ca_qcontent_proj.",
        "cross_attention.query_position.": "ca_qpos_sine_proj.",
        "cross_attention.key_content.": "ca_kcontent_proj.",
        "cross_attention.key_position.": "ca_kpos_sine_proj.",
        "cross_attention.value.": "ca_v_proj.",
        "cross_attention.out.": "cross_attn.out_proj.",
        "cross_norm.": "norm2.",
    },
    others={
        "neck.projections.{}.": "input_proj.{}.0.",
        "neck.norms.{}.": "input_proj.{}.1.",
        "class_heads.{}.": "class_embed.{}.",
        "box_heads.{}.": "bbox_embed.{}.",
        "level_embed": "transformer.level_embed",
    },
    rules=[
        Rule(
            "decoder.{}.aligner.region_proj.weight",
            "transformer.decoder.layers.{}.point1.0.weight",
            kernel=True,
        )
    ],
    second_names=(SecondName("transformer.decoder.bbox_embed.{}.", "bbox_embed.{}.", "own heads"),),
)


def _describe(state: State, known: Mapping[str, Any]) -> Architecture:
    settings = transformer_settings(state, known, class_head="class_heads.0.weight")
    heads = len(state["decoder.0.aligner.content_gate.weight"]) // settings["d"]
    points = len(state["decoder.0.aligner.salient_points.layers.3.bias"])
    settings |= {
        "num_heads": heads,
        "smca": points == 4 * heads,
        "multi_scale": "level_embed" in state,
        "neck_norm": "group" if "neck.norms.0.weight" in state else "none",
    }
    if settings["multi_scale"]:
        settings["num_points"] = deformable_points(state, settings)
    return settings


RULES = WeightRules(
    marks=("decoder.0.aligner.region_proj.weight",),
    describe=_describe,
    layouts=(OFFICIAL,),
    assumed_heads=None,
)
