"""Reading and writing files of other code bases by the layouts of all detector families.

Files have duplicates of some tensors under second names, which are checked and dropped on reading.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from v2idetr.checkpoints.files import CheckpointError, listed
from v2idetr.modeling import renaming
from v2idetr.modeling.renaming import State, fill
from v2idetr.modeling.weight_rules import Layout, WeightRules, count, families, rules_of

OURS = Layout("ours", "this project")


def known_layouts() -> list[tuple[type[nn.Module], Layout]]:
    """All layouts of all families, with their network classes."""
    return [(network, layout) for network, rules in _families() for layout in rules.layouts]


def network_of(state: State) -> str:
    """Name of the network class with these tensor names; "" if no family matches."""
    found = (net for net, rules in _families() if all(mark in state for mark in rules.marks))
    return next((network.__name__ for network in found), "")


def layout_of(state: State) -> tuple[type[nn.Module], Layout] | None:
    """Network class and layout of another code base's file, from its names; None if unknown."""
    return next((pair for pair in known_layouts() if all(m in state for m in pair[1].marks)), None)


def find_layout(state: State, source: str | Path) -> tuple[type[nn.Module], Layout]:
    """As :func:`layout_of`.

    Args:
        state: tensors of the file.
        source: file name for messages.

    Raises:
        CheckpointError: the layout is unknown.
    """
    found = layout_of(state)
    if found is not None:
        return found
    layouts = [layout for _, layout in known_layouts()]
    parts = missing_parts(list(state))
    if not parts:
        known = {layout.title: _count_known(layout, state) for layout in layouts}
        nearest = max(layouts, key=lambda layout: known[layout.title])
        lacking = [mark for mark in nearest.marks if mark not in state]
        parts = ["It has names such as " + ", ".join([*state][:3]) + "."]
        if known[nearest.title]:
            parts.append(
                f"It is most similar to {nearest.title}, but has no {' and no '.join(lacking)}."
            )
    titles = ", ".join(layout.title for layout in layouts)
    raise CheckpointError(
        f"{source}: is in no layout known here ({titles}, this project). {' '.join(parts)}"
    )


def read_layout(layout: Layout, state: State, source: str | Path) -> tuple[State, list[str]]:
    """Our tensors, and names without a counterpart in our networks.

    Args:
        layout: layout of the file.
        state: tensors of the file.
        source: file name for messages.

    Raises:
        CheckpointError: duplicates of a tensor differ.
    """
    state = _respelled(layout, state)
    mark = layout.own_heads_mark
    own = bool(mark) and any(name.startswith(mark) for name in state)
    for row in layout.second_names:
        if not (own and row.when == "shared heads"):
            state = _without_second_name(state, row.name, row.of, source)
    ours, unknown = renaming.to_ours(layout.rules, state)
    if layout.fills_heads and own:
        ours = _with_all_heads(ours)
    return ours, unknown


def write_layout(layout: Layout, state: State, source: str | Path) -> State:
    """Our tensors in another layout.

    Args:
        layout: layout for the network of the tensors.
        state: our tensors.
        source: file name for messages.

    Raises:
        CheckpointError: some tensors have no counterpart in the layout.
    """
    theirs, unknown = renaming.to_theirs(layout.rules, state)
    if unknown:
        parts = "".join(f" {sentence}" for sentence in missing_parts(unknown))
        raise CheckpointError(
            f"{source}: has tensors without a counterpart in the layout of {layout.title}.{parts}"
            + listed("without a counterpart", unknown)
        )
    heads, layers = count(state, "class_heads"), count(state, "decoder")
    two_stage = "proposal_proj.weight" in state
    applies = {"shared heads": heads == 1, "own heads": heads > 1, "two stages": two_stage}
    for row in layout.second_names:
        for index in range(max(heads, layers) if applies[row.when] else 0):
            first, second = row.of.format(index), row.name.format(index)
            if first != second:
                theirs |= _under_another_name(theirs, first, second)
    return theirs


