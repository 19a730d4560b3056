"""FD and ED: every mask and distance by hand, and what they share with TFD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from v2idetr.distillation.feature_distillation import EmbeddingDistillation, FeatureDistillation
from v2idetr.distillation.knowledge import Reach
from v2idetr.distillation.spatial_masks import attention_mask
from v2idetr.modeling.interface import Features

MASKS = ["none", "box", "attention"]


def distil(d: int, **options) -> FeatureDistillation:
    return FeatureDistillation(**{"student_dim": d, "teacher_dim": d} | options)


def features(maps: Tensor, stride: int = 32) -> Features:
    return Features({stride: maps}, None)


def boxes(*xyxy: tuple[float, ...]) -> Tensor:
    return torch.tensor(xyxy, dtype=torch.float32).view(-1, 4)


# Two channels, three cells in a row: differences 0, (1, -3), (5, 5).
STUDENT = torch.zeros(1, 2, 1, 3)
TEACHER = torch.tensor([[[[0.0, 1.0, 5.0]], [[0.0, -3.0, 5.0]]]])
MIDDLE = boxes((32, 0, 64, 32))


# ------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("mask", "distance", "normalizer", "want"),
    [
        ("none", "l1", "pixels", 14 / 3),
        ("none", "l1", "elements", 14 / 6),
        ("none", "l1", "mask_sum", 14 / 3),
        ("none", "mse", "elements", (1 + 9 + 25 + 25) / 6),
        ("box", "l1", "pixels", 4 / 3),
        ("box", "l1", "elements", 4 / 6),
        ("box", "l1", "mask_sum", 4.0),
        ("box", "mse", "pixels", 10 / 3),
    ],
)
def test_the_loss_is_what_arithmetic_says(
    mask: str, distance: str, normalizer: str, want: float
) -> None:
    fd = distil(2, mask=mask, distance=distance, normalizer=normalizer)
    loss = fd.compare(features(STUDENT), features(TEACHER), [MIDDLE])
    assert loss.item() == pytest.approx(want, rel=1e-6)
    double = distil(2, mask=mask, distance=distance, normalizer=normalizer, weight=2.0)
    double_loss = double.compare(features(STUDENT), features(TEACHER), [MIDDLE])
    assert double_loss.item() == pytest.approx(2 * want)


def test_attention_weighs_both_maps_before_they_are_compared_layer_by_layer() -> None:
    teacher = torch.tensor([[[[1.0, 0.0, 3.0]], [[0.0, 2.0, 4.0]]]])
    student = teacher + torch.tensor([[[[1.0, 1.0, 1.0]], [[0.0, 1.0, -1.0]]]])
    attended = torch.tensor([[[1.0, 0.0]], [[0.0, 0.5]]])  # two layers
    # cosines with (1, 0): 1, 0, 0.6; with (0, 1): 0, 1, 0.8; at least 0.01 before the division
    first, second = (1.0, 0.01, 0.6), (0.02, 1.0, 0.8)
    squares = (1.0, 2.0, 2.0)
    fd = distil(2, mask="attention", distance="mse", normalizer="elements")
    want = sum(m * m * s for mask in (first, second) for m, s in zip(mask, squares, strict=True))
    loss = fd.compare(features(student), features(teacher), [boxes()], attended)
    assert loss.item() == pytest.approx(want / 6, rel=1e-5)
    plain = distil(2, mask="attention", normalizer="elements")
    totals = (1.0, 2.0, 2.0)
    want = sum(m * t for mask in (first, second) for m, t in zip(mask, totals, strict=True))
    loss = plain.compare(features(student), features(teacher), [boxes()], attended)
    assert loss.item() == pytest.approx(want / 6, rel=1e-5)


def test_several_levels_are_summed() -> None:
    teacher = Features({8: torch.ones(1, 2, 4, 4), 32: torch.full((1, 2, 1, 1), 3.0)}, None)
    student = Features({8: torch.zeros(1, 2, 4, 4), 32: torch.zeros(1, 2, 1, 1)}, None)
    loss = distil(2, strides=[8, 32]).compare(student, teacher, [boxes()])
    assert loss.item() == pytest.approx(1.0 + 3.0)


# ------------------------------------------------------------------------- whatever the mask


def sample(B: int, *, seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Maps of student and teacher, lesions, and what two layers look for."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, B, 4, 5, 6, generator=generator)
    lesions = [boxes((10, 10, 90, 70)), boxes(), boxes((0, 0, 150, 150), (160, 90, 190, 160))]
    return student, teacher, lesions[:B], torch.randn(2, B, 4, generator=generator)


@pytest.mark.parametrize("distance", ["l1", "mse"])
@pytest.mark.parametrize("mask", MASKS)
def test_equal_features_cost_nothing(mask: str, distance: str) -> None:
    student, _, lesions, attended = sample(3)
    fd = distil(4, mask=mask, distance=distance)
    assert fd.compare(features(student), features(student.clone()), lesions, attended).item() == 0.0


@pytest.mark.parametrize("mask", MASKS)
def test_only_the_student_learns(mask: str) -> None:
    student, teacher, lesions, attended = sample(3)
    for tensor in (student, teacher, attended):
        tensor.requires_grad_()
    fd = distil(4, mask=mask)
    fd.compare(features(student), features(teacher), lesions, attended.detach()).backward()
    assert student.grad.any() and teacher.grad is None


@pytest.mark.parametrize("normalizer", ["pixels", "elements", "mask_sum"])
def test_without_lesions_a_box_mask_costs_nothing_and_keeps_the_graph(normalizer: str) -> None:
    student, teacher, _, _ = sample(1)
    student.requires_grad_()
    fd = distil(4, mask="box", normalizer=normalizer)
    loss = fd.compare(features(student), features(teacher), [boxes()])
    assert loss.item() == 0.0
    loss.backward()
    assert student.grad is not None and not student.grad.any()


@pytest.mark.parametrize("distance", ["l1", "mse"])
@pytest.mark.parametrize("mask", MASKS)
def test_the_loss_of_a_batch_is_the_mean_over_its_images(mask: str, distance: str) -> None:
    student, teacher, lesions, attended = sample(3)
    fd = distil(4, mask=mask, distance=distance)
    together = fd.compare(features(student), features(teacher), lesions, attended)
    parts = [
        fd.compare(
            features(student[i : i + 1]),
            features(teacher[i : i + 1]),
            lesions[i : i + 1],
            attended[:, i : i + 1],
        ).item()
        for i in range(3)
    ]
    assert together.item() == pytest.approx(sum(parts) / 3, rel=1e-5)


@pytest.mark.parametrize("normalizer", ["pixels", "elements", "mask_sum"])
@pytest.mark.parametrize("distance", ["l1", "mse"])
@pytest.mark.parametrize("mask", MASKS)
def test_padding_is_no_pixel_of_the_image(mask: str, distance: str, normalizer: str) -> None:
    student, teacher, lesions, attended = sample(1)
    fd = distil(4, mask=mask, distance=distance, normalizer=normalizer)
    alone = fd.compare(features(student), features(teacher), lesions, attended)
    ours, theirs = (
        nn.functional.pad(maps, (0, 3, 0, 2), value=value)
        for maps, value in ((student, 7.0), (teacher, 9.0))
    )
    padding = torch.ones(1, 7, 9, dtype=torch.bool)
    padding[:, :5, :6] = False
    padded = fd.compare(
        Features({32: ours}, {32: padding}),
        Features({32: theirs}, {32: padding}),
        lesions,
        attended,
    )
    assert padded.item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("mask", MASKS)
def test_half_precision_features_are_compared_in_single_precision(mask: str) -> None:
    student, teacher, lesions, attended = sample(2)
    student, teacher = student.half(), teacher.half()
    fd = distil(4, mask=mask)
    have = fd.compare(features(student), features(teacher), lesions, attended)
    assert have.dtype == torch.float32
    want = fd.compare(features(student.float()), features(teacher.float()), lesions, attended)
    torch.testing.assert_close(have, want)


def test_attention_is_computed_on_the_teachers_own_map() -> None:
    student, teacher, lesions, attended = sample(1)
    fd = distil(4, mask="attention")
    mask = sum(attention_mask(layer, teacher, None) for layer in attended)
    want = (mask * (student - teacher).abs().sum(1)).sum() / (5 * 6 * 4)
    have = fd.compare(features(student), features(teacher), lesions, attended)
    assert have.item() == pytest.approx(want.item(), rel=1e-5)


# ------------------------------------------------------------------------- alignment and reach


def test_every_level_has_an_alignment_of_its_own() -> None:
    fd = FeatureDistillation(align="conv1x1", strides=[8, 32], student_dim=3, teacher_dim=5)
    student = Features({s: torch.randn(1, 3, 2, 2, requires_grad=True) for s in (8, 32)}, None)
    teacher = Features({s: torch.randn(1, 5, 2, 2) for s in (8, 32)}, None)
    fd.compare(student, teacher, [boxes()]).backward()
    assert len(list(fd.parameters())) == 4
    assert all(parameter.grad.any() for parameter in fd.parameters())
    assert not list(FeatureDistillation().parameters())


@pytest.mark.parametrize(
    ("kind", "mask", "reach"),
    [
        (FeatureDistillation, "none", Reach.FEATURES),
        (FeatureDistillation, "box", Reach.FEATURES),
        (FeatureDistillation, "attention", Reach.DECODED),
        (EmbeddingDistillation, "none", Reach.MEMORY),
        (EmbeddingDistillation, "attention", Reach.DECODED),
    ],
)
def test_the_teacher_is_asked_for_what_the_mask_needs(
    kind: type[FeatureDistillation], mask: str, reach: Reach
) -> None:
    assert kind(mask=mask).reach == reach


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "key"), [(FeatureDistillation, "fd"), (EmbeddingDistillation, "ed")]
)
def test_refusals_name_the_key_of_the_loss(kind: type[FeatureDistillation], key: str) -> None:
    with pytest.raises(ValueError, match=rf"set distillation\.{key}\.align=conv1x1"):
        kind(student_dim=128)
    with pytest.raises(ValueError, match=rf"distillation\.{key}\.strides must name a level"):
        kind(strides=[])
    with pytest.raises(ValueError, match=rf"distillation\.{key}\.strides=32, but the student"):
        kind().compare(features(STUDENT, stride=16), features(TEACHER), [MIDDLE])
