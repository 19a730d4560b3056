"""A layout: what a detector's tensors are called in the files of one code base.

Reading goes layout -> ours, writing ours -> layout. Files also hold some tensors twice, under
second names; these must agree, are dropped on reading and made again on writing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from v2idetr.checkpoints import renaming
from v2idetr.checkpoints.files import CheckpointError, listed
from v2idetr.checkpoints.renaming import Rule, State, fill

# When tensors have second names: the heads of all layers are one, or one for each layer.
When = Literal["shared heads", "own heads", "two stages", "always"]


@dataclass(frozen=True)
class SecondName:
    """Tensors that a file holds again under another name.

    Attributes:
        name, of: see ``renaming``; without a number ``of`` is the first of several that are one.
        when: which files have it.
    """

    name: str
    of: str
    when: When = "always"


@dataclass(frozen=True)
class Layout:
    """Names of one detector's tensors in the files of one code base.

    Attributes:
        name: of the code base: "official", "detrex" or "transformers".
        network: our class.
        title: for messages.
        marks: names that every such file has and, together, no other.
        rules: ours and theirs.
        own_heads_mark: what names begin with where, and only where, each layer has heads of its
            own; "" where that is always or never so.
        second_names: see :class:`SecondName`.
        spellings: earlier or later ways to write parts of names, as regular expressions, and the
            one that the rules know.
        unused: names, as regular expressions, of tensors that detection does not need.
        fills_heads: heads that are equal in all layers are written once.
    """

    name: str
    network: str
    title: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    own_heads_mark: str = ""
    second_names: tuple[SecondName, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = (r"\.num_batches_tracked$",)
    fills_heads: bool = False

    def respelled(self, state: State) -> State:
        """The tensors that matter, spelled as the rules know them."""
        result = {}
        for name, tensor in state.items():
            if any(re.search(pattern, name) for pattern in self.unused):
                continue
            for pattern, spelling in self.spellings:
                name = re.sub(pattern, spelling, name)
            result[name] = tensor
        return result

    def knows(self, state: State) -> int:
        """How many of a file's names are of this layout."""
        return sum(renaming.is_known(self.rules, name) for name in self.respelled(state))

    def to_ours(self, state: State, source: str | Path) -> tuple[State, list[str]]:
        """Our tensors, and the names of those that we have no place for.

        Args:
            state: of a file in this layout.
            source: for messages.

        Raises:
            CheckpointError: tensors that must be one differ.
        """
        state = self.respelled(state)
        mark = self.own_heads_mark
        own = bool(mark) and any(name.startswith(mark) for name in state)
        # Without two stages there are no such names, and dropping them does nothing.
        active = [row for row in self.second_names if _applies(row.when, own, two_stage=True)]
        state = _without_second_names(state, active, source)
        ours, unknown = renaming.to_ours(self.rules, state)
        if self.fills_heads and own:
            ours = _with_all_heads(ours)
        return ours, unknown

    def from_ours(self, state: State, source: str | Path) -> State:
        """A file's tensors in this layout.

        Args:
            state: our tensors, of a detector of :attr:`network`.
            source: for messages.

        Raises:
            CheckpointError: the layout has no place for some of them.
        """
        theirs, unknown = renaming.to_theirs(self.rules, state)
        if unknown:
            parts = "".join(f" {sentence}" for sentence in missing_parts(unknown))
            raise CheckpointError(
                f"{source}: has tensors that the layout of {self.title} has no place for.{parts}"
                + listed("without a place", unknown)
            )
        heads, layers = count(state, "class_heads"), count(state, "decoder")
        own, two_stage = heads > 1, "proposal_proj.weight" in state
        for row in self.second_names:
            if not _applies(row.when, own, two_stage):
                continue
            for index in range(heads if own or row.when == "always" else layers):
                first, second = row.of.format(index), row.name.format(index)
                if first != second:
                    theirs |= _under_another_name(theirs, first, second)
        return theirs

    def missing(self, names: Sequence[str]) -> list[str]:
        """Our names as the file would have them."""
        return [part for name in names for part in renaming.their_names(self.rules, name) or [name]]


