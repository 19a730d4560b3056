"""The layouts of detrex: DETR and Deformable DETR. Its backbones are Detectron2's, as ours."""

from __future__ import annotations

from v2idetr.checkpoints.layouts import Layout, deformable_rules, deformable_second_names
from v2idetr.checkpoints.renaming import Rule

ENCODER, DECODER = "transformer.encoder.layers.{}.", "transformer.decoder.layers.{}."

SHARED = [
    Rule("backbone.stem.", "backbone.stem."),
    *[Rule(f"backbone.res{stage}.", f"backbone.res{stage}.") for stage in (2, 3, 4, 5)],
    Rule("encoder.{}.attention_norm.", f"{ENCODER}norms.0."),
    Rule("encoder.{}.ffn.linear1.", f"{ENCODER}ffns.0.layers.0.0."),
    Rule("encoder.{}.ffn.linear2.", f"{ENCODER}ffns.0.layers.1."),
    Rule("encoder.{}.ffn.norm.", f"{ENCODER}norms.1."),
    Rule("decoder.{}.self_attention.", f"{DECODER}attentions.0.attn."),
    Rule("decoder.{}.self_norm.", f"{DECODER}norms.0."),
    Rule("decoder.{}.cross_norm.", f"{DECODER}norms.1."),
    Rule("decoder.{}.ffn.linear1.", f"{DECODER}ffns.0.layers.0.0."),
    Rule("decoder.{}.ffn.linear2.", f"{DECODER}ffns.0.layers.1."),
    Rule("decoder.{}.ffn.norm.", f"{DECODER}norms.2."),
]
UNUSED = (r"\.num_batches_tracked$", r"^criterion\.")

DETR = Layout(
    name="detrex",
    network="DETR",
    title="detrex's DETR",
    marks=("transformer.decoder.layers.0.attentions.1.attn.in_proj_weight",),
    rules=(
        *SHARED,
        Rule("encoder.{}.attention.", f"{ENCODER}attentions.0.attn."),
        Rule("decoder.{}.cross_attention.", f"{DECODER}attentions.1.attn."),
        Rule("decoder_norm.", "transformer.decoder.post_norm_layer."),
        Rule("neck.projections.0.", "input_proj."),
        Rule("query_embed.", "query_embed."),
        Rule("class_head.", "class_embed."),
        Rule("box_head.", "bbox_embed."),
    ),
    unused=UNUSED,
)

DEFORMABLE_DETR = Layout(
    name="detrex",
    network="DeformableDETR",
    title="detrex's Deformable DETR",
    marks=("transformer.decoder.layers.0.attentions.1.sampling_offsets.weight",),
    rules=(
        *SHARED,
        Rule("encoder.{}.attention.", f"{ENCODER}attentions.0."),
        Rule("decoder.{}.cross_attention.", f"{DECODER}attentions.1."),
        # C3, C4 and C5, then the levels beyond the backbone
        *[Rule(f"neck.projections.{i}.", f"neck.convs.{i}.conv.") for i in range(3)],
        *[Rule(f"neck.norms.{i}.", f"neck.convs.{i}.norm.") for i in range(3)],
        *[Rule(f"neck.projections.{3 + i}.", f"neck.extra_convs.{i}.conv.") for i in range(4)],
        *[Rule(f"neck.norms.{3 + i}.", f"neck.extra_convs.{i}.norm.") for i in range(4)],
        Rule("level_embed", "transformer.level_embeds"),
        *deformable_rules("transformer."),
        Rule("query_embed.", "query_embedding."),
    ),
    own_heads_mark="transformer.decoder.bbox_embed.",
    second_names=deformable_second_names("transformer."),
    spellings=((r"^transformer\.enc_outpout_norm\.", "transformer.enc_output_norm."),),
    unused=UNUSED,
)
