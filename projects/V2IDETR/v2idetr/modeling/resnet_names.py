"""Tensor names of ResNets: ours (Detectron2's), torchvision's, timm's and transformers'."""

from __future__ import annotations

import re
from collections.abc import Iterable

from v2idetr.modeling.renaming import Rule, State

NORM = ("weight", "bias", "running_mean", "running_var")  # frozen batch normalisation
STAGES = (2, 3, 4, 5)
DEPTHS: dict[
    tuple[tuple[int, ...], bool], str
] = {  # blocks of each stage, and whether they are bottlenecks
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}

PLAIN = "a plain ResNet-18, 34, 50, 101 or 152"
NOT_PLAIN = "resnet of other widths or groups"


def torchvision_rules(ours: str, theirs: str) -> list[Rule]:
    """Rules for the ResNets of torchvision, and for timm's plain ones with the same names.

    Args:
        ours, theirs: prefixes of the names.
    """
    rules = [
        Rule(f"{ours}stem.conv1.norm.", f"{theirs}bn1."),
        Rule(f"{ours}stem.conv1.", f"{theirs}conv1."),
    ]
    for stage in STAGES:
        block, layer = f"{ours}res{stage}.{{}}.", f"{theirs}layer{stage - 1}.{{}}."
        for conv in (1, 2, 3):
            rules.append(Rule(f"{block}conv{conv}.norm.", f"{layer}bn{conv}."))
            rules.append(Rule(f"{block}conv{conv}.", f"{layer}conv{conv}."))
        rules.append(Rule(f"{block}shortcut.norm.", f"{layer}downsample.1."))
        rules.append(Rule(f"{block}shortcut.", f"{layer}downsample.0."))
    return rules


def transformers_rules(ours: str, theirs: str) -> list[Rule]:
    """Rules for the ResNets of transformers; arguments as for :func:`torchvision_rules`."""
    stem = f"{theirs}embedder.embedder."
    rules = [
        Rule(f"{ours}stem.conv1.norm.", f"{stem}normalization."),
        Rule(f"{ours}stem.conv1.", f"{stem}convolution."),
    ]
    for stage in STAGES:
        block = f"{ours}res{stage}.{{}}."
        layers = f"{theirs}encoder.stages.{stage - 2}.layers.{{}}."
        pairs = [(f"conv{conv}", f"layer.{conv - 1}") for conv in (1, 2, 3)]
        for our_part, part in [*pairs, ("shortcut", "shortcut")]:
            rules.append(Rule(f"{block}{our_part}.norm.", f"{layers}{part}.normalization."))
            rules.append(Rule(f"{block}{our_part}.", f"{layers}{part}.convolution."))
    return rules


def describe_resnet(state: State) -> str:
    """ "resnet50" and so on; "resnet" for an unknown depth, :data:`NOT_PLAIN` for wide ResNets and
    those with groups; "" for another network.

    Args:
        state: tensors under our names, without the prefix before "stem.".
    """
    blocks, bottleneck = _blocks(state)
    if not all(blocks):
        return ""
    kind = DEPTHS.get((blocks, bottleneck))
    if kind is None:
        return "resnet"
    last = {"res5.0.conv3.weight": (2048, 512, 1, 1)} if bottleneck else {}
    plain = {"res2.0.conv2.weight": (64, 64, 3, 3), **last}
    # Missing tensors are reported elsewhere.
    same = all(state[n].shape == shape for n, shape in plain.items() if n in state)
    return kind if same else NOT_PLAIN


def resnet_names(names: Iterable[str]) -> list[str]:
    """All tensor names of the ResNet with these blocks.

    Args:
        names: our names, without the prefix before "stem.".
    """
    have = set(names)
    blocks, bottleneck = _blocks(have)
    convolutions = ["stem.conv1"]
    for stage, count in zip(STAGES, blocks, strict=True):
        for index in range(max(count, 1)):
            block = f"res{stage}.{index}."
            convolutions += [f"{block}conv{conv}" for conv in range(1, 4 if bottleneck else 3)]
        # The first stage has a shortcut only if it widens its input.
        if stage > STAGES[0] or any(name.startswith("res2.0.shortcut.") for name in have):
            convolutions.append(f"res{stage}.0.shortcut")
    return [
        name
        for conv in convolutions
        for name in (f"{conv}.weight", *(f"{conv}.norm.{kind}" for kind in NORM))
    ]


def _blocks(names: Iterable[str]) -> tuple[tuple[int, ...], bool]:
    """Number of blocks of each stage, and whether they are bottlenecks."""
    found = [match for name in names if (match := re.match(r"res([2-5])\.(\d+)\.(\w+)\.", name))]
    counts = [max((int(m[2]) + 1 for m in found if int(m[1]) == s), default=0) for s in STAGES]
    return tuple(counts), any(match[3] == "conv3" for match in found)
