"""The layouts of Hugging Face transformers: DETR and Deformable DETR.

Its files keep the names of version 4 (``fc1``, ``out_proj``, ``backbone.conv_encoder``), though its
modules have had others since version 5. Both are read, the former are written.
"""

from __future__ import annotations

from typing import Any

from v2idetr.checkpoints.layouts import Layout, deformable_rules, deformable_second_names
from v2idetr.checkpoints.renaming import Rule, joined
from v2idetr.checkpoints.resnets import DEPTHS, torchvision_rules, transformers_rules

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


def hidden_settings(config: dict[str, Any]) -> dict[str, object]:
    """Settings of ours that the tensors do not show, from the config.json beside them.

    Raises:
        ValueError: the detector has something that we do not have.
    """
    heads = {config.get(f"{stack}_attention_heads", 8) for stack in ("encoder", "decoder")}
    points = {config.get(f"{stack}_n_points", 4) for stack in ("encoder", "decoder")}
    if len(heads) > 1 or len(points) > 1:
        raise ValueError("has other heads or points in the encoder than in the decoder")
    for key, ours in (
        ("dilation", False),
        ("position_embedding_type", "sine"),
        ("activation_function", "relu"),
    ):
        if config.get(key, ours) != ours:
            raise ValueError(f"has {key}={config[key]!r} in its config.json; ours is {ours!r}")
    two_stage = config.get("two_stage", False)
    settings: dict[str, object] = {"num_heads": heads.pop()}
    if two_stage:
        settings["num_queries"] = config.get("two_stage_num_proposals", 300)
    labels = config.get("id2label")
    if isinstance(labels, dict):
        settings["class_names"] = [labels[key] for key in sorted(labels, key=int)]
    return settings


def config_of(architecture: dict[str, Any], class_names: list[str]) -> dict[str, Any]:
    """The config.json that transformers needs beside the tensors.

    Args:
        architecture: see ``architecture.py``.
        class_names: by class index.

    Raises:
        ValueError: timm, whose backbones it names, has none of this kind.
    """
    if architecture["backbone"] not in DEPTHS.values():
        raise ValueError(
            "transformers takes a backbone by name, and this is no ResNet of a known depth"
        )
    layers = {}
    for stack in ("encoder", "decoder"):
        layers |= {
            f"{stack}_layers": architecture[f"num_{stack}_layers"],
            f"{stack}_attention_heads": architecture["num_heads"],
            f"{stack}_ffn_dim": architecture["ffn_dim"],
        }
    strides = architecture["strides"]
    config = {
        "d_model": architecture["d"],
        "num_queries": architecture["num_queries"],
        **layers,
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": architecture["backbone"],
            "out_indices": [{8: 2, 16: 3, 32: 4}[stride] for stride in strides if stride <= 32],
            "use_pretrained_backbone": False,
            "features_only": True,
            "num_channels": 3,
        },
        "id2label": {str(index): name for index, name in enumerate(class_names)},
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    if architecture["network"] == "DETR":
        return config | {"model_type": "detr", "architectures": ["DetrForObjectDetection"]}
    return config | {
        "model_type": "deformable_detr",
        "architectures": ["DeformableDetrForObjectDetection"],
        "num_feature_levels": len(strides),
        "encoder_n_points": architecture["num_points"],
        "decoder_n_points": architecture["num_points"],
        "with_box_refine": architecture["box_refine"],
        "two_stage": architecture["two_stage"],
        "two_stage_num_proposals": architecture["num_queries"],
        # Version 5 would make the heads of all layers one.
        "tie_word_embeddings": not architecture["box_refine"],
    }
