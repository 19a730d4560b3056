"""Weights of Deformable DETR: names in other code bases, and its architecture from tensors."""

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
from v2idetr.modeling.renaming import Rule, State
from v2idetr.modeling.weight_rules import (
    Architecture,
    Layout,
    SecondName,
    WeightRules,
    count,
    deformable_points,
    transformer_settings,
)


def _shared_rules(prefix: str) -> list[Rule]:
    """Reference points, two stages and heads, which every code base names alike.

    Args:
        prefix: of the transformer.
    """
    return [
        Rule("reference_points.", f"{prefix}reference_points."),
        Rule("proposal_proj.", f"{prefix}enc_output."),
        Rule("proposal_norm.", f"{prefix}enc_output_norm."),
        Rule("query_proj.", f"{prefix}pos_trans."),
        Rule("query_norm.", f"{prefix}pos_trans_norm."),
        Rule("class_heads.{}.", "class_embed.{}."),
        Rule("box_heads.{}.", "bbox_embed.{}."),
    ]


def _second_names(prefix: str) -> tuple[SecondName, ...]:
    """The heads that every code base stores twice; ``prefix`` as above."""
    return (
        SecondName("class_embed.{}.", "class_embed.0.", "shared heads"),
        SecondName("bbox_embed.{}.", "bbox_embed.0.", "shared heads"),
        SecondName(f"{prefix}decoder.bbox_embed.{{}}.", "bbox_embed.{}.", "own heads"),
        SecondName(f"{prefix}decoder.class_embed.{{}}.", "class_embed.{}.", "two stages"),
    )


OFFICIAL = Layout(
    name="official",
    title="the official code of Deformable DETR",
    marks=("transformer.decoder.layers.0.cross_attn.sampling_offsets.weight",),
    rules=(
        *names.OFFICIAL_SHARED,
        Rule("decoder.{}.self_attention.", f"{OFFICIAL_DECODER}self_attn."),
        Rule("decoder.{}.self_norm.", f"{OFFICIAL_DECODER}norm2."),  # 1 is the cross-attention's
        Rule("decoder.{}.cross_attention.", f"{OFFICIAL_DECODER}cross_attn."),
        Rule("decoder.{}.cross_norm.", f"{OFFICIAL_DECODER}norm1."),
        Rule("neck.projections.{}.", "input_proj.{}.0."),
        Rule("neck.norms.{}.", "input_proj.{}.1."),
        Rule("level_embed", "transformer.level_embed"),
        *_shared_rules("transformer."),
    ),
    own_heads_mark="transformer.decoder.bbox_embed.",
    second_names=_second_names("transformer."),
)

DETREX = Layout(
    name="detrex",
    title="detrex's Deformable DETR",
    marks=("transformer.decoder.layers.0.attentions.1.sampling_offsets.weight",),
    rules=(
        *names.DETREX_SHARED,
        Rule("encoder.{}.attention.", f"{DETREX_ENCODER}attentions.0."),
        Rule("decoder.{}.cross_attention.", f"{DETREX_DECODER}attentions.1."),
        # C3, C4 and C5, then the levels beyond the backbone
        *[Rule(f"neck.projections.{i}.", f"neck.convs.{i}.conv.") for i in range(3)],
        *[Rule(f"neck.norms.{i}.", f"neck.convs.{i}.norm.") for i in range(3)],
        *[Rule(f"neck.projections.{3 + i}.", f"neck.extra_convs.{i}.conv.") for i in range(4)],
        *[Rule(f"neck.norms.{3 + i}.", f"neck.extra_convs.{i}.norm.") for i in range(4)],
        Rule("level_embed", "transformer.level_embeds"),
        *_shared_rules("transformer."),
        Rule("query_embed.", "query_embedding."),
    ),
    own_heads_mark="transformer.decoder.bbox_embed.",
    second_names=_second_names("transformer."),
    spellings=((r"^transformer\.enc_outpout_norm\.", "transformer.enc_output_norm."),),
    unused=names.DETREX_UNUSED,
)

TRANSFORMERS = Layout(
    name="transformers",
    title="transformers' Deformable DETR",
    marks=("model.decoder.layers.0.encoder_attn.sampling_offsets.weight",),
    rules=(
        *names.TRANSFORMERS_SHARED,
        Rule("encoder.{}.attention.", f"{TRANSFORMERS_ENCODER}self_attn."),
        Rule("decoder.{}.cross_attention.", f"{TRANSFORMERS_DECODER}encoder_attn."),
        Rule("neck.projections.{}.", "model.input_proj.{}.0."),
        Rule("neck.norms.{}.", "model.input_proj.{}.1."),
        Rule("level_embed", "model.level_embed"),
        *_shared_rules("model."),
    ),
    own_heads_mark="model.decoder.bbox_embed.",
    second_names=_second_names("model."),
    spellings=names.TRANSFORMERS_SPELLINGS,
    fills_heads=True,
)


def _describe(state: State, known: Mapping[str, Any]) -> Architecture:
    settings = transformer_settings(state, known, class_head="class_heads.0.weight")
    return settings | {
        "num_points": deformable_points(state, settings),
        "box_refine": count(state, "box_heads") > 1,
        "two_stage": "proposal_proj.weight" in state,
        "mixed_queries": "content_embed.weight" in state,
        "temporal": any(name.startswith("temporal.") for name in state),
    }


def _proposal_head(state: State) -> str:
    last = count(state, "class_heads") - 1
    return f"class_heads.{last}." if "proposal_proj.weight" in state else ""


def _transformers_config(architecture: Architecture) -> dict[str, Any]:
    return names.transformers_config(architecture) | {
        "model_type": "deformable_detr",
        "architectures": ["DeformableDetrForObjectDetection"],
        "num_feature_levels": len(architecture["strides"]),
        "encoder_n_points": architecture["num_points"],
        "decoder_n_points": architecture["num_points"],
        "with_box_refine": architecture["box_refine"],
        "two_stage": architecture["two_stage"],
        "two_stage_num_proposals": architecture["num_queries"],
        # Version 5 would make the heads of all layers one.
        "tie_word_embeddings": not architecture["box_refine"],
    }


RULES = WeightRules(
    marks=("level_embed", "decoder.0.cross_attention.sampling_offsets.weight"),
    describe=_describe,
    layouts=(OFFICIAL, DETREX, TRANSFORMERS),
    proposal_head=_proposal_head,
    transformers_config=_transformers_config,
)
