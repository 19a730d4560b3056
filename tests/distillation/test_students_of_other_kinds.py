"""DETR and SAM-DETR learn from a Deformable DETR: another network, other queries, one level."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import make_sample, tiny_detr_detector, tiny_sam_detr_detector, tiny_teacher
from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.knowledge import Knowledge, teacher_knowledge
from v2idetr.distillation.student import DistilledStudent
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.evaluation.cost import flops, parameters
from v2idetr.modeling.meta_arch import Detector

TEACHERS: dict[str, dict[str, Any]] = {
    "one_stage": {},
    "refined": {"box_refine": True},
    "two_stage": {"box_refine": True, "two_stage": True},
    "mixed_queries": {"box_refine": True, "two_stage": True, "mixed_queries": True},
}
STUDENTS: dict[str, dict[str, Any]] = {
    "detr": {},
    "detr_positions_alone": {"query_content": "zero"},
    "sam_detr": {},
    "sam_detr_smca": {"smca": True},
    "sam_detr_multi_scale": {"multi_scale": True},
}
every_student = pytest.mark.parametrize("kind", STUDENTS)


def detector(kind: str, **settings) -> Detector:
    make = tiny_sam_detr_detector if kind.startswith("sam_detr") else tiny_detr_detector
    return make(**STUDENTS[kind], **settings)


def distil(
    student: Detector, *, teacher_dim: int = 32, align: str = "conv1x1", **options
) -> DistilledStudent:
    dims = {"student_dim": 32, "teacher_dim": teacher_dim}
    return DistilledStudent(
        student=student,
        losses={
            "cqd": CrossViewQueryDistillation(**dims, **options),
            "tfd": TargetGuidedFeatureDistillation(align=align, **dims),
        },
    )


def batch() -> list[dict]:
    return [make_sample(0, lesions=2), make_sample(1, size=(96, 64), lesions=1)]


def know(samples: list[dict], **settings) -> Knowledge:
    return teacher_knowledge(tiny_teacher(**settings).eval(), samples)


@every_student
@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_student_learns_from_every_kind_of_teacher(teacher: str, kind: str) -> None:
    samples = batch()
    distilled = distil(detector(kind)).train()
    losses = distilled(samples, know(samples, **TEACHERS[teacher]))
    assert {"loss_class", "loss_l1", "loss_giou", "loss_tfd", "loss_cqd"} <= set(losses)
    assert losses["loss_tfd"].item() > 0 and 0 < losses["loss_cqd"].item() < 10
    sum(losses.values()).backward()
    for name, parameter in distilled.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("mask", ["one_way", "isolated", "none"])
@pytest.mark.parametrize("kind", ["detr", "detr_positions_alone", "sam_detr"])
def test_a_teacher_of_another_width_is_translated(kind: str, mask: str) -> None:
    # All of it, also what this student makes itself: a gradient is what processes wait for.
    samples = batch()
    distilled = distil(detector(kind), teacher_dim=64, mask=mask).train()
    sum(distilled(samples, know(samples, d=64)).values()).backward()
    for name, parameter in distilled.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("kind", "align"), [("detr", "conv1x1"), ("sam_detr", "none")])
def test_some_steps_bring_student_and_teacher_nearer(kind: str, align: str) -> None:
    samples = batch()
    knowledge = know(samples)
    distilled = distil(detector(kind), align=align).train()
    optimizer = torch.optim.AdamW(distilled.parameters(), lr=5e-3)
    history = []
    for _ in range(20):
        losses = distilled(samples, knowledge)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name, share in {"loss_tfd": 0.7, "loss_cqd": 0.7, "loss_class": 1.0}.items():
        assert history[-1][name] < share * history[0][name], name


@every_student
def test_evaluation_is_that_of_the_plain_detector_bit_by_bit(kind: str) -> None:
    samples = batch()
    distilled = distil(detector(kind))
    sum(distilled.train()(samples, know(samples)).values()).backward()
    torch.optim.SGD(distilled.parameters(), lr=1e-2).step()
    plain = detector(kind)
    plain.load_state_dict(distilled.student.state_dict())
    for have, want in zip(distilled.eval()(samples), plain.eval()(samples), strict=True):
        a, b = have["instances"], want["instances"]
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)


@every_student
def test_in_evaluation_it_costs_what_the_plain_detector_costs(kind: str) -> None:
    distilled, plain, sample = distil(detector(kind)), detector(kind), batch()[0]
    assert flops(distilled, sample) == flops(plain, sample) > 0
    assert parameters(distilled.student) == parameters(plain)


@pytest.mark.parametrize("mask", ["one_way", "isolated"])
@pytest.mark.parametrize("kind", ["detr", "sam_detr"])
def test_detection_losses_are_those_of_the_plain_detector_bit_by_bit(kind: str, mask: str) -> None:
    # With dropout: the own queries draw the same numbers, because they are decoded first.
    student, samples = detector(kind, dropout=0.3).train(), batch()
    knowledge = know(samples)
    wrapped = distil(student, mask=mask).train()
    torch.manual_seed(7)
    plain = student(samples)
    torch.manual_seed(7)
    distilled = wrapped(samples, knowledge)
    for name, loss in plain.items():
        assert distilled.pop(name).item() == loss.item(), name
    assert set(distilled) == {"loss_tfd", "loss_cqd"}
