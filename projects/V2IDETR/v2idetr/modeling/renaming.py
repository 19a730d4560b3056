"""Renaming as data: a table of rules maps tensors of another code base to ours, and back.

A name in a rule may hold ``{}``, any number; the numbers of both sides are the same ones in the
same order. A name that ends with "." stands for all that begin so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """Where one tensor of ours, or all below one of our modules, is in another layout.

    Attributes:
        ours: name.
        theirs: name; or the names of several tensors that make ours, one below the other.
        kernel: theirs is a convolution of one cell, (out, in, 1, 1), ours a linear layer; such
            rules are for reading alone.
    """

    ours: str
    theirs: str | tuple[str, ...]
    kernel: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def joined(ours: str, theirs: str) -> list[Rule]:
    """Rules for an ``nn.MultiheadAttention`` of ours whose query, key and value theirs has apart.

    Args:
        ours, theirs: modules; theirs has ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.
    """
    return [
        Rule(f"{ours}out_proj.", f"{theirs}out_proj."),
        *[
            Rule(f"{ours}in_proj_{kind}", tuple(f"{theirs}{part}_proj.{kind}" for part in "qkv"))
            for kind in ("weight", "bias")
        ],
    ]


def to_ours(rules: Sequence[Rule], theirs: State) -> tuple[State, list[str]]:
    """Their tensors under our names, and their names that no rule knows.

    Of a tensor with a missing part nothing is made: it is missing in the result.
    """
    state: State = {}
    parts: dict[str, dict[int, Tensor]] = {}
    unknown = []
    for name, tensor in theirs.items():
        found = _match(rules, name)
        if found is None:
            unknown.append(name)
            continue
        rule, ours, index = found
        if rule.kernel:
            tensor = tensor.flatten(1)
        if len(rule.parts) == 1:
            state[ours] = tensor
            continue
        have = parts.setdefault(ours, {})
        have[index] = tensor
        if len(have) == len(rule.parts):
            state[ours] = torch.cat([have[i] for i in range(len(have))])
    return state, unknown


def to_theirs(rules: Sequence[Rule], ours: State) -> tuple[State, list[str]]:
    """Our tensors under their names, and our names that no rule knows."""
    state: State = {}
    unknown = []
    for name, tensor in ours.items():
        names = their_names(rules, name)
        if not names:
            unknown.append(name)
            continue
        for part, chunk in zip(names, tensor.chunk(len(names)), strict=True):
            # A part by itself, since formats write storages and not views of them.
            state[part] = chunk.clone() if len(names) > 1 else chunk
    return state, unknown


def is_known(rules: Sequence[Rule], theirs: str) -> bool:
    """Whether a rule knows a name of theirs."""
    return _match(rules, theirs) is not None


def their_names(rules: Sequence[Rule], ours: str) -> list[str]:
    """Names of the tensors that make one of ours in the other layout; empty for none."""
    for rule in rules:
        names = [name for part in rule.parts if (name := fill(rule.ours, part, ours)) is not None]
        if names:
            return names
    return []


def fill(pattern: str, other: str, name: str) -> str | None:
    """``other`` with the numbers, and the rest, that ``name`` has where it matches ``pattern``."""
    match = _compiled(pattern).fullmatch(name)
    if match is None:
        return None
    *numbers, rest = (*match.groups(), "") if not pattern.endswith(".") else match.groups()
    return other.format(*numbers) + rest


def _match(rules: Sequence[Rule], theirs: str) -> tuple[Rule, str, int] | None:
    """The first rule for a name of theirs, our name, and which part of that tensor theirs is."""
    for rule in rules:
        for index, part in enumerate(rule.parts):
            ours = fill(part, rule.ours, theirs)
            if ours is not None:
                return rule, ours, index
    return None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\{\}", r"(\d+)")
    return re.compile(text + "(.+)" if pattern.endswith(".") else text)
