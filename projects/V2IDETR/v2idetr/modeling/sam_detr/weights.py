"""Weights of SAM-DETR: names in its official code, and its architecture from tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from v2idetr.modeling.code_bases import OFFICIAL_DECODER, OFFICIAL_SHARED
from v2idetr.modeling.renaming import Rule, State
from v2idetr.modeling.weight_rules import (
    Architecture,
    Layout,
    SecondName,
    WeightRules,
    deformable_points,
    transformer_settings,
)


def _attention_rules(attention: str, short: str, position: str) -> list[Rule]:
    """Rules for one of the decoder's attentions.

    Args:
        attention: our name, and the beginning of theirs for the output.
        short: what the names of their other projections begin with.
        position: how the names of their position projections end.
    """
    ours = f"decoder.{{}}.{attention}_attention."
    parts = {
        "query_content": f"{short}_qcontent_proj",
        "query_position": f"{short}_qpos{position}_proj",
        "key_content": f"{short}_kcontent_proj",
        "key_position": f"{short}_kpos{position}_proj",
        "value": f"{short}_v_proj",
        "out": f"{attention}_attn.out_proj",
    }
    return [Rule(f"{ours}{part}.", f"{OFFICIAL_DECODER}{name}.") for part, name in parts.items()]


OFFICIAL = Layout(
    name="official",
    title="the official code of SAM-DETR",
    marks=("transformer.decoder.layers.0.point1.0.weight",),
    rules=(
        *_attention_rules("self", "sa", ""),
        Rule("decoder.{}.self_norm.", f"{OFFICIAL_DECODER}norm1."),
        Rule(
            "decoder.{}.aligner.region_proj.weight",
            f"{OFFICIAL_DECODER}point1.0.weight",
            kernel=True,
        ),
        Rule("decoder.{}.aligner.region_proj.bias", f"{OFFICIAL_DECODER}point1.0.bias"),
        # ReLUs stand between the layers of an nn.Sequential
        *[
            Rule(
                f"decoder.{{}}.aligner.salient_points.layers.{i}.",
                f"{OFFICIAL_DECODER}point2.{2 * i}.",
            )
            for i in range(4)
        ],
        Rule("decoder.{}.aligner.content_gate.", f"{OFFICIAL_DECODER}attn1."),
        Rule("decoder.{}.aligner.position_gate.", f"{OFFICIAL_DECODER}attn2."),
        *_attention_rules("cross", "ca", "_sine"),
        Rule("decoder.{}.cross_norm.", f"{OFFICIAL_DECODER}norm2."),
        *OFFICIAL_SHARED,
        Rule("neck.projections.{}.", "input_proj.{}.0."),
        Rule("neck.norms.{}.", "input_proj.{}.1."),
        Rule("class_heads.{}.", "class_embed.{}."),
        Rule("box_heads.{}.", "bbox_embed.{}."),
        Rule("level_embed", "transformer.level_embed"),
    ),
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
