"""ImageNet weights of ResNets, for ``model.net.weights``, in torchvision's names."""

from __future__ import annotations

from pathlib import Path

from v2idetr.checkpoints.files import CheckpointError, listed
from v2idetr.modeling import renaming
from v2idetr.modeling.renaming import State
from v2idetr.modeling.resnet_names import (
    DEPTHS,
    PLAIN,
    describe_resnet,
    resnet_names,
    torchvision_rules,
    transformers_rules,
)

# Prefixes of a ResNet's names in a file: MoCo's first encoder (the second is its running mean),
# that of MoCo v3, transformers' classifier, or none.
PREFIXES = ("encoder_q.", "base_encoder.", "resnet.", "")
FIRST = ("conv1.weight", "stem.conv1.weight", "embedder.embedder.convolution.weight")
CLASSIFIER = ("fc.", "stem.fc.", "classifier.", "predictor.")


def prefix_of(state: State) -> str | None:
    """Prefix of a ResNet's names in a file; None without a ResNet."""
    return next((p for p in PREFIXES if any(p + first in state for first in FIRST)), None)


def to_torchvision(state: State, source: str | Path) -> tuple[State, str]:
    """A ResNet's tensors without its classifier, and its name.

    Args:
        state: tensors of a file with a :func:`prefix_of`.
        source: file name for messages.

    Raises:
        CheckpointError: an unsupported ResNet.
    """
    prefix = prefix_of(state)
    assert prefix is not None
    body = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
        and not name.removeprefix(prefix).startswith(CLASSIFIER)
        and not name.endswith("num_batches_tracked")
    }
    rules = torchvision_rules("", "")
    ours = dict(body)
    if FIRST[0] in body:
        ours, unknown = renaming.to_ours(rules, body)
    elif FIRST[2] in body:
        ours, unknown = renaming.to_ours(transformers_rules("", ""), body)
    else:
        unknown = [name for name in body if not name.startswith(("stem.conv1.", "res"))]
    kind, missing = describe_resnet(ours), [name for name in resnet_names(ours) if name not in ours]
    if unknown or missing or kind not in DEPTHS.values():
        raise CheckpointError(
            f"{source}: is a classifier, but not {PLAIN}."
            + listed("missing", missing)
            + listed("unexpected", unknown)
        )
    theirs, left = renaming.to_theirs(rules, ours)
    assert not left
    return theirs, kind
