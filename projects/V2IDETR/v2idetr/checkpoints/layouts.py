"""Reading files of other code bases by the layouts of all detector families, and writing them.

Files hold some tensors twice, under second names; these must agree and are dropped when a file is
read.
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
    """Every layout of every family, with the network class that it is of."""
    return [(network, layout) for network, rules in _families() for layout in rules.layouts]


def network_of(state: State) -> str:
    """Name of the network class that has tensors of these names; "" for none of the families."""
    found = (net for net, rules in _families() if all(mark in state for mark in rules.marks))
    return next((network.__name__ for network in found), "")


def layout_of(state: State) -> tuple[type[nn.Module], Layout] | None:
    """Network class and layout of a file of another code base, recognised from its names."""
    return next((pair for pair in known_layouts() if all(m in state for m in pair[1].marks)), None)


def find_layout(state: State, source: str | Path) -> tuple[type[nn.Module], Layout]:
    """As :func:`layout_of`.

    Args:
        state: of the file.
        source: for messages.

    Raises:
        CheckpointError: the file is in no known layout.
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
                f"It is nearest to {nearest.title}, but has no {' and no '.join(lacking)}."
            )
    titles = ", ".join(layout.title for layout in layouts)
    raise CheckpointError(
        f"{source}: is in no layout known here ({titles}, this project). {' '.join(parts)}"
    )


def read_layout(layout: Layout, state: State, source: str | Path) -> tuple[State, list[str]]:
    """Our tensors, and the names of those that we have no place for.

    Args:
        layout: of the file.
        state: of the file.
        source: for messages.

    Raises:
        CheckpointError: tensors that must be one differ.
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
    """A file's tensors in a layout.

    Args:
        layout: of the file; for the same network as the tensors.
        state: our tensors.
        source: for messages.

    Raises:
        CheckpointError: the layout has no place for some of them.
    """
    theirs, unknown = renaming.to_theirs(layout.rules, state)
    if unknown:
        parts = "".join(f" {sentence}" for sentence in missing_parts(unknown))
        raise CheckpointError(
            f"{source}: has tensors that the layout of {layout.title} has no place for.{parts}"
            + listed("without a place", unknown)
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
    """Our names as the file would have them."""
    return [part for name in names for part in renaming.their_names(layout.rules, name) or [name]]


def _families() -> list[tuple[type[nn.Module], WeightRules]]:
    pairs = ((network, rules_of(network)) for network in families().values())
    return [(network, rules) for network, rules in pairs if rules is not None]


def _respelled(layout: Layout, state: State) -> State:
    """The tensors that matter, spelled as the rules know them."""
    result = {}
    for name, tensor in state.items():
        if any(re.search(pattern, name) for pattern in layout.unused):
            continue
        for pattern, spelling in layout.spellings:
            name = re.sub(pattern, spelling, name)
        result[name] = tensor
    return result


def _count_known(layout: Layout, state: State) -> int:
    """Number of names of a file that are of a layout."""
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
                f"{source}: {name} and {kept} should be one tensor, but they differ; the file was "
                "put together from several, or is of a detector that we do not have."
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