def names_in_file(layout: Layout, names: Sequence[str]) -> list[str]:
    """Their names of our tensors, or our names without a rule."""
    return [part for name in names for part in renaming.their_names(layout.rules, name) or [name]]


def _families() -> list[tuple[type[nn.Module], WeightRules]]:
    pairs = ((network, rules_of(network)) for network in families().values())
    return [(network, rules) for network, rules in pairs if rules is not None]


def _respelled(layout: Layout, state: State) -> State:
    """Used tensors, in the spelling of the rules."""
    result = {}
    for name, tensor in state.items():
        if any(re.search(pattern, name) for pattern in layout.unused):
            continue
        for pattern, spelling in layout.spellings:
            name = re.sub(pattern, spelling, name)
        result[name] = tensor
    return result


def _count_known(layout: Layout, state: State) -> int:
    """Number of names in a file that match a layout."""
    return sum(renaming.is_known(layout.rules, name) for name in _respelled(layout, state))


def _without_second_name(state: State, second: str, first: str, source: str | Path) -> State:
    result = dict(state)
    for name, tensor in state.items():
        kept = fill(second, first, name)
        if kept is None or kept == name:
            continue
        del result[name]
        if not torch.equal(tensor, result.setdefault(kept, tensor)):
            raise CheckpointError(
                f"{source}: {name} and {kept} should be equal, but differ; the file was "
                "assembled from several, or is of an unsupported detector."
            )
    return result


def _under_another_name(state: State, first: str, second: str) -> State:
    return {
        second + name.removeprefix(first): tensor.clone()
        for name, tensor in state.items()
        if name.startswith(first)
    }


def _with_all_heads(state: State) -> State:
    """Tensors with a copy of the first head for every layer, if the file has it once."""
    result, layers = dict(state), max(count(state, "class_heads"), count(state, "box_heads"))
    for heads in ("class_heads", "box_heads"):
        if count(state, heads) == 1:
            for index in range(1, layers):
                result |= _under_another_name(state, f"{heads}.0.", f"{heads}.{index}.")
    return result


# Unsupported parts of detectors, by patterns of their names or ours.
UNSUPPORTED_PARTS = (
    (r"(^|\.)(mask_head|bbox_attention)\.", "It has a segmentation head, which is not supported."),
    (
        r"(^|\.)(label_enc|tgt_embed|label_encoder|denoising_generator)\.",
        "It has queries of DINO or DN-DETR, which are not supported.",
    ),
    (
        r"(^|\.)ref_point_head\.",
        "It has the reference points of Conditional DETR, DAB-DETR or DINO: not supported.",
    ),
    (
        r"\.(ca_qpos_proj|ca_qpos_sine_proj|q_pos_sine_proj)\.",
        "It has the cross-attention of Conditional DETR or DAB-DETR, which is not supported.",
    ),
    (
        r"(row|col|column)_embed",
        "It has a learnt position embedding; only the sine embedding is supported.",
    ),
    (
        r"^(transformer\.encoder\.(norm|post_norm_layer)|model\.encoder\.layernorm)\.",
        "It has pre-norm layers (--pre_norm); only post-norm layers are supported.",
    ),
    (r"^bbox_head\.", "It is a file of MMDetection, whose layout is not supported."),
    (
        r"^detr\.(transformer|backbone)\.",
        "It is a file of DETR's Detectron2 wrapper; convert its source file.",
    ),
    (r"^backbone\.body\.", "Its backbone is one of timm's; other code bases expect a ResNet."),
    (
        r"^content_embed\.",
        "Its two-stage queries have learnt contents (mixed_queries); other code bases have none.",
    ),
    (r"^fusion\.", "It is a teacher: other code bases have no fusion of frames."),
)


def missing_parts(names: Sequence[str]) -> list[str]:
    """Sentences about unsupported parts with these names."""
    return [
        sentence
        for pattern, sentence in UNSUPPORTED_PARTS
        if any(re.search(pattern, name) for name in names)
    ]
