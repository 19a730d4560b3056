"""What the paper compares TFD and CQD with, inside a student in training."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.conftest import (
    criterion,
    make_sample,
    tiny_detector,
    tiny_detr_detector,
    tiny_net,
    tiny_teacher,
)
from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.feature_distillation import EmbeddingDistillation, FeatureDistillation
from v2idetr.distillation.knowledge import Reach, teacher_knowledge
from v2idetr.distillation.query_distillation import QueryDistillation
from v2idetr.distillation.student import DistilledStudent
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.modeling.meta_arch import Detector

KINDS = {
    "tfd": TargetGuidedFeatureDistillation,
    "fd": FeatureDistillation,
    "ed": EmbeddingDistillation,
    "cqd": CrossViewQueryDistillation,
    "qd": QueryDistillation,
}
# The rows of Table IV that TFD and CQD are compared with, and QD by assignment.
ROWS = [
    ("fd", {}),
    ("fd", {"mask": "box"}),
    ("fd", {"mask": "attention", "distance": "mse"}),
    ("ed", {}),
    ("ed", {"mask": "attention", "distance": "mse"}),
    ("qd", {}),
    ("qd", {"matching": "hungarian"}),
]


def distil(student: Detector, **losses: dict) -> DistilledStudent:
    """A student with the losses of these keys; the dicts are their options."""
    dims = {"student_dim": 32, "teacher_dim": 32}
    built = {key: KINDS[key](**dims | options) for key, options in losses.items()}
    return DistilledStudent(student=student, losses=built)


def batch() -> list[dict]:
    return [make_sample(0, lesions=2), make_sample(1, size=(96, 64), lesions=1)]


@pytest.mark.parametrize(("key", "options"), ROWS)
def test_every_loss_trains_the_student_towards_the_teacher_by_itself(
    key: str, options: dict
) -> None:
    samples, teacher = batch(), tiny_teacher().eval()
    distilled = distil(tiny_detector(), **{key: options}).train()
    optimizer = torch.optim.Adam(distilled.parameters(), lr=1e-3)
    knowledge = teacher_knowledge(teacher, samples, reach=distilled.reach)
    before = distilled(samples, knowledge)
    assert set(before) - set(tiny_detector().train()(samples)) == {f"loss_{key}"}
    before[f"loss_{key}"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    optimizer.step()
    after = distilled(samples, knowledge)[f"loss_{key}"]
    assert 0 < after.item() < before[f"loss_{key}"].item()


def test_all_losses_can_be_had_at_once_and_leave_detection_alone() -> None:
    student, samples = tiny_detector(dropout=0.3).train(), batch()
    torch.manual_seed(7)
    plain = student(samples)
    distilled = distil(student, tfd={}, fd={"mask": "attention"}, ed={}, cqd={}, qd={}).train()
    knowledge = teacher_knowledge(tiny_teacher().eval(), samples)
    torch.manual_seed(7)
    losses = distilled(samples, knowledge)
    for name, loss in plain.items():
        assert losses.pop(name).item() == loss.item(), name
    assert set(losses) == {"loss_tfd", "loss_fd", "loss_ed", "loss_cqd", "loss_qd"}


@pytest.mark.parametrize(("key", "options"), ROWS)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(key: str, options: dict) -> None:
    teacher = Detector(
        net=tiny_net(), criterion=criterion(), class_names=["polyp"], num_frames=1
    ).eval()
    samples = [make_sample(0, num_frames=1, lesions=2), make_sample(1, num_frames=1)]
    student = tiny_detector()
    student.net.load_state_dict(copy.deepcopy(teacher.net.state_dict()))
    distilled = distil(student, **{key: options}).train()
    losses = distilled(samples, teacher_knowledge(teacher, samples, reach=distilled.reach))
    assert losses[f"loss_{key}"].item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(("key", "options"), ROWS)
def test_a_clip_gives_the_same_distillation_in_any_batch(key: str, options: dict) -> None:
    samples, teacher = batch(), tiny_teacher().eval()
    distilled = distil(tiny_detector(), **{key: options}).train()

    def loss(part: list[dict]) -> float:
        knowledge = teacher_knowledge(teacher, part, reach=distilled.reach)
        return distilled(part, knowledge)[f"loss_{key}"].item()

    assert loss(samples) == pytest.approx((loss(samples[:1]) + loss(samples[1:])) / 2, rel=1e-4)


@pytest.mark.parametrize(("key", "options"), ROWS)
def test_frames_without_a_lesion_keep_the_graph(key: str, options: dict) -> None:
    samples = [make_sample(0, lesions=0), make_sample(1, lesions=0)]
    distilled = distil(tiny_detector(), **{key: options}).train()
    knowledge = teacher_knowledge(tiny_teacher().eval(), samples, reach=distilled.reach)
    losses = distilled(samples, knowledge)
    assert (losses[f"loss_{key}"].item() == 0.0) == (options.get("mask") == "box")
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distilled.parameters())


@pytest.mark.parametrize(("key", "options"), ROWS)
def test_a_student_of_one_level_and_with_a_softmax_learns_as_well(key: str, options: dict) -> None:
    samples = batch()
    distilled = distil(tiny_detr_detector(), **{key: options}).train()
    knowledge = teacher_knowledge(tiny_teacher().eval(), samples, reach=distilled.reach)
    loss = distilled(samples, knowledge)[f"loss_{key}"]
    assert loss.isfinite() and loss.item() > 0


@pytest.mark.parametrize(
    ("losses", "reach"),
    [
        ({"tfd": {}}, Reach.FEATURES),
        ({"tfd": {}, "ed": {}}, Reach.MEMORY),
        ({"qd": {}, "fd": {}}, Reach.DECODED),
        ({"ed": {"mask": "attention"}}, Reach.DECODED),
        ({"cqd": {}, "fd": {}}, Reach.CLIPS),
    ],
)
def test_the_teacher_is_asked_for_what_the_most_demanding_loss_needs(
    losses: dict, reach: Reach
) -> None:
    assert distil(tiny_detector(), **losses).reach == reach


def test_a_loss_can_stand_twice_under_names_of_its_own() -> None:
    both = {name: EmbeddingDistillation() for name in ("ed", "more")}
    distilled = DistilledStudent(student=tiny_detector(), losses=both).train()
    losses = distilled(batch(), distilled.knowledge(tiny_teacher().eval(), batch()))
    assert losses["loss_ed"] == losses["loss_more"] > 0
