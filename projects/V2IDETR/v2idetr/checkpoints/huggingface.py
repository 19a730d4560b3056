"""The layouts of Hugging Face transformers: DETR and Deformable DETR.

Its files keep the names of version 4 (``fc1``, ``out_proj``, ``backbone.conv_encoder``), though its
modules have had others since version 5. Both are read, the former are written.
"""

from __future__ import annotations

from v2idetr.checkpoints.layouts import Layout, deformable_rules, deformable_second_names
from v2idetr.checkpoints.renaming import Rule, joined
from v2idetr.checkpoints.resnets import torchvision_rules, transformers_rules

ENCODER, DECODER = "model.encoder.layers.{}.", "model.decoder.layers.{}."
BACKBONE = "model.backbone.conv_encoder.model."

SHARED = [
    # timm's ResNet, as in the published files and as we write it, or transformers' own
    *torchvision_rules("backbone.", BACKBONE),
    *transformers_rules("backbone.", BACKBONE),
    Rule("encoder.{}.attention_norm.", f"{ENCODER}self_attn_layer_norm."),
    Rule("encoder.{}.ffn.linear1.", f"{ENCODER}fc1."),
    Rule("encoder.{}.ffn.linear2.", f"{ENCODER}fc2."),
    Rule("encoder.{}.ffn.norm.", f"{ENCODER}final_layer_norm."),
    *joined("decoder.{}.self_attention.", f"{DECODER}self_attn."),
    Rule("decoder.{}.self_attention.out_proj.", f"{DECODER}self_attn.out_proj."),
    Rule("decoder.{}.self_norm.", f"{DECODER}self_attn_layer_norm."),
    Rule("decoder.{}.cross_norm.", f"{DECODER}encoder_attn_layer_norm."),
    Rule("decoder.{}.ffn.linear1.", f"{DECODER}fc1."),
    Rule("decoder.{}.ffn.linear2.", f"{DECODER}fc2."),
    Rule("decoder.{}.ffn.norm.", f"{DECODER}final_layer_norm."),
    Rule("query_embed.", "model.query_position_embeddings."),
]
SPELLINGS = (
    (r"^model\.backbone\.model\.", BACKBONE),
    (r"attn\.o_proj\.", "attn.out_proj."),
    (r"\.mlp\.fc(\d)\.", r".fc\1."),
)

DETR = Layout(
    name="transformers",
    network="DETR",
    title="transformers' DETR",
    marks=(
        "model.decoder.layers.0.encoder_attn.q_proj.weight",
        "class_labels_classifier.weight",
    ),
    rules=(
        *SHARED,
        *joined("encoder.{}.attention.", f"{ENCODER}self_attn."),
        Rule("encoder.{}.attention.out_proj.", f"{ENCODER}self_attn.out_proj."),
        *joined("decoder.{}.cross_attention.", f"{DECODER}encoder_attn."),
        Rule("decoder.{}.cross_attention.out_proj.", f"{DECODER}encoder_attn.out_proj."),
        Rule("decoder_norm.", "model.decoder.layernorm."),
        Rule("neck.projections.0.", "model.input_projection."),
        Rule("class_head.", "class_labels_classifier."),
        Rule("box_head.", "bbox_predictor."),
    ),
    spellings=SPELLINGS,
)

DEFORMABLE_DETR = Layout(
    name="transformers",
    network="DeformableDETR",
    title="transformers' Deformable DETR",
    marks=("model.decoder.layers.0.encoder_attn.sampling_offsets.weight",),
    rules=(
        *SHARED,
        Rule("encoder.{}.attention.", f"{ENCODER}self_attn."),
        Rule("decoder.{}.cross_attention.", f"{DECODER}encoder_attn."),
        Rule("neck.projections.{}.", "model.input_proj.{}.0."),
        Rule("neck.norms.{}.", "model.input_proj.{}.1."),
        Rule("level_embed", "model.level_embed"),
        *deformable_rules("model."),
    ),
    own_heads_mark="model.decoder.bbox_embed.",
    second_names=deformable_second_names("model."),
    spellings=SPELLINGS,
    fills_heads=True,
)
