"""QD against plain loops: which query is compared with which, and what that costs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from v2idetr.distillation.knowledge import Reach
from v2idetr.distillation.query_distillation import QueryDistillation
from v2idetr.modeling.interface import Decoded

Predictions = tuple[Decoded, Tensor]
D = 5


def distil(**options) -> QueryDistillation:
    return QueryDistillation(**{"student_dim": D, "teacher_dim": D, "weight": 1.0} | options)


def predictions(
    seed: int, *, L: int = 2, B: int = 3, N: int = 4, K: int = 1, d: int = D
) -> Predictions:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    boxes = torch.cat([draw(L, B, N, 2) * 0.6 + 0.2, draw(L, B, N, 2) * 0.3 + 0.05], -1)
    hidden = draw(L, B, N, d) - 0.5
    return Decoded(hidden, torch.zeros(L, B, N, K), boxes), draw(L, B, N, K)


def permuted(given: Predictions, order: list[int]) -> Predictions:
    decoded, scores = given
    parts = (decoded.hidden, decoded.logits, decoded.boxes, scores)
    hidden, logits, boxes, scores = (part[:, :, order] for part in parts)
    return Decoded(hidden, logits, boxes), scores


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


# ------------------------------------------------------------------------- by index


def test_by_index_a_query_is_compared_with_the_one_of_its_number() -> None:
    (ours, _), (theirs, _) = student, teacher = predictions(0), predictions(1)
    last = [
        1 - cosine(ours.hidden[-1, b, n], theirs.hidden[-1, b, n])
        for b in range(3)
        for n in range(4)
    ]
    want = sum(last) / len(last)
    assert distil().compare(student, teacher).item() == pytest.approx(want, rel=1e-5)
    assert distil(weight=5.0).compare(student, teacher).item() == pytest.approx(5 * want, rel=1e-5)


def test_all_layers_are_compared_on_request() -> None:
    (ours, _), (theirs, _) = student, teacher = predictions(0), predictions(1)
    every = [
        1 - cosine(ours.hidden[layer, b, n], theirs.hidden[layer, b, n])
        for layer in range(2)
        for b in range(3)
        for n in range(4)
    ]
    have = distil(layers="all").compare(student, teacher)
    assert have.item() == pytest.approx(sum(every) / len(every), rel=1e-5)


def test_other_numbers_of_queries_have_no_common_index() -> None:
    with pytest.raises(ValueError, match=r"student has 4 and the teacher 6: use matching=hung"):
        distil().compare(predictions(0), predictions(1, N=6))


# ------------------------------------------------------------------------- by assignment


def cost(student: Predictions, teacher: Predictions, layer: int, b: int, n: int, m: int) -> float:
    (ours, our_scores), (theirs, their_scores) = student, teacher
    a, c = ours.boxes[layer, b, n], theirs.boxes[layer, b, m]
    corners = [box_convert(box.view(1, 4), "cxcywh", "xyxy") for box in (a, c)]
    apart = (our_scores[layer, b, n] - their_scores[layer, b, m]).abs().sum()
    return (2 * apart + 5 * (a - c).abs().sum() - 2 * generalized_box_iou(*corners)[0, 0]).item()


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize(("N", "M"), [(4, 4), (3, 5), (5, 3)])
def test_an_assignment_is_the_cheapest_by_boxes_and_scores(N: int, M: int, K: int) -> None:
    student, teacher = predictions(2, N=N, K=K), predictions(3, N=M, K=K)
    want = []
    for layer, b in itertools.product(range(2), range(3)):
        costs = [[cost(student, teacher, layer, b, n, m) for m in range(M)] for n in range(N)]
        if N <= M:
            choices = [list(enumerate(c)) for c in itertools.permutations(range(M), N)]
        else:
            orders = itertools.permutations(range(N), M)
            choices = [[(n, m) for m, n in enumerate(c)] for c in orders]
        totals = [sum(costs[n][m] for n, m in pairs) for pairs in choices]
        best = choices[totals.index(min(totals))]
        hidden, target = student[0].hidden[layer, b], teacher[0].hidden[layer, b]
        want.append(sum(1 - cosine(hidden[n], target[m]) for n, m in best) / len(best))
    have = distil(matching="hungarian", layers="all").compare(student, teacher)
    assert have.item() == pytest.approx(sum(want) / len(want), rel=1e-4)


def test_an_assignment_does_not_depend_on_the_order_of_the_queries() -> None:
    student, teacher = predictions(4, N=6), predictions(5, N=6)
    qd = distil(matching="hungarian", layers="all")
    shuffled = permuted(teacher, [3, 0, 5, 1, 4, 2])
    want = qd.compare(student, teacher).item()
    assert qd.compare(student, shuffled).item() == pytest.approx(want, rel=1e-6)
    by_index = distil(layers="all")
    changed = by_index.compare(student, shuffled).item()
    assert changed != pytest.approx(by_index.compare(student, teacher).item())


def test_a_student_in_another_order_has_nothing_to_learn() -> None:
    teacher = predictions(6)
    student = permuted(teacher, [2, 0, 3, 1])
    assert distil(matching="hungarian").compare(student, teacher).item() == pytest.approx(
        0.0, abs=1e-6
    )
    assert distil().compare(student, teacher).item() > 0.1


# ------------------------------------------------------------------------- whatever the matching


@pytest.mark.parametrize("matching", ["index", "hungarian"])
def test_equal_queries_cost_nothing_and_only_the_student_learns(matching: str) -> None:
    teacher, other, qd = predictions(7), predictions(8), distil(matching=matching)
    assert qd.compare(predictions(7), teacher).item() == pytest.approx(0.0, abs=1e-6)
    other[0].hidden.requires_grad_()
    teacher[0].hidden.requires_grad_()
    qd.compare(other, teacher).backward()
    assert other[0].hidden.grad.any() and teacher[0].hidden.grad is None


@pytest.mark.parametrize("matching", ["index", "hungarian"])
def test_a_batch_is_the_mean_of_its_images(matching: str) -> None:
    student, teacher = predictions(10), predictions(11)
    qd = distil(matching=matching)

    def one(given: Predictions, image: int) -> Predictions:
        return given[0].select(torch.tensor([image])), given[1][:, image : image + 1]

    parts = [qd.compare(one(student, b), one(teacher, b)).item() for b in range(3)]
    assert qd.compare(student, teacher).item() == pytest.approx(sum(parts) / 3, rel=1e-5)


def test_a_learnt_projection_translates_between_widths() -> None:
    qd = distil(student_dim=7)
    student, teacher = predictions(12, d=7), predictions(13)
    qd.compare(student, teacher).backward()
    assert all(parameter.grad.any() for parameter in qd.parameters())
    assert not list(distil().parameters())


def test_the_teacher_is_asked_for_the_current_frames_alone() -> None:
    assert QueryDistillation.reach == Reach.DECODED
