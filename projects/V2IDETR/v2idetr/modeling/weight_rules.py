"""Rules of a detector family for reading and writing files of weights.

A network class has its :class:`WeightRules` as the class attribute ``weight_rules``. A file of
unknown origin is compared with the classes exported by the sub-packages of ``v2idetr.modeling``.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from torch import nn

import v2idetr.modeling
from v2idetr.modeling.renaming import Rule, State

# Settings of a detector, named as the arguments of its network, besides "network" (the class),
# "backbone" and "temporal" (whether it has a temporal module). All are JSON values.
Architecture = dict[str, Any]


class SecondName(NamedTuple):
    """A pattern of duplicate names for the tensors ``of`` another name in files of some detectors.

    "shared heads": detectors with one head for all layers, numbered 0.
    """

    name: str
    of: str
    when: Literal["shared heads", "own heads", "two stages"]


@dataclass(frozen=True)
class Layout:
    """Names of one detector's tensors in the files of one code base.

    Attributes:
        name: code base: "official", "detrex" or "transformers".
        title: detector and code base, for messages.
        marks: names that every such file has and that, together, no other file has.
        rules: our names and theirs.
        own_heads_mark: prefix of names that a file has if and only if each layer has its own heads;
            "" if that is always or never so.
        second_names: duplicate names, checked and dropped when a file is read.
        spellings: regular expressions for earlier or later spellings of parts of names, and the
            spellings in the rules.
        unused: regular expressions for names of tensors that detection does not need.
        fills_heads: whether heads that are equal in all layers may be stored once.
    """

    name: str
    title: str
    marks: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    own_heads_mark: str = ""
    second_names: tuple[SecondName, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = (r"\.num_batches_tracked$",)
    fills_heads: bool = False


def decoder_heads_and_strides(net: Any) -> Architecture:
    """Settings of a built DETR that are not in its tensors."""
    heads = int(net.decoder[0].self_attention.num_heads)
    return {"num_heads": heads, "strides": list(net.strides)}


def neck_channels(state: State, settings: Architecture) -> dict[int, int]:
    """Channels of the backbone's maps by stride, from the projections of the neck."""
    return {
        stride: state[f"neck.projections.{level}.weight"].shape[1]
        for level, stride in enumerate(settings["strides"])
        if stride <= 32
    }


@dataclass(frozen=True)
class WeightRules:
    """Names and meaning of the tensors of one network class.

    ``class(backbone=..., weights=None, **settings)`` must build a network of the described settings
    with the module ``backbone``; settings that are not arguments are left out.

    Attributes:
        marks: names that every state dict of this class has and, together, no other family's.
        describe: (state dict, known settings) -> settings. Known settings are those not in the
            tensors, such as "num_heads", and may be missing. KeyError with the name of a missing
            tensor.
        hidden: built network -> settings that are not in its tensors.
        backbone_channels: (state dict, settings) -> channels of the backbone's maps by stride.
        layouts: layouts of other code bases, at most one each.
        assumed_heads: number of attention heads for files without it, as in published detectors;
            None if it follows from the tensors.
        class_heads: prefix of the names of all class heads.
        proposal_head: state dict -> prefix of the class head whose first row scores proposals of
            any class; "" for none.
        transformers_config: architecture -> ``config.json`` without labels, for detectors in
            transformers.
    """

    marks: tuple[str, ...]
    describe: Callable[[State, Mapping[str, Any]], Architecture]
    hidden: Callable[[Any], Architecture] = decoder_heads_and_strides
    backbone_channels: Callable[[State, Architecture], dict[int, int]] = neck_channels
    layouts: tuple[Layout, ...] = ()
    assumed_heads: int | None = 8
    class_heads: str = "class_heads."
    proposal_head: Callable[[State], str] = lambda state: ""
    transformers_config: Callable[[Architecture], dict[str, Any]] | None = None


def rules_of(network: type) -> WeightRules | None:
    """Rules of a network class; None without its own attribute.

    A subclass may have other tensors and must repeat the attribute to have the same rules.
    """
    return vars(network).get("weight_rules")


@cache
def families() -> dict[str, type[nn.Module]]:
    """Classes with rules that the sub-packages of ``v2idetr.modeling`` export, by name."""
    folders = [m.name for m in pkgutil.iter_modules(v2idetr.modeling.__path__) if m.ispkg]
    packages = [importlib.import_module(f"v2idetr.modeling.{folder}") for folder in folders]
    exported = [value for package in packages for value in vars(package).values()]
    return {
        value.__name__: value
        for value in exported
        if isinstance(value, type) and rules_of(value) is not None
    }


def count(state: State, stack: str) -> int:
    """Number of modules in one of our stacks, such as "decoder"."""
    numbers = (re.match(rf"{re.escape(stack)}\.(\d+)\.", name) for name in state)
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def transformer_settings(
    state: State, known: Mapping[str, Any], *, class_head: str
) -> Architecture:
    """Settings that follow from the tensors of every DETR with our neck.

    Args:
        state: our tensors.
        known: "num_heads" and, unless levels are those of published detectors (whose backbones end
            at stride 32), "strides", ignored if their number is not that of the levels.
        class_head: name of a class head's weight, with one row per logit.
    """
    published = _published_strides(state)
    strides = known.get("strides") or published
    settings: Architecture = {
        "num_classes": len(state[class_head]),
        "d": state["neck.projections.0.weight"].shape[0],
        "num_heads": known.get("num_heads"),
        "num_encoder_layers": count(state, "encoder"),
        "num_decoder_layers": count(state, "decoder"),
        "ffn_dim": state["decoder.0.ffn.linear1.weight"].shape[0],
    }
    for learnt in ("query_embed.weight", "content_embed.weight"):
        if learnt in state:  # without them, the number of two-stage queries is free
            settings["num_queries"] = len(state[learnt])
    return settings | {"strides": strides if len(strides) == len(published) else published}


def deformable_points(state: State, settings: Architecture) -> int:
    """Number of reads per head and level of a deformable encoder."""
    reads = len(state["encoder.0.attention.attention_weights.bias"])
    return reads // (settings["num_heads"] * len(settings["strides"]))


def _published_strides(state: State) -> list[int]:
    """Strides of the levels: 1x1 convolutions up to stride 32, 3x3 convolutions beyond."""
    levels = count(state, "neck.projections")
    sides = [state[f"neck.projections.{i}.weight"].shape[-1] for i in range(levels)]
    last = sides.count(1) - 1  # of stride 32
    return [int(32 * 2.0 ** (level - last)) for level in range(levels)]
