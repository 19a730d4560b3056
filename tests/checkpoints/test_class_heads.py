"""Class heads keep the rows of known classes; fresh ones come only when asked for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.checkpoints.tiny_detectors import disturbed, tiny_network
from v2idetr.checkpoints.class_heads import (
    COCO_CLASSES,
    default_class_names,
    with_classes,
    with_new_class_head,
)
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.modeling.deformable_detr.weights import RULES as DEFORMABLE_DETR
from v2idetr.modeling.detr.weights import RULES as DETR
from v2idetr.modeling.sam_detr.weights import RULES as SAM_DETR

RULES = {"DETR": DETR, "DeformableDETR": DEFORMABLE_DETR, "SAMDETR": SAM_DETR}
NAMES = ["person", "cat", "dog", "polyp", "tool"]


def state_of(kind: str, **changes) -> dict[str, Tensor]:
    return dict(disturbed(tiny_network(kind, **changes)).state_dict())


def test_heads_of_cocos_sizes_have_its_classes_by_id_or_without_the_unused_ids() -> None:
    by_id = default_class_names(91)
    assert (by_id[0], by_id[1], by_id[12], by_id[90]) == (
        "unused 0",
        "person",
        "unused 12",
        "toothbrush",
    )
    assert default_class_names(80) == COCO_CLASSES == [n for n in by_id if "unused" not in n]
    assert default_class_names(2) == ["class 0", "class 1"]


@pytest.mark.parametrize("kind", ["DeformableDETR", "SAMDETR"])
def test_rows_of_chosen_classes_are_kept_in_the_chosen_order(kind: str) -> None:
    levels = {} if kind == "DeformableDETR" else {"num_heads": 8}
    state = state_of(kind, **levels)
    small = with_classes(state, RULES[kind], NAMES, ["polyp", "cat"], "file")
    for name, tensor in state.items():
        want = tensor[[3, 1]] if name.startswith("class_heads.") else tensor
        assert torch.equal(small[name], want), name


def test_the_no_object_row_of_detr_stays_last() -> None:
    state = state_of("DETR")
    small = with_classes(state, DETR, NAMES, ["polyp"], "file")
    assert torch.equal(small["class_head.weight"], state["class_head.weight"][[3, 5]])
    assert torch.equal(small["class_head.bias"], state["class_head.bias"][[3, 5]])


def test_an_unknown_class_is_refused_with_the_way_out() -> None:
    with pytest.raises(CheckpointError, match=r"detects person, cat.*not adenoma.*new-class-head"):
        with_classes(state_of("DETR"), DETR, NAMES, ["polyp", "adenoma"], "file")


def test_a_fresh_head_starts_as_before_training_and_always_the_same() -> None:
    state = state_of("DeformableDETR")
    before = torch.get_rng_state()
    fresh, again = (with_new_class_head(state, DEFORMABLE_DETR, 5, 2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "other draws do not change"
    assert fresh["class_heads.0.weight"].shape == (2, 32)
    assert bool((fresh["class_heads.0.bias"] == -math.log(99)).all())
    for name, tensor in fresh.items():
        assert torch.equal(tensor, again[name])
        if not name.startswith("class_heads."):
            assert torch.equal(tensor, state[name])


def test_a_fresh_head_of_detr_has_a_row_for_no_object() -> None:
    fresh = with_new_class_head(state_of("DETR"), DETR, 5, 1)
    assert fresh["class_head.weight"].shape == (2, 32)
    assert fresh["class_head.bias"].abs().max() < 1, "no prior: a softmax has none"


@pytest.mark.parametrize("new", [True, False])
def test_the_score_of_proposals_outlives_a_change_of_classes(new: bool) -> None:
    state = state_of("DeformableDETR", box_refine=True, two_stage=True)
    if new:
        after = with_new_class_head(state, DEFORMABLE_DETR, 5, 2)
    else:
        after = with_classes(state, DEFORMABLE_DETR, NAMES, ["dog", "polyp"], "file")
    last = "class_heads.2"
    assert torch.equal(after[f"{last}.weight"][0], state[f"{last}.weight"][0])
    assert torch.equal(after[f"{last}.bias"][0], state[f"{last}.bias"][0])
    assert after[f"{last}.weight"].shape == after["class_heads.0.weight"].shape == (2, 32)
