"""Slots where the frames of a clip are mixed, and where the current frame is selected."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import criterion, make_sample, tiny_net
from v2idetr.distillation.knowledge import Reach, teacher_knowledge
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.fusion import Fusion
from v2idetr.modeling.interface import Features, Memory, Queries
from v2idetr.modeling.meta_arch import Detector
from v2idetr.modeling.temporal import MSI


def mixed(x: Tensor, num_frames: int) -> Tensor:
    """Every frame plus a hundredth of the sum over its clip."""
    clips = x.unflatten(0, (-1, num_frames))
    return (clips + 0.01 * clips.sum(1, keepdim=True)).flatten(0, 1)


class MixedFeatures(nn.Module):
    def forward(self, features: Features) -> Features:
        maps = {s: mixed(m, features.num_frames) for s, m in features.maps.items()}
        return replace(features, maps=maps)


class MixedMemory(nn.Module):
    def forward(self, memory: Memory) -> Memory:
        return replace(memory, tokens=mixed(memory.tokens, memory.features.num_frames))


class MixedQueries(nn.Module):
    def forward(self, queries: Queries, memory: Memory) -> Queries:
        T = memory.features.num_frames
        return replace(queries, content=mixed(queries.content + memory.tokens.mean(1, True), T))


SLOTS = {"features": MixedFeatures, "memory": MixedMemory, "queries": MixedQueries}
COMBINATIONS = [["features"], ["memory"], ["queries"], ["features", "queries"], list(SLOTS)]


def detector(*slots: str, **settings) -> Detector:
    torch.manual_seed(0)
    net = tiny_net(**settings)
    if slots:
        net.fusion = Fusion(**{slot: SLOTS[slot]() for slot in slots})
    return Detector(net=net, criterion=criterion(), class_names=["polyp"], num_frames=3).eval()


@pytest.mark.parametrize("slots", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("two_stage", [False, True])
@torch.no_grad()
def test_the_current_frame_is_what_all_frames_together_give_of_it(slots, two_stage) -> None:
    teacher = detector(*slots, box_refine=two_stage, two_stage=two_stage)
    samples = [make_sample(0), make_sample(1, size=(96, 64))]
    images, current = teacher.images(teacher.frames(samples)), teacher.current(samples)
    everything, some = teacher.net(images), teacher.net(images, current)
    want = everything.select(current)
    torch.testing.assert_close(some.hidden, want.hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some.boxes, want.boxes, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slot", SLOTS)
@torch.no_grad()
def test_a_module_in_any_slot_makes_the_detection_depend_on_the_other_frames(slot) -> None:
    for used, differs in (((), False), ((slot,), True)):
        teacher, sample = detector(*used), make_sample(0)
        before = teacher([sample])[0]["instances"].scores
        sample["clip"][2]["image"] = torch.zeros_like(sample["image"])
        after = teacher([sample])[0]["instances"].scores
        assert bool((before - after).abs().max() > 1e-6) == differs


@torch.no_grad()
def test_images_on_their_own_are_what_a_slot_gets() -> None:
    teacher, samples = detector("features"), [make_sample(0), make_sample(1, size=(96, 64))]
    images = teacher.images(teacher.frames(samples))
    alone = teacher.net.extract_images(images)
    assert teacher.net.fusion is not None and teacher.net.fusion.features is not None
    mixed, want = teacher.net.fusion.features(alone), teacher.net.extract(images)
    for stride, maps in want.maps.items():
        assert torch.equal(mixed.maps[stride], maps)
        assert not torch.equal(alone.maps[stride], maps)


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("reach", [Reach.MEMORY, Reach.DECODED, Reach.CLIPS])
def test_a_teacher_knows_the_same_however_far_it_has_to_go(slot, reach) -> None:
    teacher, samples = detector(slot), [make_sample(0), make_sample(1)]
    whole, part = (teacher_knowledge(teacher, samples, reach=r) for r in (Reach.CLIPS, reach))
    for stride, maps in whole.encoded.maps.items():
        torch.testing.assert_close(part.encoded.maps[stride], maps, atol=1e-5, rtol=1e-5)
    if reach >= Reach.DECODED:
        torch.testing.assert_close(part.decoded.boxes, whole.decoded.boxes, atol=1e-5, rtol=1e-5)


def test_a_fusion_without_a_module_is_refused() -> None:
    with pytest.raises(ValueError, match="fusion has no module: give one for features, memory or"):
        Fusion()


def test_a_fusion_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"net\.fusion\.features\.d is 64, but net\.d is 32"):
        DeformableDETR(
            backbone=tiny_net().backbone,
            num_classes=1,
            weights=None,
            d=32,
            fusion=Fusion(features=MSI(d=64, num_heads=4)),
        )
