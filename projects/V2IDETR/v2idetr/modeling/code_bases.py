"""Tensor names that the detectors of one code base share: official codes, detrex, transformers.

Files of transformers keep the names of its version 4 (``fc1``, ``out_proj``,
``backbone.conv_encoder``), though its modules have had others since version 5. Both are read, the
former are written.
"""

from __future__ import annotations

from typing import Any

from v2idetr.modeling.renaming import Rule, joined
from v2idetr.modeling.resnet_names import torchvision_rules, transformers_rules
from v2idetr.modeling.weight_rules import Architecture

# ------------------------------------------------------------------------- official codes

OFFICIAL_ENCODER = "transformer.encoder.layers.{}."
OFFICIAL_DECODER = "transformer.decoder.layers.{}."
OFFICIAL_SHARED = (
    *torchvision_rules("backbone.", "backbone.0.body."),
    Rule("encoder.{}.attention.", f"{OFFICIAL_ENCODER}self_attn."),
    Rule("encoder.{}.attention_norm.", f"{OFFICIAL_ENCODER}norm1."),
    Rule("encoder.{}.ffn.norm.", f"{OFFICIAL_ENCODER}norm2."),
    *[Rule(f"encoder.{{}}.ffn.linear{i}.", f"{OFFICIAL_ENCODER}linear{i}.") for i in (1, 2)],
    Rule("decoder.{}.ffn.norm.", f"{OFFICIAL_DECODER}norm3."),
    *[Rule(f"decoder.{{}}.ffn.linear{i}.", f"{OFFICIAL_DECODER}linear{i}.") for i in (1, 2)],
    Rule("query_embed.", "query_embed."),
)

# ------------------------------------------------------------------------- detrex
# Its backbones are Detectron2's, as ours.

DETREX_ENCODER, DETREX_DECODER = OFFICIAL_ENCODER, OFFICIAL_DECODER
DETREX_SHARED = (
    Rule("backbone.stem.", "backbone.stem."),
    *[Rule(f"backbone.res{stage}.", f"backbone.res{stage}.") for stage in (2, 3, 4, 5)],
    Rule("encoder.{}.attention_norm.", f"{DETREX_ENCODER}norms.0."),
    Rule("encoder.{}.ffn.linear1.", f"{DETREX_ENCODER}ffns.0.layers.0.0."),
    Rule("encoder.{}.ffn.linear2.", f"{DETREX_ENCODER}ffns.0.layers.1."),
    Rule("encoder.{}.ffn.norm.", f"{DETREX_ENCODER}norms.1."),
    Rule("decoder.{}.self_attention.", f"{DETREX_DECODER}attentions.0.attn."),
    Rule("decoder.{}.self_norm.", f"{DETREX_DECODER}norms.0."),
    Rule("decoder.{}.cross_norm.", f"{DETREX_DECODER}norms.1."),
    Rule("decoder.{}.ffn.linear1.", f"{DETREX_DECODER}ffns.0.layers.0.0."),
    Rule("decoder.{}.ffn.linear2.", f"{DETREX_DECODER}ffns.0.layers.1."),
    Rule("decoder.{}.ffn.norm.", f"{DETREX_DECODER}norms.2."),
)
DETREX_UNUSED = (r"\.num_batches_tracked$", r"^criterion\.")

# ------------------------------------------------------------------------- transformers

TRANSFORMERS_ENCODER, TRANSFORMERS_DECODER = "model.encoder.layers.{}.", "model.decoder.layers.{}."
TRANSFORMERS_BACKBONE = "model.backbone.conv_encoder.model."
TRANSFORMERS_SHARED = (
    # timm's ResNet, as in the published files and as we write it, or transformers' own
    *torchvision_rules("backbone.", TRANSFORMERS_BACKBONE),
    *transformers_rules("backbone.", TRANSFORMERS_BACKBONE),
    Rule("encoder.{}.attention_norm.", f"{TRANSFORMERS_ENCODER}self_attn_layer_norm."),
    Rule("encoder.{}.ffn.linear1.", f"{TRANSFORMERS_ENCODER}fc1."),
    Rule("encoder.{}.ffn.linear2.", f"{TRANSFORMERS_ENCODER}fc2."),
    Rule("encoder.{}.ffn.norm.", f"{TRANSFORMERS_ENCODER}final_layer_norm."),
    *joined("decoder.{}.self_attention.", f"{TRANSFORMERS_DECODER}self_attn."),
    Rule("decoder.{}.self_norm.", f"{TRANSFORMERS_DECODER}self_attn_layer_norm."),
    Rule("decoder.{}.cross_norm.", f"{TRANSFORMERS_DECODER}encoder_attn_layer_norm."),
    Rule("decoder.{}.ffn.linear1.", f"{TRANSFORMERS_DECODER}fc1."),
    Rule("decoder.{}.ffn.linear2.", f"{TRANSFORMERS_DECODER}fc2."),
    Rule("decoder.{}.ffn.norm.", f"{TRANSFORMERS_DECODER}final_layer_norm."),
    Rule("query_embed.", "model.query_position_embeddings."),
)
TRANSFORMERS_SPELLINGS = (
    (r"^model\.backbone\.model\.", TRANSFORMERS_BACKBONE),
    (r"attn\.o_proj\.", "attn.out_proj."),
    (r"\.mlp\.fc(\d)\.", r".fc\1."),
)


def transformers_config(architecture: Architecture) -> dict[str, Any]:
    """The part of ``config.json`` that all detectors of transformers share."""
    config = {"d_model": architecture["d"], "num_queries": architecture["num_queries"]}
    for stack in ("encoder", "decoder"):
        config |= {
            f"{stack}_layers": architecture[f"num_{stack}_layers"],
            f"{stack}_attention_heads": architecture["num_heads"],
            f"{stack}_ffn_dim": architecture["ffn_dim"],
        }
    stages = {8: 2, 16: 3, 32: 4}
    return config | {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": architecture["backbone"],
            "out_indices": [stages[stride] for stride in architecture["strides"] if stride <= 32],
            "use_pretrained_backbone": False,
            "features_only": True,
            "num_channels": 3,
        }
    }
