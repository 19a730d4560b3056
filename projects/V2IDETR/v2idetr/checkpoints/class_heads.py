"""Class heads: class names of rows, selection of rows, and new heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from v2idetr.checkpoints.files import CheckpointError
from v2idetr.modeling.renaming import State
from v2idetr.modeling.weight_rules import WeightRules, rules_of

# By COCO id, 91 rows as in the official code; two words mark ids without a class.
COCO_BY_ID = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
UNUSED = ("__background__", "N/A")
COCO_CLASSES = [name for name in COCO_BY_ID if name not in UNUSED]  # 80 rows, as in detrex


def default_class_names(num_classes: int) -> list[str]:
    """Class names for a file without names: COCO's for heads of COCO's sizes.

    Rows without a class are "unused 0" and so on, by index.
    """
    if num_classes == len(COCO_CLASSES):
        return list(COCO_CLASSES)
    if num_classes == len(COCO_BY_ID):
        return [f"unused {i}" if name in UNUSED else name for i, name in enumerate(COCO_BY_ID)]
    return [f"class {index}" for index in range(num_classes)]


def class_head_prefixes(net: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of a network's class heads.

    A network without rules is taken to name them as the families here, or Detectron2, do.
    """
    rules = rules_of(type(net))
    if rules is not None:
        return (rules.class_heads,)
    return "class_head.", "class_heads.", "head.cls_score.", "roi_heads.box_predictor."


def with_classes(
    state: State,
    rules: WeightRules,
    have: Sequence[str],
    wanted: Sequence[str],
    source: str | Path,
) -> State:
    """Tensors of a detector for some of its classes, in the wanted order.

    Args:
        state: our tensors.
        rules: rules of the network class.
        have: class names of the detector.
        wanted: class names to keep.
        source: file name for messages.

    Raises:
        CheckpointError: a wanted class is not in ``have``.
    """
    unknown = [name for name in wanted if name not in have]
    if unknown:
        raise CheckpointError(
            f"{source}: detects {_shown(have)}, not {_shown(unknown)}. Add --new-class-head to "
            "start with a new class head, or choose from its classes."
        )
    rows = [list(have).index(name) for name in wanted]

    def select(head: Tensor) -> Tensor:
        no_object = [len(have)] if len(head) > len(have) else []
        return head[rows + no_object]

    heads = {n: select(t) for n, t in state.items() if n.startswith(rules.class_heads)}
    return _with_proposal_row({**state, **heads}, state, rules)


def with_new_class_head(
    state: State, rules: WeightRules, num_classes: int, new_num_classes: int
) -> State:
    """Tensors of a detector with new class heads, from a fixed seed.

    The first row of a two-stage encoder's head is kept, because it scores proposals against
    background.

    Args:
        state: our tensors.
        rules: rules of the network class.
        num_classes: number of classes in ``state``.
        new_num_classes: number of classes of the new heads.
    """
    old = {n: t for n, t in state.items() if n.startswith(rules.class_heads)}
    weight = next(tensor for name, tensor in old.items() if name.endswith(".weight"))
    no_object = len(weight) > num_classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(weight.shape[1], new_num_classes + no_object, dtype=weight.dtype)
    if not no_object:
        nn.init.constant_(head.bias, -math.log(99))  # focal loss: a prior of 1 %
    new = {kind: tensor.detach() for kind, tensor in head.named_parameters()}
    heads = {name: new[name.rpartition(".")[2]].clone() for name in old}
    return _with_proposal_row({**state, **heads}, state, rules)


def _with_proposal_row(state: State, before: State, rules: WeightRules) -> State:
    """Restore the row that scores the proposals of two stages."""
    head = rules.proposal_head(before)
    for name in before if head else ():
        if name.startswith(head):
            state[name] = state[name].clone()
            state[name][0] = before[name][0]
    return state


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
