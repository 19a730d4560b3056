"""A student with its teacher's own weights has nothing left to learn from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import criterion, make_sample, tiny_detector, tiny_net
from tests.distillation.test_student import KINDS, distil
from v2idetr.distillation.knowledge import Frames
from v2idetr.modeling.meta_arch import Detector

T = 3  # divides the 12 queries: together the chunks of all frames are every query once


def still_clips() -> list[dict[str, Any]]:
    """Clips that repeat their current frame."""
    samples = []
    for number in range(2):
        sample = make_sample(number, lesions=1)
        current = sample["clip"][sample["clip_index"]]
        samples.append({**sample, "clip": [current] * T, "seed": number})
    return samples


def teacher_like(student: Any, **settings: Any) -> Detector:
    """With the student's weights and MSI as it starts, the identity."""
    net = tiny_net(temporal=True, **settings)
    missing = net.load_state_dict(student.net.state_dict(), strict=False).missing_keys
    assert all(name.startswith("fusion.") for name in missing)
    return Detector(net=net, criterion=criterion(), class_names=["polyp"], num_frames=T).eval()


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("frames", ["current", "all"])
def test_both_losses_vanish_on_clips_that_stand_still(
    settings: dict[str, Any], frames: Frames
) -> None:
    student = tiny_detector(**settings)
    distilled = distil(student, frames=frames).train()
    teacher = teacher_like(student, **settings)
    losses = distilled(still_clips(), distilled.knowledge(teacher, still_clips()))
    assert losses["loss_tfd"].item() == pytest.approx(0.0, abs=1e-5)
    assert losses["loss_cqd"].item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("settings", KINDS)
def test_they_do_not_for_other_weights_and_other_frames(settings: dict[str, Any]) -> None:
    student = tiny_detector(**settings)
    distilled = distil(student).train()
    other = teacher_like(tiny_detector(**settings), **settings)
    losses = distilled(still_clips(), distilled.knowledge(other, still_clips()))
    assert losses["loss_tfd"].item() > 1e-2 and losses["loss_cqd"].item() > 1e-3
    moving = [make_sample(0, lesions=1), make_sample(1, lesions=1)]
    teacher = teacher_like(student, **settings)
    with torch.no_grad():
        losses = distilled(moving, distilled.knowledge(teacher, moving))
    assert losses["loss_tfd"].item() == pytest.approx(0.0, abs=1e-5)  # MSI is the identity
    assert losses["loss_cqd"].item() > 1e-3
