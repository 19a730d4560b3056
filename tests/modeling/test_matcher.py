"""Bipartite matching against brute force over all assignments."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from v2idetr.modeling.classification import FocalClassification
from v2idetr.modeling.matcher import HungarianMatcher

FOCAL = FocalClassification()


def box_iou_and_hull(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU, and the share of the smallest enclosing box that neither covers, of cxcywh boxes."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in (a, b)
    )
    across = max(0.0, min(ax1, bx1) - max(ax0, bx0))
    down = max(0.0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - across * down
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return across * down / union, (hull - union) / hull


def cost(logit: float, box: list[float], target: list[float], weights: tuple[float, ...]) -> float:
    """Cost of one pair in plain arithmetic: focal with alpha 0.25 and gamma 2, L1, GIoU."""
    p = torch.tensor(logit, dtype=torch.float64).sigmoid()
    positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
    iou, empty = box_iou_and_hull(box, target)
    distance = sum(abs(a - b) for a, b in zip(box, target, strict=True))
    terms = (float(positive - negative), distance, empty - iou)
    return sum(weight * term for weight, term in zip(weights, terms, strict=True))


def cheapest(costs: list[list[float]]) -> float:
    """The least total cost over all one-to-one assignments of the smaller side."""
    queries, lesions = range(len(costs)), range(len(costs[0]))
    if len(queries) >= len(lesions):
        choices = itertools.permutations(queries, len(lesions))
        return min(sum(costs[q][m] for m, q in enumerate(choice)) for choice in choices)
    choices = itertools.permutations(lesions, len(queries))
    return min(sum(costs[q][m] for q, m in enumerate(choice)) for choice in choices)


def predictions(B: int, N: int, K: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, N, K, generator=generator) * 3
    return logits, 0.05 + 0.9 * torch.rand(B, N, 4, generator=generator)


def lesions(counts: list[int], K: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed + 1)
    labels = [torch.randint(K, (m,), generator=generator) for m in counts]
    return labels, [0.05 + 0.9 * torch.rand(m, 4, generator=generator) for m in counts]


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    N=st.integers(1, 5),
    K=st.integers(1, 3),
    weights=st.sampled_from([(2.0, 5.0, 2.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]),
    seed=st.integers(0, 2**16),
)
def test_no_assignment_is_cheaper_than_the_one_found(
    counts: list[int], N: int, K: int, weights: tuple[float, ...], seed: int
) -> None:
    logits, boxes = predictions(len(counts), N, K, seed)
    labels, targets = lesions(counts, K, seed)
    names = ("class_weight", "l1_weight", "giou_weight")
    matcher = HungarianMatcher(**dict(zip(names, weights, strict=True)))
    pairs = matcher(logits, boxes, labels, targets, FOCAL)
    assert len(pairs) == len(counts)
    for image, (query, lesion) in enumerate(pairs):
        M = counts[image]
        assert len(query) == len(lesion) == min(N, M)
        assert len(set(query.tolist())) == len(set(lesion.tolist())) == min(N, M)
        if not M:
            continue
        costs = [
            [
                cost(
                    logits[image, q, labels[image][m]].item(),
                    boxes[image, q].tolist(),
                    targets[image][m].tolist(),
                    weights,
                )
                for m in range(M)
            ]
            for q in range(N)
        ]
        found = sum(costs[q][m] for q, m in zip(query.tolist(), lesion.tolist(), strict=True))
        assert found == pytest.approx(cheapest(costs), abs=1e-4)


def test_a_perfect_prediction_is_matched_to_its_lesion() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.2, 0.4], [0.8, 0.7, 0.3, 0.2]]])
    query, lesion = HungarianMatcher()(
        torch.zeros(1, 3, 1), boxes, [torch.zeros(2).long()], [boxes[0, [2, 0]]], FOCAL
    )[0]
    assert dict(zip(query.tolist(), lesion.tolist(), strict=True)) == {2: 0, 0: 1}


def test_the_class_decides_between_equal_boxes() -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
    query, lesion = HungarianMatcher()(
        logits, box.expand(1, 2, 4), [torch.tensor([1, 0])], [box.expand(2, 4)], FOCAL
    )[0]
    assert dict(zip(query.tolist(), lesion.tolist(), strict=True)) == {1: 0, 0: 1}


def test_matching_carries_no_gradient() -> None:
    logits, boxes = predictions(1, 3, 1, 0)
    logits.requires_grad_()
    query, lesion = HungarianMatcher()(logits, boxes, *lesions([2], 1, 0), FOCAL)[0]
    assert not query.requires_grad and not lesion.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_matched(dtype: torch.dtype) -> None:
    logits, boxes = predictions(2, 4, 1, 0)
    labels, targets = lesions([1, 2], 1, 0)
    have = HungarianMatcher()(logits.to(dtype), boxes.to(dtype), labels, targets, FOCAL)
    want = HungarianMatcher()(
        logits.to(dtype).float(), boxes.to(dtype).float(), labels, targets, FOCAL
    )
    for (q, m), (a, b) in zip(have, want, strict=True):
        assert torch.equal(q, a) and torch.equal(m, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("what", "term"), [("logits", "class"), ("boxes", "L1")])
def test_predictions_that_are_not_finite_name_image_and_term(
    what: str, term: str, bad: float
) -> None:
    logits, boxes = predictions(3, 4, 1, 0)
    if what == "logits":
        bad = float("nan")  # an infinite logit has a finite probability
        logits[1, 2] = bad
    else:
        boxes[1, 2] = bad
    with pytest.raises(FloatingPointError, match=rf"\(.*{term}.*\) of images \[1\] .*not$"):
        HungarianMatcher()(logits, boxes, *lesions([1, 0, 2], 1, 0), FOCAL)
