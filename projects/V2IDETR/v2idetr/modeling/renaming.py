"""Tables of rules that map tensors of another code base to ours, and back.

``{}`` in a name of a rule matches any number; both sides have the same numbers in the same order.
A name that ends with "." matches all names with that prefix.
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
    """Name of one of our tensors, or of all in a module, in another layout.

    Attributes:
        ours: our name.
        theirs: their name; or the names of several tensors whose concatenation is ours.
        kernel: whether theirs is a 1x1 convolution, (out, in, 1, 1), and ours a linear layer; for
            reading only.
    """

    ours: str
    theirs: str | tuple[str, ...]
    kernel: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def joined(ours: str, theirs: str) -> list[Rule]:
    """Rules for an ``nn.MultiheadAttention`` of ours with separate query, key and value in theirs.

    Args:
        ours, theirs: prefixes of the modules; theirs has ``q_proj``, ``k_proj``,
            ``v_proj`` and ``out_proj``.
    """
    return [
        Rule(f"{ours}out_proj.", f"{theirs}out_proj."),
        *[
            Rule(f"{ours}in_proj_{kind}", tuple(f"{theirs}{part}_proj.{kind}" for part in "qkv"))
            for kind in ("weight", "bias")
        ],
    ]


def to_ours(rules: Sequence[Rule], theirs: State) -> tuple[State, list[str]]:
    """Their tensors under our names, and their names without a rule.

    A tensor with a missing part is missing in the result.
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
    """Our tensors under their names, and our names without a rule."""
    state: State = {}
    unknown = []
    for name, tensor in ours.items():
        names = their_names(rules, name)
        if not names:
            unknown.append(name)
            continue
        for part, chunk in zip(names, tensor.chunk(len(names)), strict=True):
            # A copy of the part, since formats write whole storages, not views.
            state[part] = chunk.clone() if len(names) > 1 else chunk
    return state, unknown


def is_known(rules: Sequence[Rule], theirs: str) -> bool:
    """Whether a rule matches one of their names."""
    return _match(rules, theirs) is not None


def their_names(rules: Sequence[Rule], ours: str) -> list[str]:
    """Their names for one of our tensors; empty for none."""
    for rule in rules:
        names = [name for part in rule.parts if (name := fill(rule.ours, part, ours)) is not None]
        if names:
            return names
    return []


def fill(pattern: str, other: str, name: str) -> str | None:
    """``other`` with the numbers and suffix of ``name`` in ``pattern``; None without a match."""
    match = _compiled(pattern).fullmatch(name)
    if match is None:
        return None
    *numbers, rest = (*match.groups(), "") if not pattern.endswith(".") else match.groups()
    return other.format(*numbers) + rest


def _match(rules: Sequence[Rule], theirs: str) -> tuple[Rule, str, int] | None:
    """The first rule for one of their names, our name, and the index of the part."""
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
