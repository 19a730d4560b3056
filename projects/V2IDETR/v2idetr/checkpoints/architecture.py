"""What a detector is, as far as weights must agree with it: a dict of its settings.

Most of them show in the tensors, so a file of another code base says them too; the number of heads
does so in SAM-DETR alone. All names are those of the networks' arguments, besides "network" (the
class), "backbone" and "temporal" (has a temporal module).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from v2idetr.checkpoints.files import CheckpointError, listed
from v2idetr.checkpoints.layouts import Layout, count, missing_parts
from v2idetr.checkpoints.renaming import State
from v2idetr.checkpoints.resnets import describe_resnet, resnet_names
from v2idetr.modeling.backbone import FeatureShape
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.detr import DETR
from v2idetr.modeling.sam_detr import SAMDETR

Architecture = dict[str, Any]

NETWORKS = {"DETR": DETR, "DeformableDETR": DeformableDETR, "SAMDETR": SAMDETR}
# Names that every file of ours has of this network and no other.
MARKS = {
    "DETR": ("decoder_norm.weight", "class_head.weight"),
    "DeformableDETR": ("level_embed", "decoder.0.cross_attention.sampling_offsets.weight"),
    "SAMDETR": ("decoder.0.aligner.region_proj.weight",),
}
# What tensors of the right shapes can still disagree in.
HIDDEN = ("network", "num_heads")


def network_of(state: State) -> str:
    """The class of ours that has tensors of these names; "" for none of them."""
    return next((n for n, marks in MARKS.items() if all(mark in state for mark in marks)), "")


def describe(net: nn.Module) -> Architecture:
    """Settings of a network of ours; of any other one its class alone."""
    network = type(net).__name__
    if NETWORKS.get(network) is not type(net):
        return {"network": network}
    ours: Any = net
    num_heads = int(ours.decoder[0].self_attention.num_heads)
    return describe_state(network, dict(net.state_dict()), num_heads, list(ours.strides))


def describe_state(
    network: str, state: State, num_heads: int, strides: list[int] | None = None
) -> Architecture:
    """Settings that tensors show, and those given that they do not show.

    Args:
        network: our class.
        state: our tensors, named as in the network.
        num_heads: of a layer; SAM-DETR's tensors show it themselves.
        strides: of the levels, in pixels; None for the published detectors', whose backbones end
            at 32. Taken as None where they are not as many as the levels.

    Raises:
        KeyError: a tensor is missing; it is named.
    """
    ffn = "decoder.0.ffn.linear1.weight"
    d = state["neck.projections.0.weight"].shape[0]
    if network == "SAMDETR":
        num_heads = len(state["decoder.0.aligner.content_gate.weight"]) // d
    settings: Architecture = {
        "network": network,
        "backbone": _backbone(state),
        "num_classes": len(state[_class_head(network)]) - (network == "DETR"),
        "d": d,
        "num_heads": num_heads,
        "num_encoder_layers": count(state, "encoder"),
        "num_decoder_layers": count(state, "decoder"),
        "ffn_dim": state[ffn].shape[0],
    }
    for learnt in ("query_embed.weight", "content_embed.weight"):
        if learnt in state:  # two-stage queries without any are as many as one wants
            settings["num_queries"] = len(state[learnt])
    published = _published_strides(state)
    fits = strides is not None and len(strides) == len(published)
    settings["strides"] = strides if fits else published
    if network == "DeformableDETR":
        settings |= {
            "num_points": _points(state, num_heads, len(published)),
            "box_refine": count(state, "box_heads") > 1,
            "two_stage": "proposal_proj.weight" in state,
            "mixed_queries": "content_embed.weight" in state,
            "temporal": any(name.startswith("fusion.") for name in state),
        }
    if network == "SAMDETR":
        points = len(state["decoder.0.aligner.salient_points.layers.3.bias"])
        multi_scale = "level_embed" in state
        settings |= {
            "smca": points == 4 * num_heads,
            "multi_scale": multi_scale,
            "neck_norm": "group" if "neck.norms.0.weight" in state else "none",
        }
        if multi_scale:
            settings["num_points"] = _points(state, num_heads, len(published))
    return settings


def check_complete(
    state: State, architecture: Architecture, layout: Layout, source: str, *, resnet: bool = True
) -> None:
    """Compare a file with what its architecture needs; a temporal module is left out of it.

    Args:
        state: our tensors.
        architecture: of them.
        layout: of the file, whose names are shown.
        source: for messages.
        resnet: the backbone must be one; otherwise it is left out, too.

    Raises:
        CheckpointError: lists what is missing, has another shape or has no place.
    """
    try:
        expected = _shapes(architecture, state)
    except ValueError as error:  # numbers that no whole file has
        raise CheckpointError(f"{source}: {error}") from error
    backbone = resnet_names(_in_backbone(state)) if resnet else []
    needed = dict.fromkeys([*(f"backbone.{name}" for name in backbone), *expected])
    missing = [name for name in needed if name not in state]
    left_out = ("fusion.",) if resnet else ("fusion.", "backbone.")
    unexpected = [
        name
        for name in state
        if name not in needed
        and not name.startswith(left_out)
        and not name.endswith(".num_batches_tracked")
    ]
    reshaped = [
        f"{layout.missing([name])[0]} {tuple(state[name].shape)}, expected {shape} as ours"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if missing or unexpected or reshaped:
        raise incomplete(layout, source, missing, layout.missing(unexpected), reshaped)


def incomplete(
    layout: Layout,
    source: str,
    missing: Sequence[str],
    unexpected: Sequence[str] = (),
    reshaped: Sequence[str] = (),
) -> CheckpointError:
    """The error for a file that is not what its layout says.

    Args:
        layout, source: see :func:`check_complete`.
        missing: our names.
        unexpected: their names.
        reshaped: what is wrong, one line each.
    """
    parts = "".join(f" {sentence}" for sentence in missing_parts(unexpected))
    remedy = ""
    if not parts and (missing or reshaped or layout.name == "ours"):
        remedy = "\nGet the file again, or save all of model.state_dict() again."
    elif not parts:
        remedy = (
            "\nIf the detector works without them, save the others alone: "
            "torch.save({'model': others}, 'weights.pth')."
        )
    return CheckpointError(
        f"{source}: has the layout of {layout.title}, but is not a whole detector that we have."
        f"{parts}"
        + listed("missing", layout.missing(missing))
        + listed("unexpected", unexpected)
        + listed("of another shape", reshaped)
        + remedy
    )


class _Channels(nn.Module):
    """Stands for a backbone that gives maps of these channels, by stride."""

    def __init__(self, channels: dict[int, int]) -> None:
        super().__init__()
        self.shapes = {f"c{stride}": FeatureShape(c, stride) for stride, c in channels.items()}

    def output_shape(self) -> dict[str, FeatureShape]:
        return self.shapes


def _shapes(architecture: Architecture, state: State) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a network of this architecture has besides its backbone."""
    network = NETWORKS[architecture["network"]]
    channels = {
        stride: state[f"neck.projections.{level}.weight"].shape[1]
        for level, stride in enumerate(architecture["strides"])
        if stride <= 32
    }
    named = {"network", "backbone", "temporal"}
    if architecture["network"] == "SAMDETR":
        named.add("strides")  # follow from multi_scale
    settings = {key: value for key, value in architecture.items() if key not in named}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*meta", category=UserWarning)
        net = network(backbone=_Channels(channels), weights=None, **settings)
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def _class_head(network: str) -> str:
    return "class_head.weight" if network == "DETR" else "class_heads.0.weight"


def _published_strides(state: State) -> list[int]:
    """Strides of the levels: 1x1 convolutions end at 32, those of 3x3 go on from there."""
    levels = count(state, "neck.projections")
    sides = [state[f"neck.projections.{i}.weight"].shape[-1] for i in range(levels)]
    last = sides.count(1) - 1  # of stride 32
    return [int(32 * 2.0 ** (level - last)) for level in range(levels)]


def _points(state: State, num_heads: int, levels: int) -> int:
    return len(state["encoder.0.attention.attention_weights.bias"]) // (num_heads * levels)


def _backbone(state: State) -> str:
    return describe_resnet(_in_backbone(state)) or "other"


def _in_backbone(state: State) -> State:
    prefix = "backbone."
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
