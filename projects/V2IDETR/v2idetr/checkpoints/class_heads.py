"""Class heads: whose rows are which classes, rows of some classes alone, and fresh heads."""

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

# By COCO's ids, 91 rows as the official codes have them; two words stand for ids without a class.
COCO_BY_ID = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
UNUSED = ("__background__", "N/A")
COCO_CLASSES = [name for name in COCO_BY_ID if name not in UNUSED]  # 80 rows, as in detrex


def default_class_names(num_classes: int) -> list[str]:
    """Names for a file that says none: COCO's for heads of COCO's sizes.

    Rows that are no class are called "unused 0" and so on by their index.
    """
    if num_classes == len(COCO_CLASSES):
        return list(COCO_CLASSES)
    if num_classes == len(COCO_BY_ID):
        return [f"unused {i}" if name in UNUSED else name for i, name in enumerate(COCO_BY_ID)]
    return [f"class {index}" for index in range(num_classes)]


def class_head_prefixes(net: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of a network's class heads.

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
    """The detector for some of its classes, in the wanted order.

    Args:
        state: our tensors.
        rules: of the network class.
        have: its class names.
        wanted: class names.
        source: for messages.

    Raises:
        CheckpointError: it does not know a class.
    """
    strange = [name for name in wanted if name not in have]
    if strange:
        raise CheckpointError(
            f"{source}: detects {_shown(have)}, not {_shown(strange)}. Add --new-class-head to "
            "start with a fresh class head, or choose from its classes."
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
    """The detector with class heads as before training, always the same ones.

    The first row of a two-stage encoder's own head stays: it does not tell classes apart but
    proposals from background.

    Args:
        state: our tensors.
        rules: of the network class.
        num_classes: K that it has.
        new_num_classes: K that it gets.
    """
    old = {n: t for n, t in state.items() if n.startswith(rules.class_heads)}
    weight = next(tensor for name, tensor in old.items() if name.endswith(".weight"))
    no_object = len(weight) > num_classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(weight.shape[1], new_num_classes + no_object, dtype=weight.dtype)
    if not no_object:
        nn.init.constant_(head.bias, -math.log(99))  # focal loss: a prior of 1 %
    fresh = {kind: tensor.detach() for kind, tensor in head.named_parameters()}
    heads = {name: fresh[name.rpartition(".")[2]].clone() for name in old}
    return _with_proposal_row({**state, **heads}, state, rules)


def _with_proposal_row(state: State, before: State, rules: WeightRules) -> State:
    """Put back the one row that scores the proposals of two stages."""
    head = rules.proposal_head(before)
    for name in before if head else ():
        if name.startswith(head):
            state[name] = state[name].clone()
            state[name][0] = before[name][0]
    return state


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
