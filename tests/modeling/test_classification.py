"""What class logits mean to the matcher, to the loss and to the detections."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import criterion, softmax_criterion, tiny_detr, tiny_net
from v2idetr.modeling.classification import (
    Classification,
    FocalClassification,
    SoftmaxClassification,
)
from v2idetr.modeling.criterion import SetCriterion, Targets
from v2idetr.modeling.interface import Decoded
from v2idetr.modeling.matcher import HungarianMatcher
from v2idetr.modeling.meta_arch import Detector

BOX = torch.tensor([0.5, 0.5, 0.2, 0.2])


def softmax(*logits: float) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def decoded(logits: Tensor) -> Decoded:
    """One layer of queries with these logits (B, N, ...), query n at place n of a row of boxes."""
    B, N = logits.shape[:2]
    boxes = BOX.repeat(1, B, N, 1)
    boxes[..., 0] = torch.linspace(0.2, 0.8, N)
    return Decoded(torch.zeros(1, B, N, 4), logits[None], boxes)


def lesions(*queries: list[int], labels: list[list[int]] | None = None) -> Targets:
    """Lesions exactly at the boxes of the given queries of three, one list a picture."""
    places = decoded(torch.zeros(1, 3, 1)).boxes[0, 0]
    kinds = labels or [[0] * len(q) for q in queries]
    return Targets(
        [torch.tensor(k, dtype=torch.long) for k in kinds],
        [places[torch.tensor(q, dtype=torch.long)] for q in queries],
    )


@pytest.mark.parametrize("kind", [FocalClassification, SoftmaxClassification])
def test_both_are_classifications(kind: type) -> None:
    assert isinstance(kind(), Classification)


# ------------------------------------------------------------------------- focal


def test_a_focal_query_has_one_logit_a_class() -> None:
    assert FocalClassification().num_logits(3) == 3


def test_one_focal_query_can_be_two_detections() -> None:
    logits = torch.tensor([[[3.0, 2.0], [-1.0, -2.0]]])
    scores, classes, queries = FocalClassification().detections(logits, 3)
    torch.testing.assert_close(scores[0], torch.tensor([3.0, 2.0, -1.0]).sigmoid())
    assert queries[0].tolist() == [0, 0, 1]
    assert classes[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.8, 1.0)])
def test_cost_and_loss_use_the_same_alpha_and_gamma(alpha: float, gamma: float) -> None:
    focal = FocalClassification(alpha=alpha, gamma=gamma)
    logits = torch.tensor([[[0.7]]])
    positive = focal.loss(logits, torch.tensor([[0]]), 1.0)
    negative = focal.loss(logits, torch.tensor([[-1]]), 1.0)
    cost = focal.cost(logits[0], torch.tensor([0]))
    assert cost.item() == pytest.approx((positive - negative).item(), rel=1e-5)


# ------------------------------------------------------------------------- softmax


def test_a_softmax_query_has_one_logit_more_than_classes() -> None:
    assert SoftmaxClassification().num_logits(3) == 4


def test_the_softmax_cost_is_minus_the_probability_of_the_label() -> None:
    logits = torch.tensor([[0.3, -0.2, 1.0], [2.0, 0.0, 0.0]])
    cost = SoftmaxClassification().cost(logits, torch.tensor([1, 0]))
    first, second = softmax(0.3, -0.2, 1.0), softmax(2.0, 0.0, 0.0)
    want = torch.tensor([[-first[1], -first[0]], [-second[1], -second[0]]])
    torch.testing.assert_close(cost, want)


def test_the_softmax_loss_is_what_arithmetic_says() -> None:
    # Three queries, the second at the lesion: weights 0.1, 1 and 0.1.
    logits = torch.tensor([[[0.5, 1.0], [2.0, -1.0], [-0.3, 0.4]]])
    losses = softmax_criterion()(decoded(logits), lesions([1]))
    parts = [
        -0.1 * math.log(softmax(0.5, 1.0)[1]),
        -1.0 * math.log(softmax(2.0, -1.0)[0]),
        -0.1 * math.log(softmax(-0.3, 0.4)[1]),
    ]
    assert losses["loss_class"].item() == pytest.approx(sum(parts) / 1.2, rel=1e-5)


def test_the_mean_of_the_softmax_loss_is_over_the_whole_batch() -> None:
    logits = torch.randn(2, 3, 3)
    truth = lesions([0, 2], [1], labels=[[1, 0], [1]])
    loss = softmax_criterion()(decoded(logits), truth)["loss_class"]
    targets = torch.tensor([[1, 2, 0], [2, 1, 2]])
    want = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), torch.tensor([1.0, 1.0, 0.1])
    )
    torch.testing.assert_close(loss, want)


def test_one_lesion_among_a_hundred_queries_carries_nine_percent_of_the_weight() -> None:
    logits = torch.zeros(1, 100, 2, requires_grad=True)
    label = torch.full((1, 100), -1)
    label[0, 7] = 0
    SoftmaxClassification().loss(logits, label, 1.0).backward()
    share = logits.grad[0, :, 0].abs() / logits.grad[0, :, 0].abs().sum()
    assert share[7].item() == pytest.approx(1 / (1 + 99 * 0.1), rel=1e-5)
    assert share[7].item() == pytest.approx(0.092, abs=5e-4)


def test_parts_of_a_batch_have_the_softmax_loss_of_the_whole_on_average() -> None:
    # As the trainer cuts a batch: each part is told the mean number of lesions of a part.
    logits = torch.randn(4, 3, 2)
    truth = lesions([0], [], [1, 2], [])
    whole = softmax_criterion()(decoded(logits), truth)["loss_class"]
    parts = [
        softmax_criterion()(
            decoded(logits[i : i + 2]),
            Targets(truth.labels[i : i + 2], truth.boxes[i : i + 2]),
            num_boxes=3 / 2,
        )["loss_class"]
        for i in (0, 2)
    ]
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_without_lesions_the_softmax_loss_pushes_every_query_to_no_object() -> None:
    logits = torch.randn(2, 3, 3, requires_grad=True)
    losses = softmax_criterion()(decoded(logits), lesions([], []))
    assert losses["loss_l1"].item() == losses["loss_giou"].item() == 0.0
    losses["loss_class"].backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[..., 2] < 0).all() and (logits.grad[..., :2] > 0).all()


def test_scores_are_probabilities_of_the_classes_alone() -> None:
    logits = torch.tensor([[0.0, math.log(3.0), math.log(4.0)]])
    focal, softmax = FocalClassification(), SoftmaxClassification()
    torch.testing.assert_close(focal.scores(logits), torch.tensor([[0.5, 0.75, 0.8]]))
    torch.testing.assert_close(softmax.scores(logits), torch.tensor([[1 / 8, 3 / 8]]))
    assert focal.scores(logits.half()).dtype == torch.float32


def test_a_softmax_query_is_one_detection_of_its_likeliest_class() -> None:
    logits = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 1.0, 0.0], [0.0, 1.0, 0.5]]])
    scores, classes, queries = SoftmaxClassification().detections(logits, 100)
    assert queries[0].tolist() == [1, 2, 0]
    assert classes[0].tolist() == [0, 1, 1]
    want = [softmax(3.0, 1.0, 0.0)[0], softmax(0.0, 1.0, 0.5)[1], softmax(1.0, 2.0, 9.0)[1]]
    torch.testing.assert_close(scores[0], torch.tensor(want))


def test_the_best_softmax_queries_are_kept() -> None:
    logits = torch.randn(2, 9, 3)
    all_of_them = SoftmaxClassification().detections(logits, 9)
    for whole, part in zip(all_of_them, SoftmaxClassification().detections(logits, 4), strict=True):
        assert torch.equal(part, whole[:, :4])


@pytest.mark.parametrize("eos_coef", [0.0, -0.1, 1.5, float("nan")])
def test_a_weight_of_no_object_that_makes_no_sense_is_refused(eos_coef: float) -> None:
    with pytest.raises(ValueError, match=r"classification\.eos_coef must be above 0 and at most 1"):
        SoftmaxClassification(eos_coef=eos_coef)


# ------------------------------------------------------------------------- one for all


def test_the_matcher_is_given_what_the_loss_uses() -> None:
    # Both queries lie on the lesion; focal prefers the surer sigmoid, softmax the surer share.
    logits = torch.tensor([[[3.0, 3.0], [1.0, -3.0]]])
    boxes = BOX.expand(1, 1, 2, 4)
    truth = Targets([torch.tensor([0])], [BOX.expand(1, 4)])
    matched = {}
    for classification in (FocalClassification(), SoftmaxClassification()):
        own = SetCriterion(classification=classification, matcher=HungarianMatcher())
        want = own.matcher(logits, boxes[0], truth.labels, truth.boxes, classification)[0][0].item()
        label = torch.full((1, 2), -1)
        label[0, want] = 0
        loss = own(Decoded(torch.zeros(1, 1, 2, 4), logits[None], boxes), truth)["loss_class"]
        assert loss.item() == (2 * classification.loss(logits, label, 1.0)).item()
        matched[type(classification)] = want
    assert matched == {FocalClassification: 0, SoftmaxClassification: 1}


def test_a_network_whose_logits_mean_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"net: DETR gives 2 .* criterion\.classification: Focal"):
        Detector(net=tiny_detr(), criterion=criterion(), class_names=["polyp"])
    two_stage = tiny_net(box_refine=True, two_stage=True)
    with pytest.raises(ValueError, match=r"DeformableDETR gives 1 logits .*Softmax.* needs 2 for"):
        Detector(net=two_stage, criterion=softmax_criterion(), class_names=["polyp"])
