"""What several distillation losses do alike: choices, levels, means, cosines."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from v2idetr.distillation.distances import (
    alignment,
    compared_layers,
    cosine_distance,
    one_of,
    same_level,
    weighted_mean,
    width_projection,
)
from v2idetr.modeling.interface import Features


def test_an_unknown_choice_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"distillation\.cqd\.mask must be one of \('a', 'b'\)"):
        one_of("cqd.mask", "c", Literal["a", "b"])
    with pytest.raises(ValueError, match=r"got 'oneway'\. Did you mean 'one_way'\?"):
        one_of("cqd.mask", "oneway", Literal["none", "one_way"])
    one_of("cqd.mask", "b", Literal["a", "b"])


def test_widths_that_differ_need_an_alignment_by_the_key_of_the_loss() -> None:
    with pytest.raises(ValueError, match=r"8 .* 4: set distillation\.ed\.align=conv1x1"):
        alignment("ed", "none", student_dim=8, teacher_dim=4)
    assert alignment("ed", "conv1x1", student_dim=8, teacher_dim=4).out_channels == 4
    assert isinstance(alignment("ed", "none", student_dim=4, teacher_dim=4), nn.Identity)


def test_queries_of_equal_width_need_no_translation() -> None:
    assert isinstance(width_projection(4, 4), nn.Identity)
    assert width_projection(4, 6)(torch.zeros(2, 3, 4)).shape == (2, 3, 6)


def test_levels_are_compared_in_single_precision_and_teach_one_way() -> None:
    student = Features({32: torch.randn(1, 2, 3, 3).half().requires_grad_()}, None)
    teacher = Features({32: torch.randn(1, 2, 3, 3).half().requires_grad_()}, None)
    ours, theirs = same_level("fd.strides", 32, student, teacher)
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.requires_grad and not theirs.requires_grad


def test_maps_of_other_numbers_of_images_are_refused_and_not_broadcast() -> None:
    student, teacher = (Features({32: torch.zeros(B, 2, 3, 3)}, None) for B in (3, 1))
    with pytest.raises(ValueError, match=r"tfd\.stride=32: .* of 3 images and the teacher of 1"):
        same_level("tfd.stride", 32, student, teacher)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_missing_level_is_named_with_its_key_and_owner(who: str) -> None:
    has, lacks = (Features({s: torch.zeros(1, 2, 3, 3)}, None) for s in (32, 16))
    pair = (lacks, has) if who == "student" else (has, lacks)
    with pytest.raises(ValueError, match=rf"fd\.strides=32, but the {who} has .* \[16\]"):
        same_level("fd.strides", 32, *pair)


@pytest.mark.parametrize(
    ("normalizer", "want"), [("pixels", 14 / 4), ("elements", 14 / 12), ("mask_sum", 14 / 5)]
)
def test_a_weighted_mean_counts_what_it_is_told_to(normalizer: str, want: float) -> None:
    distance = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    weights = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])  # 2 * 1 + 3 * 4 = 14
    have = weighted_mean(distance, weights, normalizer=normalizer, padding=None, channels=3)
    assert have.tolist() == pytest.approx([want])


def test_padding_is_not_counted() -> None:
    padding = torch.tensor([[[False, True], [False, True]]])
    have = weighted_mean(
        torch.ones(1, 2, 2), (~padding).float(), normalizer="pixels", padding=padding, channels=3
    )
    assert have.tolist() == [1.0]


def test_the_last_layers_are_compared_whatever_the_depths() -> None:
    assert compared_layers("qd", "last", 2, 6) == ([1], [5])
    assert compared_layers("qd", "all", 3, 3) == ([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match=r"qd\.layers=all .* 2 layers and the teacher 6"):
        compared_layers("qd", "all", 2, 6)


def test_parallel_queries_are_at_no_distance_and_opposite_ones_at_two() -> None:
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    b = torch.tensor([[5.0, 0.0], [4.0, 3.0], [-2.0, -2.0]], requires_grad=True)
    have = cosine_distance(a.requires_grad_(), b)
    torch.testing.assert_close(have, torch.tensor([0.0, 1 - 24 / 25, 2.0]))
    have.sum().backward()
    assert a.grad is not None and b.grad is None
