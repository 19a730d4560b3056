"""Weights of Deformable DETR: names in other code bases, and its architecture from tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from v2idetr.modeling import code_bases
from v2idetr.modeling.code_bases import CodeBase
from v2idetr.modeling.renaming import State
from v2idetr.modeling.weight_rules import (
    Architecture,
    Layout,
    SecondName,
    WeightRules,
    count,
    deformable_points,
    transformer_settings,
)


def _layout(code_base: CodeBase, transformer: str, others: dict[str, str], **parts: Any) -> Layout:
    """A layout with the names of reference points, two stages and heads common to all code bases.

    Args:
        code_base: code base of the layout.
        transformer: prefix of the transformer's names.
        others, parts: see ``CodeBase.layout``.
    """
    return code_base.layout(
        "Deformable DETR",
        others={
            "reference_points.": f"{transformer}reference_points.",
            "proposal_proj.": f"{transformer}enc_output.",
            "proposal_norm.": f"{transformer}enc_output_norm.",
            "query_proj.": f"{transformer}pos_trans.",
            "query_norm.": f"{transformer}pos_trans_norm.",
            "class_heads.{}.": "class_embed.{}.",
            "box_heads.{}.": "bbox_embed.{}.",
            **others,
        },
        own_heads_mark=f"{transformer}decoder.bbox_embed.",
        second_names=(
            SecondName("class_embed.{}.", "class_embed.0.", "shared heads"),
            SecondName("bbox_embed.{}.", "bbox_embed.0.", "shared heads"),
            SecondName(f"{transformer}decoder.bbox_embed.{{}}.", "bbox_embed.{}.", "own heads"),
            SecondName(f"{transformer}decoder.class_embed.{{}}.", "class_embed.{}.", "two stages"),
        ),
        **parts,
    )


OFFICIAL = _layout(
    code_bases.OFFICIAL,
    "transformer.",
    {
        "neck.projections.{}.": "input_proj.{}.0.",
        "neck.norms.{}.": "input_proj.{}.1.",
        "level_embed": "transformer.level_embed",
    },
    marks=("transformer.decoder.layers.0.cross_attn.sampling_offsets.weight",),
    in_decoder={
        "self_attention.": "self_attn.",
        "self_norm.": "norm2.",  # numbered from the cross-attention on
        "cross_attention.": "cross_attn.",
        "cross_norm.": "norm1.",
    },
)
DETREX = _layout(
    code_bases.DETREX,
    "transformer.",
    {
        # C3, C4 and C5, then the levels beyond the backbone
        **{f"neck.projections.{i}.": f"neck.convs.{i}.conv." for i in range(3)},
        **{f"neck.norms.{i}.": f"neck.convs.{i}.norm." for i in range(3)},
        **{f"neck.projections.{3 + i}.": f"neck.extra_convs.{i}.conv." for i in range(4)},
        **{f"neck.norms.{3 + i}.": f"neck.extra_convs.{i}.norm." for i in range(4)},
        "level_embed": "transformer.level_embeds",
        "query_embed.": "query_embedding.",
    },
    marks=("transformer.decoder.layers.0.attentions.1.sampling_offsets.weight",),
    in_encoder={"attention.": "attentions.0."},
    in_decoder={"cross_attention.": "attentions.1."},
    spellings=((r"^transformer\.enc_outpout_norm\.", "transformer.enc_output_norm."),),
)
TRANSFORMERS = _layout(
    code_bases.TRANSFORMERS,
    "model.",
    {
        "neck.projections.{}.": "model.input_proj.{}.0.",
        "neck.norms.{}.": "model.input_proj.{}.1.",
        "level_embed": "model.level_embed",
    },
    marks=("model.decoder.layers.0.encoder_attn.sampling_offsets.weight",),
    in_encoder={"attention.": "self_attn."},
    in_decoder={"cross_attention.": "encoder_attn."},
    fills_heads=True,
)


def _describe(state: State, known: Mapping[str, Any]) -> Architecture:
    settings = transformer_settings(state, known, class_head="class_heads.0.weight")
    return settings | {
        "num_points": deformable_points(state, settings),
        "box_refine": count(state, "box_heads") > 1,
        "two_stage": "proposal_proj.weight" in state,
        "mixed_queries": "content_embed.weight" in state,
        "temporal": any(name.startswith("fusion.") for name in state),
    }


def _proposal_head(state: State) -> str:
    last = count(state, "class_heads") - 1
    return f"class_heads.{last}." if "proposal_proj.weight" in state else ""


def _transformers_config(architecture: Architecture) -> dict[str, Any]:
    return code_bases.transformers_config(architecture) | {
        "model_type": "deformable_detr",
        "architectures": ["DeformableDetrForObjectDetection"],
        "num_feature_levels": len(architecture["strides"]),
        "encoder_n_points": architecture["num_points"],
        "decoder_n_points": architecture["num_points"],
        "with_box_refine": architecture["box_refine"],
        "two_stage": architecture["two_stage"],
        "two_stage_num_proposals": architecture["num_queries"],
        # Version 5 would tie the heads of all layers.
        "tie_word_embeddings": not architecture["box_refine"],
    }


RULES = WeightRules(
    marks=("level_embed", "decoder.0.cross_attention.sampling_offsets.weight"),
    describe=_describe,
    layouts=(OFFICIAL, DETREX, TRANSFORMERS),
    proposal_head=_proposal_head,
    transformers_config=_transformers_config,
)
