"""The layouts of the official codes of DETR, Deformable DETR and SAM-DETR."""

from __future__ import annotations

from argparse import Namespace

from v2idetr.checkpoints.layouts import (
    Layout,
    SecondName,
    deformable_rules,
    deformable_second_names,
)
from v2idetr.checkpoints.renaming import Rule
from v2idetr.checkpoints.resnets import torchvision_rules

ENCODER, DECODER = "transformer.encoder.layers.{}.", "transformer.decoder.layers.{}."

BACKBONE = torchvision_rules("backbone.", "backbone.0.body.")
ENCODER_LAYER = [
    Rule("encoder.{}.attention.", f"{ENCODER}self_attn."),
    Rule("encoder.{}.attention_norm.", f"{ENCODER}norm1."),
    Rule("encoder.{}.ffn.norm.", f"{ENCODER}norm2."),
    Rule("encoder.{}.ffn.", ENCODER),  # linear1, linear2
]
LEVELS = [
    Rule("neck.projections.{}.", "input_proj.{}.0."),
    Rule("neck.norms.{}.", "input_proj.{}.1."),
]
HEADS = [
    Rule("query_embed.", "query_embed."),
    Rule("class_heads.{}.", "class_embed.{}."),
    Rule("box_heads.{}.", "bbox_embed.{}."),
]

DETR = Layout(
    name="official",
    network="DETR",
    title="the official code of DETR",
    marks=("transformer.decoder.layers.0.multihead_attn.in_proj_weight",),
    rules=(
        *BACKBONE,
        *ENCODER_LAYER,
        Rule("decoder.{}.self_attention.", f"{DECODER}self_attn."),
        Rule("decoder.{}.self_norm.", f"{DECODER}norm1."),
        Rule("decoder.{}.cross_attention.", f"{DECODER}multihead_attn."),
        Rule("decoder.{}.cross_norm.", f"{DECODER}norm2."),
        Rule("decoder.{}.ffn.norm.", f"{DECODER}norm3."),
        Rule("decoder.{}.ffn.", DECODER),
        Rule("decoder_norm.", "transformer.decoder.norm."),
        Rule("neck.projections.0.", "input_proj."),
        Rule("query_embed.", "query_embed."),
        Rule("class_head.", "class_embed."),
        Rule("box_head.", "bbox_embed."),
    ),
)

DEFORMABLE_DETR = Layout(
    name="official",
    network="DeformableDETR",
    title="the official code of Deformable DETR",
    marks=("transformer.decoder.layers.0.cross_attn.sampling_offsets.weight",),
    rules=(
        *BACKBONE,
        *ENCODER_LAYER,
        Rule("decoder.{}.self_attention.", f"{DECODER}self_attn."),
        Rule("decoder.{}.self_norm.", f"{DECODER}norm2."),  # counted from the cross-attention
        Rule("decoder.{}.cross_attention.", f"{DECODER}cross_attn."),
        Rule("decoder.{}.cross_norm.", f"{DECODER}norm1."),
        Rule("decoder.{}.ffn.norm.", f"{DECODER}norm3."),
        Rule("decoder.{}.ffn.", DECODER),
        *LEVELS,
        Rule("query_embed.", "query_embed."),
        Rule("level_embed", "transformer.level_embed"),
        *deformable_rules("transformer."),
    ),
    own_heads_mark="transformer.decoder.bbox_embed.",
    second_names=deformable_second_names("transformer."),
)

SAM_DETR = Layout(
    name="official",
    network="SAMDETR",
    title="the official code of SAM-DETR",
    marks=("transformer.decoder.layers.0.point1.0.weight",),
    rules=(
        *BACKBONE,
        *ENCODER_LAYER,
        Rule("decoder.{}.self_attention.query_content.", f"{DECODER}sa_qcontent_proj."),
        Rule("decoder.{}.self_attention.query_position.", f"{DECODER}sa_qpos_proj."),
        Rule("decoder.{}.self_attention.key_content.", f"{DECODER}sa_kcontent_proj."),
        Rule("decoder.{}.self_attention.key_position.", f"{DECODER}sa_kpos_proj."),
        Rule("decoder.{}.self_attention.value.", f"{DECODER}sa_v_proj."),
        Rule("decoder.{}.self_attention.out.", f"{DECODER}self_attn.out_proj."),
        Rule("decoder.{}.self_norm.", f"{DECODER}norm1."),
        Rule("decoder.{}.aligner.region_proj.weight", f"{DECODER}point1.0.weight", kernel=True),
        Rule("decoder.{}.aligner.region_proj.bias", f"{DECODER}point1.0.bias"),
        # ReLUs stand between the layers of an nn.Sequential
        *[
            Rule(f"decoder.{{}}.aligner.salient_points.layers.{i}.", f"{DECODER}point2.{2 * i}.")
            for i in range(4)
        ],
        Rule("decoder.{}.aligner.content_gate.", f"{DECODER}attn1."),
        Rule("decoder.{}.aligner.position_gate.", f"{DECODER}attn2."),
        Rule("decoder.{}.cross_attention.query_content.", f"{DECODER}ca_qcontent_proj."),
        Rule("decoder.{}.cross_attention.query_position.", f"{DECODER}ca_qpos_sine_proj."),
        Rule("decoder.{}.cross_attention.key_content.", f"{DECODER}ca_kcontent_proj."),
        Rule("decoder.{}.cross_attention.key_position.", f"{DECODER}ca_kpos_sine_proj."),
        Rule("decoder.{}.cross_attention.value.", f"{DECODER}ca_v_proj."),
        Rule("decoder.{}.cross_attention.out.", f"{DECODER}cross_attn.out_proj."),
        Rule("decoder.{}.cross_norm.", f"{DECODER}norm2."),
        Rule("decoder.{}.ffn.norm.", f"{DECODER}norm3."),
        Rule("decoder.{}.ffn.", DECODER),
        *LEVELS,
        *HEADS,
        Rule("level_embed", "transformer.level_embed"),
    ),
    second_names=(SecondName("transformer.decoder.bbox_embed.{}.", "bbox_embed.{}."),),
)


def hidden_settings(args: Namespace | None) -> dict[str, object]:
    """Settings of ours that the tensors do not show, from the command line kept beside them.

    Raises:
        ValueError: the detector was trained with something that we do not have.
    """
    if args is None:
        return {}
    if getattr(args, "dilation", False):
        raise ValueError("was trained with --dilation (DC5), which our backbones do not have")
    if getattr(args, "pre_norm", False):
        raise ValueError("was trained with --pre_norm; our layers normalise after they compute")
    if getattr(args, "position_embedding", "sine") not in ("sine", "v2"):
        raise ValueError(
            f"was trained with --position_embedding {args.position_embedding}; ours is the sine"
        )
    known = {"num_heads": "nheads", "num_queries": "num_queries", "dilation": "dilation"}
    return {ours: getattr(args, theirs) for ours, theirs in known.items() if hasattr(args, theirs)}
