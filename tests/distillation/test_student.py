"""A distilled student: more losses in training, the very same detector otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.conftest import criterion, make_sample, tiny_detector, tiny_net, tiny_teacher
from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.knowledge import Knowledge, Reach, teacher_knowledge
from v2idetr.distillation.loss import Pairing
from v2idetr.distillation.student import DistilledStudent
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.evaluation.cost import flops, parameters
from v2idetr.modeling.fusion import Fusion
from v2idetr.modeling.meta_arch import Detector
from v2idetr.modeling.temporal import MSI

ONE_STAGE: dict[str, Any] = {}
REFINED = {"box_refine": True}
TWO_STAGE = {"box_refine": True, "two_stage": True, "mixed_queries": True}
KINDS = [ONE_STAGE, REFINED, TWO_STAGE]


def tfd(**options) -> TargetGuidedFeatureDistillation:
    return TargetGuidedFeatureDistillation(**{"student_dim": 32, "teacher_dim": 32} | options)


def cqd(**options) -> CrossViewQueryDistillation:
    return CrossViewQueryDistillation(**{"student_dim": 32, "teacher_dim": 32} | options)


def distil(student: Detector, frames: str = "current", **changes) -> DistilledStudent:
    """With TFD and CQD, changed or, where None, left out."""
    losses = {"cqd": cqd(), "tfd": tfd()} | changes
    given = {key: loss for key, loss in losses.items() if loss is not None}
    return DistilledStudent(student=student, losses=given, frames=frames)


def batch() -> list[dict]:
    return [make_sample(0, lesions=2), make_sample(1, size=(96, 64), lesions=1)]


def know(samples: list[dict], **settings) -> Knowledge:
    return teacher_knowledge(tiny_teacher(**settings).eval(), samples)


# ------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("settings", KINDS)
def test_evaluation_is_that_of_the_plain_detector_bit_by_bit(settings: dict) -> None:
    student, samples = tiny_detector(**settings), batch()
    distilled = distil(student).eval()
    for have, want in zip(distilled(samples), copy.deepcopy(student).eval()(samples), strict=True):
        a, b = have["instances"], want["instances"]
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_classes, b.pred_classes)


def test_in_evaluation_it_costs_what_the_plain_detector_costs() -> None:
    distilled = distil(tiny_detector(), tfd=tfd(align="conv1x1"), cqd=cqd(teacher_dim=64))
    plain = tiny_detector()
    assert flops(distilled, batch()[0]) == flops(plain, batch()[0]) > 0
    assert parameters(distilled.student) == parameters(plain)


def test_a_trained_student_without_its_distillation_is_the_same_detector() -> None:
    student, samples = tiny_detector(), batch()
    distilled = distil(student, tfd=tfd(align="conv1x1"))
    optimizer = torch.optim.SGD(distilled.parameters(), lr=1e-3)
    sum(distilled.train()(samples, know(samples)).values()).backward()
    optimizer.step()
    plain = tiny_detector()
    plain.load_state_dict(distilled.student.state_dict())
    a = distilled.eval()(samples)[0]["instances"]
    b = plain.eval()(samples)[0]["instances"]
    assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)


def test_what_is_kept_of_a_student_has_the_keys_of_a_plain_detector() -> None:
    distilled = distil(tiny_detector(), tfd=tfd(align="conv1x1"), cqd=cqd(teacher_dim=64))
    assert list(distilled.student.state_dict()) == list(tiny_detector().state_dict())
    others = {key.split(".")[1] for key in distilled.state_dict() if key.startswith("losses.")}
    assert others == {"tfd", "cqd"}


def test_a_student_looks_at_one_frame_and_is_supervised_on_it() -> None:
    distilled, samples = distil(tiny_detector()), batch()
    assert distilled.num_frames == 1
    assert distilled.count_boxes(samples) == 3


# ------------------------------------------------------------------------- training


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", KINDS)
def test_every_kind_of_student_learns_from_every_kind_of_teacher(
    student: dict, teacher: dict
) -> None:
    samples, model = batch(), tiny_teacher(**teacher).eval()
    knowledge = teacher_knowledge(model, samples)
    distilled = distil(tiny_detector(**student)).train()
    losses = distilled(samples, knowledge)
    assert {"loss_class", "loss_l1", "loss_giou", "loss_tfd", "loss_cqd"} <= set(losses)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    assert losses["loss_tfd"].item() > 0 and 0 < losses["loss_cqd"].item() < 10
    sum(losses.values()).backward()
    for name, parameter in distilled.named_parameters():
        assert parameter.grad is not None, name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("mask", ["one_way", "isolated"])
def test_detection_losses_are_those_of_the_plain_detector_bit_by_bit(
    mask: str, settings: dict
) -> None:
    # With dropout: the own queries draw the same numbers, because they are decoded first.
    student, samples = tiny_detector(dropout=0.3, **settings).train(), batch()
    knowledge = know(samples)
    torch.manual_seed(7)
    plain = student(samples)
    torch.manual_seed(7)
    distilled = distil(student, cqd=cqd(mask=mask)).train()(samples, knowledge)
    for name, loss in plain.items():
        assert distilled.pop(name).item() == loss.item(), name
    assert set(distilled) == {"loss_tfd", "loss_cqd"}


def test_without_a_mask_the_detection_losses_change() -> None:
    student, samples = tiny_detector().train(), batch()
    plain = student(samples)
    distilled = distil(student, cqd=cqd(mask="none")).train()(samples, know(samples))
    assert distilled["loss_class"].item() != plain["loss_class"].item()


def test_without_weight_distillation_leaves_the_gradients_alone() -> None:
    student, samples = tiny_detector(**REFINED).train(), batch()
    sum(student(samples).values()).backward()
    plain = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    distilled = distil(student, tfd=tfd(weight=0.0), cqd=cqd(weight=0.0)).train()
    sum(distilled(samples, know(samples)).values()).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], atol=1e-6, rtol=1e-5)


def test_weights_scale_the_distillation_losses() -> None:
    student, samples = tiny_detector().train(), batch()
    knowledge = know(samples)
    once = distil(student, tfd=tfd(weight=1.0), cqd=cqd(weight=1.0)).train()(samples, knowledge)
    more = distil(student, tfd=tfd(weight=2.0), cqd=cqd(weight=5.0)).train()(samples, knowledge)
    assert more["loss_tfd"].item() == pytest.approx(2 * once["loss_tfd"].item(), rel=1e-6)
    assert more["loss_cqd"].item() == pytest.approx(5 * once["loss_cqd"].item(), rel=1e-6)
    assert more["loss_class"].item() == once["loss_class"].item()


def test_either_loss_can_be_left_out() -> None:
    student, samples = tiny_detector().train(), batch()
    knowledge = know(samples)
    assert "loss_cqd" not in distil(student, cqd=None).train()(samples, knowledge)
    assert "loss_tfd" not in distil(student, tfd=None).train()(samples, knowledge)
    without_queries = teacher_knowledge(tiny_teacher().eval(), samples, reach=Reach.FEATURES)
    assert "loss_tfd" in distil(student, cqd=None).train()(samples, without_queries)


def test_lesions_reach_tfd_in_pixels_of_the_padded_batch() -> None:
    student, samples = tiny_detector().train(), batch()
    knowledge, seen = know(samples), []

    class Listening(TargetGuidedFeatureDistillation):
        def forward(self, pairing: Pairing) -> Any:
            seen.extend(pairing.boxes_xyxy_px)
            return super().forward(pairing)

    listening = Listening(student_dim=32, teacher_dim=32)
    distil(student, tfd=listening).train()(samples, knowledge)
    for boxes, sample in zip(seen, samples, strict=True):
        torch.testing.assert_close(boxes, sample["instances"].gt_boxes.tensor)


def test_a_clip_gives_the_same_distillation_in_any_batch() -> None:
    student, samples = tiny_detector().train(), batch()
    model = tiny_teacher().eval()
    distilled = distil(student).train()
    together = distilled(samples, teacher_knowledge(model, samples))
    parts = [distilled([s], teacher_knowledge(model, [s])) for s in samples]
    for name in ("loss_tfd", "loss_cqd"):
        mean = sum(part[name].item() for part in parts) / 2
        assert together[name].item() == pytest.approx(mean, rel=1e-4)


def test_a_batch_without_lesions_still_distils_queries() -> None:
    samples = [make_sample(0, lesions=0), make_sample(1, lesions=0)]
    distilled = distil(tiny_detector()).train()
    losses = distilled(samples, know(samples))
    assert losses["loss_tfd"].item() == 0.0 and losses["loss_cqd"].item() > 0.0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distilled.parameters())


def test_a_student_that_equals_its_teacher_has_nothing_to_learn() -> None:
    # The same network on the same single frame, without a temporal module: S = T and D = D.
    teacher = Detector(
        net=tiny_net(), criterion=criterion(), class_names=["polyp"], num_frames=1
    ).eval()
    samples = [make_sample(0, num_frames=1, lesions=2)]
    student = tiny_detector()
    student.net.load_state_dict(teacher.net.state_dict())
    distilled = distil(student, cqd=cqd(mask="isolated", per_frame="N")).train()
    losses = distilled(samples, teacher_knowledge(teacher, samples))
    assert losses["loss_tfd"].item() == 0.0
    assert losses["loss_cqd"].item() == pytest.approx(0.0, abs=1e-5)


def test_a_teacher_of_another_width_is_translated() -> None:
    net = tiny_net(d=64, **TWO_STAGE)
    net.fusion = Fusion(features=MSI(d=64, ffn_dim=48, num_heads=4))
    teacher = Detector(net=net, criterion=criterion(), class_names=["polyp"], num_frames=3)
    samples = batch()
    distilled = distil(
        tiny_detector(), tfd=tfd(align="conv1x1", teacher_dim=64), cqd=cqd(teacher_dim=64)
    ).train()
    losses = distilled(samples, teacher_knowledge(teacher.eval(), samples))
    sum(losses.values()).backward()
    for name, parameter in distilled.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("T", [1, 2, 5])
def test_clips_of_any_length_distil(T: int) -> None:
    samples = [make_sample(0, num_frames=T), make_sample(1, num_frames=T)]
    knowledge = teacher_knowledge(tiny_teacher(num_frames=T).eval(), samples)
    losses = distil(tiny_detector()).train()(samples, knowledge)
    assert all(loss.isfinite() for loss in losses.values())


# ------------------------------------------------------------------------- refusals


def test_a_student_without_any_distillation_is_refused() -> None:
    with pytest.raises(ValueError, match="run the stage 'plain'"):
        DistilledStudent(student=tiny_detector(), losses={})


def test_training_without_the_teachers_knowledge_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="needs the teacher's knowledge"):
        distil(tiny_detector()).train()(batch())


def test_teacher_and_student_must_pad_alike() -> None:
    teacher, samples = tiny_teacher().eval(), [make_sample(0, size=(96, 96))]
    teacher.size_divisor = 64
    with pytest.raises(ValueError, match=r"\(3, 3\) cells .* \(4, 4\): .* size_divisor"):
        distil(tiny_detector()).train()(samples, teacher_knowledge(teacher, samples))
