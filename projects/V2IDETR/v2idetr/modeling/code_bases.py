"""Tensor names common to the detectors of a code base: official codes, detrex, transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from v2idetr.modeling.renaming import Rule, joined
from v2idetr.modeling.resnet_names import torchvision_rules, transformers_rules
from v2idetr.modeling.weight_rules import Architecture, Layout


@dataclass(frozen=True)
class CodeBase:
    """Tensor names common to all detectors of a code base.

    Attributes:
        name, spellings, unused: see ``weight_rules.Layout``.
        title: title with ``{}`` for the detector.
        encoder, decoder: patterns of layer names.
        in_encoder, in_decoder: names in a layer, ours to theirs.
        rules: rules for other names.
    """

    name: str
    title: str
    encoder: str
    decoder: str
    in_encoder: Mapping[str, str]
    in_decoder: Mapping[str, str]
    rules: Sequence[Rule]
    spellings: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = (r"\.num_batches_tracked$",)

    def layout(
        self,
        detector: str,
        *,
        in_encoder: Mapping[str, str] = {},
        in_decoder: Mapping[str, str] = {},
        others: Mapping[str, str] = {},
        rules: Sequence[Rule] = (),
        **settings: Any,
    ) -> Layout:
        """Layout of one detector.

        Args:
            detector: name for messages.
            in_encoder, in_decoder: additional names in a layer, ours to theirs.
            others: names outside the layers, ours to theirs.
            rules: rules for names of another form.
            settings: further arguments of ``weight_rules.Layout``.
        """
        places = (
            ("encoder.{}.", self.encoder, {**self.in_encoder, **in_encoder}),
            ("decoder.{}.", self.decoder, {**self.in_decoder, **in_decoder}),
            ("", "", others),
        )
        own = [Rule(a + x, b + y) for a, b, names in places for x, y in names.items()]
        return Layout(
            **{"spellings": self.spellings, "unused": self.unused, **settings},
            name=self.name,
            title=self.title.format(detector),
            rules=(*self.rules, *own, *rules),
        )


def _ffn(linear1: str, linear2: str, norm: str) -> dict[str, str]:
    return {"ffn.linear1.": linear1, "ffn.linear2.": linear2, "ffn.norm.": norm}


OFFICIAL = CodeBase(
    name="official",
    title="the official code of {}",
    encoder="transformer.encoder.layers.{}.",
    decoder="transformer.decoder.layers.{}.",
    in_encoder={
        "attention.": "self_attn.",
        "attention_norm.": "norm1.",
        **_ffn("linear1.", "linear2.", "norm2."),
    },
    in_decoder=_ffn("linear1.", "linear2.", "norm3."),
    rules=[
        *torchvision_rules("backbone.", "backbone.0.body."),
        Rule("query_embed.", "query_embed."),
    ],
)
DETREX = CodeBase(
    name="detrex",
    title="detrex's {}",
    encoder="transformer.encoder.layers.{}.",
    decoder="transformer.decoder.layers.{}.",
    in_encoder={
        "attention_norm.": "norms.0.",
        **_ffn("ffns.0.layers.0.0.", "ffns.0.layers.1.", "norms.1."),
    },
    in_decoder={
        "self_attention.": "attentions.0.attn.",
        "self_norm.": "norms.0.",
        "cross_norm.": "norms.1.",
        **_ffn("ffns.0.layers.0.0.", "ffns.0.layers.1.", "norms.2."),
    },
    # Its backbones, like ours, are Detectron2's.
    rules=[
        Rule(f"backbone.{p}.", f"backbone.{p}.") for p in ("stem", "res2", "res3", "res4", "res5")
    ],
    unused=(r"\.num_batches_tracked$", r"^criterion\."),
)
# Files of transformers keep the names of its version 4 (``fc1``, ``out_proj``), though its modules
# have had others since version 5. Both are read, those of version 4 are written.
_BACKBONE = "model.backbone.conv_encoder.model."
TRANSFORMERS = CodeBase(
    name="transformers",
    title="transformers' {}",
    encoder="model.encoder.layers.{}.",
    decoder="model.decoder.layers.{}.",
    in_encoder={
        "attention_norm.": "self_attn_layer_norm.",
        **_ffn("fc1.", "fc2.", "final_layer_norm."),
    },
    in_decoder={
        "self_norm.": "self_attn_layer_norm.",
        "cross_norm.": "encoder_attn_layer_norm.",
        **_ffn("fc1.", "fc2.", "final_layer_norm."),
    },
    rules=[
        # timm's ResNet, as in published files and in ours, or transformers' own
        *torchvision_rules("backbone.", _BACKBONE),
        *transformers_rules("backbone.", _BACKBONE),
        *joined("decoder.{}.self_attention.", "model.decoder.layers.{}.self_attn."),
        Rule("query_embed.", "model.query_position_embeddings."),
    ],
    spellings=(
        (r"^model\.backbone\.model\.", _BACKBONE),
        (r"attn\.o_proj\.", "attn.out_proj."),
        (r"\.mlp\.fc(\d)\.", r".fc\1."),
    ),
)


def transformers_config(architecture: Architecture) -> dict[str, Any]:
    """The part of ``config.json`` common to all detectors of transformers."""
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
