"""Agreement of student and teacher, for the log: measured on the queries that CQD compares."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import (
    make_sample,
    tiny_detector,
    tiny_detr_detector,
    tiny_sam_detr_detector,
    tiny_teacher,
)
from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.feature_distillation import FeatureDistillation
from v2idetr.distillation.knowledge import teacher_knowledge
from v2idetr.distillation.student import DistilledStudent
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation

STUDENTS = {
    "deformable_detr": tiny_detector,
    "detr": tiny_detr_detector,
    "sam_detr": tiny_sam_detr_detector,
}


def distil(student, *, cqd_weight: float = 5.0, align: str = "conv1x1") -> DistilledStudent:
    dims = {"student_dim": 32, "teacher_dim": 32}
    losses = {
        "cqd": CrossViewQueryDistillation(weight=cqd_weight, **dims),
        "tfd": TargetGuidedFeatureDistillation(weight=0.3, align=align, **dims),
    }
    return DistilledStudent(student=student, losses=losses).train()


def measured(distilled: DistilledStudent) -> tuple[dict, dict]:
    """Losses and agreement of one batch."""
    samples = [make_sample(0, lesions=2), make_sample(1, lesions=1)]
    knowledge = teacher_knowledge(tiny_teacher().eval(), samples, reach=distilled.reach)
    distilled.agreement = []
    losses = distilled(samples, knowledge)
    (agreement,) = distilled.agreement
    return losses, agreement


@pytest.mark.parametrize("kind", STUDENTS)
def test_terms_have_no_weight_and_every_layer_its_cosine(kind: str) -> None:
    losses, agreement = measured(distil(STUDENTS[kind]()))
    assert set(agreement) == {"cqd", "cosine_layer0", "cosine_layer1", "tfd"}
    torch.testing.assert_close(agreement["cqd"], losses["loss_cqd"].detach() / 5)
    torch.testing.assert_close(agreement["tfd"], losses["loss_tfd"].detach() / 0.3)
    # The loss is 1 - cos of the last layer.
    torch.testing.assert_close(agreement["cosine_layer1"], 1 - agreement["cqd"])
    assert all(-1 <= agreement[f"cosine_layer{n}"] <= 1 for n in (0, 1))
    assert abs(agreement["cosine_layer0"] - agreement["cosine_layer1"]) > 1e-4
    assert not any(value.requires_grad for value in agreement.values())


def test_decoders_of_different_depth_are_paired_from_the_last_layer() -> None:
    losses, agreement = measured(distil(tiny_sam_detr_detector(multi_scale=True)))  # 3 layers
    assert {name for name in agreement if "cosine" in name} == {"cosine_layer1", "cosine_layer2"}
    torch.testing.assert_close(agreement["cosine_layer2"], 1 - losses["loss_cqd"].detach() / 5)


def test_a_student_that_is_its_teacher_agrees_with_it_completely() -> None:
    """Same network, same frames: the teacher without temporal fusion."""
    student = tiny_detector()
    distilled = distil(student, align="none")
    samples = [make_sample(0, lesions=2, num_frames=1)]
    distilled.eval()
    knowledge = teacher_knowledge(student, samples, reach=distilled.reach)
    distilled.train()
    distilled.agreement = []
    distilled(samples, knowledge)
    (agreement,) = distilled.agreement
    for layer in (0, 1):
        torch.testing.assert_close(agreement[f"cosine_layer{layer}"], torch.tensor(1.0))
    assert agreement["tfd"] == 0


def test_a_term_without_weight_has_no_unweighted_value_and_the_cosine_stays() -> None:
    _, agreement = measured(distil(tiny_detector(), cqd_weight=0.0))
    assert "cqd" not in agreement and "cosine_layer1" in agreement


def test_without_cqd_there_is_no_cosine() -> None:
    fd = FeatureDistillation(student_dim=32, teacher_dim=32, align="conv1x1", weight=2.0)
    distilled = DistilledStudent(student=tiny_detector(), losses={"fd": fd}).train()
    losses, agreement = measured(distilled)
    assert set(agreement) == {"fd"}
    torch.testing.assert_close(agreement["fd"], losses["loss_fd"].detach() / 2)


def test_nothing_is_measured_or_kept_unless_asked() -> None:
    distilled = distil(tiny_detector())
    samples = [make_sample(0, lesions=1)]
    distilled(samples, teacher_knowledge(tiny_teacher().eval(), samples))
    assert distilled.agreement is None
