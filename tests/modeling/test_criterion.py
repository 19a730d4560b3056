"""The detection loss against arithmetic by hand, and what must not change it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from v2idetr.modeling.classification import FocalClassification
from v2idetr.modeling.criterion import SetCriterion, Targets, mean_over_processes
from v2idetr.modeling.interface import Decoded, Proposals
from v2idetr.modeling.matcher import HungarianMatcher


def cut(decoded: Decoded, part) -> Decoded:
    return Decoded(decoded.hidden[part], decoded.logits[part], decoded.boxes[part])


def criterion(**weights: float) -> SetCriterion:
    return SetCriterion(classification=FocalClassification(), matcher=HungarianMatcher(), **weights)


def decoded(L: int = 2, B: int = 2, N: int = 6, K: int = 2) -> Decoded:
    return Decoded(
        torch.randn(L, B, N, 4),
        torch.randn(L, B, N, K, requires_grad=True),
        torch.rand(L, B, N, 4).mul(0.6).add(0.2).requires_grad_(),
    )


def targets(counts: list[int], K: int = 2) -> Targets:
    return Targets(
        [torch.randint(K, (m,)) for m in counts], [0.2 + 0.6 * torch.rand(m, 4) for m in counts]
    )


def focal(logit: float, positive: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return 0.25 * (1 - p) ** 2 * -math.log(p) if positive else 0.75 * p**2 * -math.log(1 - p)


# ------------------------------------------------------------------------- values


def test_the_loss_of_one_lesion_and_two_queries_is_what_arithmetic_says() -> None:
    # Query 1 is nearer and surer, so it is matched. Boxes: truth (.5 .5 .2 .2) and prediction
    # (.5 .5 .4 .2) overlap with IoU 1/2, and their hull is the larger one: GIoU 1/2.
    logits = torch.tensor([[[[-1.0], [0.5]]]])
    boxes = torch.tensor([[[[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.4, 0.2]]]])
    truth = Targets([torch.tensor([0])], [torch.tensor([[0.5, 0.5, 0.2, 0.2]])])
    losses = criterion()(Decoded(torch.zeros(1, 1, 2, 4), logits, boxes), truth)
    assert set(losses) == {"loss_class", "loss_l1", "loss_giou"}
    assert losses["loss_class"].item() == pytest.approx(
        2 * (focal(-1.0, False) + focal(0.5, True)), rel=1e-5
    )
    assert losses["loss_l1"].item() == pytest.approx(5 * 0.2, rel=1e-5)
    assert losses["loss_giou"].item() == pytest.approx(2 * (1 - 0.5), rel=1e-5)


def test_boxes_apart_cost_more_than_two_in_giou() -> None:
    boxes = torch.tensor([[[[0.2, 0.5, 0.2, 0.2]]]])
    truth = Targets([torch.tensor([0])], [torch.tensor([[0.8, 0.5, 0.2, 0.2]])])
    losses = criterion(giou_weight=1.0)(
        Decoded(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 1), boxes), truth
    )
    assert losses["loss_giou"].item() == pytest.approx(1 + (0.8 - 0.4) / 0.8, rel=1e-5)


def test_only_the_class_of_the_lesion_is_a_positive() -> None:
    logits = torch.tensor([[[[0.3, -0.7, 1.1]]]])
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    losses = criterion(class_weight=1.0)(
        Decoded(torch.zeros(1, 1, 1, 4), logits, box.expand(1, 1, 1, 4)),
        Targets([torch.tensor([1])], [box.expand(1, 4)]),
    )
    want = focal(0.3, False) + focal(-0.7, True) + focal(1.1, False)
    assert losses["loss_class"].item() == pytest.approx(want, rel=1e-5)


def test_every_layer_has_its_losses_and_the_last_has_the_plain_names() -> None:
    outputs, truth = decoded(L=3), targets([1, 2])
    losses = criterion()(outputs, truth)
    assert set(losses) == {
        f"loss_{term}{suffix}" for term in ("class", "l1", "giou") for suffix in ("", "_0", "_1")
    }
    for layer, suffix in enumerate(("_0", "_1", "")):
        alone = criterion()(cut(outputs, slice(layer, layer + 1)), truth)
        for name, loss in alone.items():
            assert losses[f"{name}{suffix}"].item() == pytest.approx(loss.item(), rel=1e-6)


def test_each_layer_is_matched_anew() -> None:
    truth = Targets([torch.tensor([0])], [torch.tensor([[0.3, 0.3, 0.2, 0.2]])])
    near, far = [0.3, 0.3, 0.2, 0.2], [0.8, 0.8, 0.1, 0.1]
    boxes = torch.tensor([[[near, far]], [[far, near]]])
    losses = criterion()(Decoded(torch.zeros(2, 1, 2, 4), torch.zeros(2, 1, 2, 1), boxes), truth)
    assert losses["loss_l1_0"].item() == losses["loss_l1"].item() == 0.0


# ------------------------------------------------------------------------- normaliser


def test_sums_are_divided_by_the_number_of_lesions_of_the_batch() -> None:
    outputs, truth = decoded(), targets([3, 1])
    by_default, by_hand = criterion()(outputs, truth), criterion()(outputs, truth, num_boxes=4.0)
    by_eight = criterion()(outputs, truth, num_boxes=8.0)
    for name, loss in by_default.items():
        assert loss.item() == by_hand[name].item()
        assert loss.item() == pytest.approx(2 * by_eight[name].item(), rel=1e-6)


@pytest.mark.parametrize(("count", "want"), [(0, 1.0), (1, 1.0), (7, 7.0), (0.5, 1.0)])
def test_one_process_counts_at_least_one_lesion(count: float, want: float) -> None:
    assert mean_over_processes(count, torch.device("cpu")) == want


def test_several_processes_share_the_lesions_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda total: total.fill_(6.0))
    assert mean_over_processes(2, torch.device("cpu")) == 6 / 4
    monkeypatch.setattr("torch.distributed.all_reduce", lambda total: total.fill_(0.0))
    assert mean_over_processes(0, torch.device("cpu")) == 1 / 4


# ------------------------------------------------------------------------- what must not matter


def test_the_order_of_lesions_does_not_change_the_loss() -> None:
    outputs, truth = decoded(), targets([4, 3])
    order = [torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])]
    shuffled = Targets(
        [x[o] for x, o in zip(truth.labels, order, strict=True)],
        [x[o] for x, o in zip(truth.boxes, order, strict=True)],
    )
    have, want = criterion()(outputs, shuffled), criterion()(outputs, truth)
    for name, loss in want.items():
        assert have[name].item() == pytest.approx(loss.item(), rel=1e-6)


def test_the_order_of_queries_does_not_change_the_loss() -> None:
    outputs, truth = decoded(), targets([4, 3])
    order = torch.randperm(6)
    shuffled = cut(outputs, (slice(None), slice(None), order))
    have, want = criterion()(shuffled, truth), criterion()(outputs, truth)
    for name, loss in want.items():
        assert have[name].item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_loss_of_a_batch_is_the_sum_over_its_images() -> None:
    outputs, truth = decoded(B=3), targets([2, 0, 1])
    together = criterion()(outputs, truth, num_boxes=3.0)
    for name, loss in together.items():
        parts = 0.0
        for image in range(3):
            one = cut(outputs, (slice(None), slice(image, image + 1)))
            own = Targets(truth.labels[image : image + 1], truth.boxes[image : image + 1])
            parts += criterion()(one, own, num_boxes=3.0)[name].item()
        assert loss.item() == pytest.approx(parts, rel=1e-5)


# ------------------------------------------------------------------------- no lesions, many lesions


def gradients(outputs: Decoded, losses: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    loss = torch.stack(list(losses.values())).sum()
    return torch.autograd.grad(loss, [outputs.logits, outputs.boxes])


def test_a_batch_without_lesions_has_finite_losses_and_gradients() -> None:
    outputs = decoded()
    losses = criterion()(outputs, targets([0, 0]))
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_l1"].item() == losses["loss_giou"].item() == 0.0
    assert losses["loss_class"].item() > 0.0
    logits, boxes = gradients(outputs, losses)
    assert logits.isfinite().all() and (logits > 0).all(), "every score is pushed down"
    assert not boxes.any()


def test_an_image_without_lesions_leaves_the_boxes_of_others_alone() -> None:
    outputs = decoded()
    _, boxes = gradients(outputs, criterion()(outputs, targets([0, 2])))
    assert not boxes[:, 0].any()
    assert (boxes[:, 1].abs().sum(-1) > 0).sum() == 2 * len(boxes)


def test_more_lesions_than_queries_are_matched_as_far_as_they_go() -> None:
    outputs = decoded(N=2)
    losses = criterion()(outputs, targets([5, 1]))
    assert all(loss.isfinite() for loss in losses.values())


# ------------------------------------------------------------------------- two-stage proposals


def proposals(B: int, S: int, K: int) -> Proposals:
    return Proposals(
        torch.randn(B, S, K, requires_grad=True),
        torch.rand(B, S, 4).mul(0.6).add(0.2).requires_grad_(),
        torch.ones(B, S, dtype=torch.bool),
    )


def test_proposals_learn_lesion_against_background_whatever_the_class() -> None:
    outputs, encoder = decoded(K=3), proposals(2, 9, 3)
    truth = targets([2, 1], K=3)
    anything = Targets([torch.zeros_like(x) for x in truth.labels], truth.boxes)
    have = criterion()(outputs, truth, proposals=encoder)
    as_layer = Decoded(torch.zeros(1, 2, 9, 4), encoder.logits[None], encoder.boxes[None])
    for name, loss in criterion()(as_layer, anything).items():
        assert have[f"{name}_encoder"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_tokens_that_propose_nothing_are_not_trained() -> None:
    encoder = proposals(2, 9, 1)
    encoder.valid[:, ::2] = False
    losses = criterion()(decoded(K=1), targets([1, 0], K=1), proposals=encoder)
    loss = torch.stack([x for name, x in losses.items() if name.endswith("_encoder")]).sum()
    assert loss.isfinite()
    (logits,) = torch.autograd.grad(loss, encoder.logits)
    assert not logits[:, ::2].any()
    assert logits[:, 1::2].all()


def test_predictions_that_are_not_finite_stop_the_loss() -> None:
    outputs = decoded()
    with torch.no_grad():
        outputs.boxes[1, 1, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"images \[1\]"):
        criterion()(outputs, targets([1, 1]))