def deformable_rules(prefix: str) -> list[Rule]:
    """What every code base of Deformable DETR calls alike: reference points, two stages, heads.

    Args:
        prefix: of the transformer.
    """
    return [
        Rule("reference_points.", f"{prefix}reference_points."),
        Rule("proposal_proj.", f"{prefix}enc_output."),
        Rule("proposal_norm.", f"{prefix}enc_output_norm."),
        Rule("query_proj.", f"{prefix}pos_trans."),
        Rule("query_norm.", f"{prefix}pos_trans_norm."),
        Rule("class_heads.{}.", "class_embed.{}."),
        Rule("box_heads.{}.", "bbox_embed.{}."),
    ]


def deformable_second_names(prefix: str) -> tuple[SecondName, ...]:
    """The heads that every code base of Deformable DETR writes twice; ``prefix`` as above."""
    return (
        SecondName("class_embed.{}.", "class_embed.0.", "shared heads"),
        SecondName("bbox_embed.{}.", "bbox_embed.0.", "shared heads"),
        SecondName(f"{prefix}decoder.bbox_embed.{{}}.", "bbox_embed.{}.", "own heads"),
        SecondName(f"{prefix}decoder.class_embed.{{}}.", "class_embed.{}.", "two stages"),
    )


def count(state: State, stack: str) -> int:
    """How many numbered modules a stack of ours has."""
    numbers = (re.match(rf"{stack}\.(\d+)\.", name) for name in state)
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def _applies(when: When, own: bool, two_stage: bool) -> bool:
    return {
        "shared heads": not own,
        "own heads": own,
        "two stages": two_stage,
        "always": True,
    }[when]


def _without_second_names(state: State, rows: Sequence[SecondName], source: str | Path) -> State:
    result = dict(state)
    for row in rows:
        for name in state:
            first = fill(row.name, row.of, name)
            if first is None or first == name:
                continue
            tensor = result.pop(name)
            if first not in result:
                result[first] = tensor
            elif not torch.equal(tensor, result[first]):
                raise CheckpointError(
                    f"{source}: {name} and {first} should be one tensor, but they differ; the "
                    "file was put together from several, or is of a detector that we do not have."
                )
    return result


def _under_another_name(state: State, first: str, second: str) -> State:
    return {
        second + name.removeprefix(first): tensor.clone()
        for name, tensor in state.items()
        if name.startswith(first)
    }


def _with_all_heads(state: State) -> State:
    """Give every layer the first head where the file holds it once for all."""
    result, layers = dict(state), max(count(state, "class_heads"), count(state, "box_heads"))
    for heads in ("class_heads", "box_heads"):
        if count(state, heads) == 1:
            for index in range(1, layers):
                result |= _under_another_name(state, f"{heads}.0.", f"{heads}.{index}.")
    return result


# Parts of other detectors, by a name that gives them away. In our names or in theirs.
PARTS_ELSEWHERE = (
    (r"(^|\.)(mask_head|bbox_attention)\.", "It has a segmentation head, which we do not have."),
    (
        r"(^|\.)(label_enc|tgt_embed|label_encoder|denoising_generator)\.",
        "It has queries of DINO or DN-DETR, which we do not have.",
    ),
    (
        r"(^|\.)ref_point_head\.",
        "It has the reference points of Conditional DETR, DAB-DETR or DINO, which we do not have.",
    ),
    (
        r"\.(ca_qpos_proj|ca_qpos_sine_proj|q_pos_sine_proj)\.",
        "It has the cross-attention of Conditional DETR or DAB-DETR, which we do not have.",
    ),
    (r"(row|col|column)_embed", "It has a learnt position embedding; ours is the sine."),
    (
        r"^(transformer\.encoder\.(norm|post_norm_layer)|model\.encoder\.layernorm)\.",
        "Its layers normalise before they compute (--pre_norm); ours do so after.",
    ),
    (r"^bbox_head\.", "It is a file of MMDetection, whose layout is not known here."),
    (
        r"^detr\.(transformer|backbone)\.",
        "It is a file of DETR's Detectron2 wrapper; convert the file that it was made from.",
    ),
    (r"^backbone\.body\.", "Its backbone is one of timm's; other code bases expect a ResNet."),
    (
        r"^content_embed\.",
        "Its two-stage queries have learnt contents (mixed_queries), which exist nowhere else.",
    ),
    (r"^fusion\.", "It is a teacher: its fusion of frames exists nowhere else."),
)


def missing_parts(names: Sequence[str]) -> list[str]:
    """Sentences about the parts of other detectors that these names belong to."""
    return [
        sentence
        for pattern, sentence in PARTS_ELSEWHERE
        if any(re.search(pattern, name) for name in names)
    ]
