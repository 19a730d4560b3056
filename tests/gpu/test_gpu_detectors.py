"""Every family computes on a GPU what it computes on the CPU, to within float32's rounding."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from tests.conftest import make_sample, tiny_detector
from tests.gpu.conftest import FAMILIES, demo_detector, other_rounding
from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.knowledge import teacher_knowledge
from v2idetr.distillation.student import DistilledStudent
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.evaluation.cost import measure_cost

pytestmark = pytest.mark.gpu

LOSS_BOUND = 1e-4  # relative
GRADIENT_BOUND = 5e-3  # of the norm of all gradients together
SCORE_BOUND = 1e-4
BOX_BOUND_PX = 0.05


def samples() -> list[dict]:
    return [make_sample(seed, size=(96, 128), lesions=1 + seed) for seed in range(2)]


def losses_and_gradients(model: torch.nn.Module, **given) -> tuple[dict, dict]:
    """Losses, and the gradient of their sum by parameter, on the CPU."""
    model.train()
    torch.seed()  # nothing random may be left: devices draw differently
    losses = model(samples(), **given)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def assert_same_step(here: tuple[dict, dict], there: tuple[dict, dict]) -> None:
    losses, gradients = here
    assert losses.keys() == there[0].keys() and gradients.keys() == there[1].keys()
    for name, loss in losses.items():
        assert there[0][name] == pytest.approx(loss, rel=LOSS_BOUND, abs=1e-6), name
    whole = torch.stack([g.norm() for g in gradients.values()]).norm()
    differences = {name: float((g - there[1][name]).norm()) for name, g in gradients.items()}
    worst = max(differences, key=lambda name: differences[name])
    assert differences[worst] <= GRADIENT_BOUND * whole, worst
    assert whole > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("role", ["model", "teacher"])
def test_losses_and_gradients_equal_the_cpus(family: str, role: str, device) -> None:
    model = demo_detector(family, role)
    here = losses_and_gradients(deepcopy(model))
    with other_rounding():
        assert_same_step(here, losses_and_gradients(model.to(device)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("role", ["model", "teacher"])
def test_detections_equal_the_cpus(family: str, role: str, device) -> None:
    model = demo_detector(family, role).eval()
    here = [result["instances"] for result in model(samples())]
    with other_rounding():
        there = [result["instances"].to("cpu") for result in model.to(device)(samples())]
    for ours, theirs in zip(here, there, strict=True):
        assert len(ours) == len(theirs) > 0
        torch.testing.assert_close(theirs.scores, ours.scores, atol=SCORE_BOUND, rtol=0)
        # Detections of equal scores may change places.
        distance = torch.cdist(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, p=float("inf"))
        assert distance.min(1).values.max() < BOX_BOUND_PX
        assert distance.min(0).values.max() < BOX_BOUND_PX


@pytest.mark.parametrize("family", FAMILIES)
def test_a_distilled_step_equals_the_cpus(family: str, device) -> None:
    stride = 16 if family == "detr_small" else 32

    def step(on: torch.device) -> tuple[dict, dict]:
        teacher = demo_detector("deformable_detr_small", "teacher").to(on).eval()
        student = DistilledStudent(
            student=demo_detector(family, "model"),
            losses={
                "cqd": CrossViewQueryDistillation(weight=1.0),
                "tfd": TargetGuidedFeatureDistillation(weight=1.0, stride=stride),
            },
        ).to(on)
        return losses_and_gradients(student, knowledge=teacher_knowledge(teacher, samples()))

    here = step(torch.device("cpu"))
    with other_rounding():
        assert_same_step(here, step(device))


def test_the_cost_of_a_detection_is_measured(device) -> None:
    cost = measure_cost(tiny_detector().to(device).eval(), samples()[0])
    assert cost["frames_per_second"] > 0 and cost["flops"] > 0
    if device.type == "cuda":
        assert cost["peak_memory_mib"] > 0
