"""Architecture of a detector, a dict of the settings that its weights must match.

Most settings follow from the tensors, also in files of other code bases. Each family adds its own,
see ``modeling/weight_rules.py``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from v2idetr.checkpoints.files import CheckpointError, listed
from v2idetr.checkpoints.layouts import OURS, missing_parts, names_in_file
from v2idetr.modeling.backbone import FeatureShape
from v2idetr.modeling.renaming import State
from v2idetr.modeling.resnet_names import describe_resnet, resnet_names
from v2idetr.modeling.weight_rules import Architecture, Layout, rules_of

# Settings that can differ between tensors of equal shapes.
HIDDEN = ("network", "num_heads")


def describe(net: nn.Module) -> Architecture:
    """Settings of a network; only its class without rules for weights."""
    rules = rules_of(type(net))
    if rules is None:
        return {"network": type(net).__name__}
    return describe_state(type(net), dict(net.state_dict()), rules.hidden(net))


def describe_state(
    network: type[nn.Module], state: State, known: Mapping[str, Any]
) -> Architecture:
    """Settings of a network from its tensors.

    Args:
        network: class with rules for weights.
        state: our tensors, named as in the network.
        known: settings that are not in the tensors, such as "num_heads".

    Raises:
        KeyError: a tensor is missing; names it.
    """
    rules = rules_of(network)
    assert rules is not None
    backbone = describe_resnet(_in_backbone(state)) or "other"
    return {"network": network.__name__, "backbone": backbone, **rules.describe(state, known)}


def check_complete(
    network: type[nn.Module],
    state: State,
    architecture: Architecture,
    layout: Layout,
    source: str,
    *,
    resnet: bool = True,
) -> None:
    """Compare a file's tensors with those of its architecture, except for a temporal module.

    Args:
        network: class of the detector's network with rules for weights.
        state: our tensors.
        architecture: settings of these tensors.
        layout: layout of the file, for names in messages.
        source: file name for messages.
        resnet: whether the backbone is a ResNet; other backbones are not compared.

    Raises:
        CheckpointError: lists missing, unexpected and reshaped tensors.
    """
    try:
        expected = _shapes(network, state, architecture)
    except ValueError as error:  # sizes that no complete file has
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
        f"{names_in_file(layout, [name])[0]} {tuple(state[name].shape)}, expected {shape} as ours"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if missing or unexpected or reshaped:
        raise incomplete(layout, source, missing, names_in_file(layout, unexpected), reshaped)


def incomplete(
    layout: Layout,
    source: str,
    missing: Sequence[str],
    unexpected: Sequence[str] = (),
    reshaped: Sequence[str] = (),
) -> CheckpointError:
    """The error for a file that does not match its layout.

    Args:
        layout, source: see :func:`check_complete`.
        missing: our names of missing tensors.
        unexpected: their names of unexpected tensors.
        reshaped: one line for each tensor of another shape.
    """
    parts = "".join(f" {sentence}" for sentence in missing_parts(unexpected))
    remedy = ""
    if not parts and (missing or reshaped or layout is OURS):
        remedy = "\nDownload the file again, or save the complete model.state_dict() again."
    elif not parts:
        remedy = (
            "\nIf the detector works without them, save only the others: "
            "torch.save({'model': others}, 'weights.pth')."
        )
    return CheckpointError(
        f"{source}: has the layout of {layout.title}, but is not a complete detector."
        f"{parts}"
        + listed("missing", names_in_file(layout, missing))
        + listed("unexpected", unexpected)
        + listed("of another shape", reshaped)
        + remedy
    )


class _Channels(nn.Module):
    """Placeholder of a backbone with maps of these channels by stride."""

    def __init__(self, channels: dict[int, int]) -> None:
        super().__init__()
        self.shapes = {f"c{stride}": FeatureShape(c, stride) for stride, c in channels.items()}

    def output_shape(self) -> dict[str, FeatureShape]:
        return self.shapes


def _shapes(
    network: type[nn.Module], state: State, architecture: Architecture
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network of this architecture without its backbone."""
    rules = rules_of(network)
    assert rules is not None
    taken = inspect.signature(network).parameters.keys() - {"backbone", "fusion"}
    settings = {key: value for key, value in architecture.items() if key in taken}
    backbone = _Channels(rules.backbone_channels(state, architecture))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*meta", category=UserWarning)
        net = network(backbone=backbone, weights=None, **settings)
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def _in_backbone(state: State) -> State:
    prefix = "backbone."
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
