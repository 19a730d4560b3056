"""Target-guided Feature Distillation: the mask, the loss by hand, every option, every refusal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation, gaussian_mask
from v2idetr.modeling.interface import Features

# The measured example: a lesion of 200 x 160 px in an image of 800 x 1066, its centre on the
# image's.
MIDDLE = (433.0, 320.0, 633.0, 480.0)
PICTURE = (800, 1066)


def boxes(*xyxy: tuple[float, ...]) -> Tensor:
    return torch.tensor(xyxy, dtype=torch.float32).view(-1, 4)


def mask_of(box: tuple[float, ...], stride: int, **options) -> Tensor:
    h, w = (-(-side // stride) for side in PICTURE)
    return gaussian_mask(boxes(box), stride, h, w, **options)


def features(*maps: Tensor, stride: int = 32) -> Features:
    return Features({stride: torch.stack(maps)}, None)


# ------------------------------------------------------------------------- the mask


@pytest.mark.parametrize(
    ("stride", "sigma", "cells", "total", "share"),
    [
        (8, "box", 486, 13.1, 0.25),
        (16, "box", 126, 6.6, 0.50),
        (32, "box", 30, 3.28, 0.99),
        (32, "centernet", 10, 1.60, 0.48),
        (64, "box", 8, 1.61, 1.86),
    ],
)
def test_the_mask_of_a_typical_lesion_has_the_measured_sums(
    stride: int, sigma: str, cells: int, total: float, share: float
) -> None:
    mask = mask_of(MIDDLE, stride, sigma=sigma)
    # H before the normalisation: its value at the cell nearest to the centre is known
    row, column = 400 // stride, 533 // stride
    side = {"box": (200 / 6 / stride, 160 / 6 / stride), "centernet": (0.5, 0.5)}[sigma]
    dx, dy = column + 0.5 - 533 / stride, row + 0.5 - 400 / stride
    height = math.exp(-(dx**2) / (2 * side[0] ** 2) - dy**2 / (2 * side[1] ** 2))
    norm = height / mask[row, column].item()
    assert norm == pytest.approx(
        {(8, "box"): 6.61, (16, "box"): 3.30, (32, "box"): 1.65, (32, "centernet"): 1.00}.get(
            (stride, sigma), 0.85
        ),
        abs=0.01,
    )
    assert (mask * norm > 1e-3).sum().item() == cells
    assert mask.sum().item() == pytest.approx(total, abs=0.05 if stride < 32 else 0.01)
    assert 256 * mask.sum().item() / mask.numel() == pytest.approx(share, abs=0.01)


def test_the_mask_is_a_gaussian_around_the_centre_of_the_box() -> None:
    mask = gaussian_mask(boxes((32, 0, 160, 96)), 32, 4, 6)
    # in cells: x from 1 to 5, y from 0 to 3, centre (3, 1.5), sigma (4/6, 3/6)
    want = torch.zeros(4, 6)
    for y in range(3):
        for x in range(1, 5):
            dx, dy = (x + 0.5 - 3) / (4 / 6), (y + 0.5 - 1.5) / (3 / 6)
            want[y, x] = math.exp(-(dx**2 + dy**2) / 2)
    torch.testing.assert_close(mask, want / want.norm())


def test_sigma_ratio_widens_the_gaussian() -> None:
    narrow, wide = mask_of(MIDDLE, 8), mask_of(MIDDLE, 8, sigma_ratio=1 / 3)
    assert (wide > 0).sum() == (narrow > 0).sum(), "both end at the box"
    assert wide.max() < narrow.max()


def test_ttfnets_gaussian_has_a_width_of_its_own_along_each_side() -> None:
    mask = gaussian_mask(boxes((0, 0, 320, 96)), 32, 3, 10, sigma="ttfnet")
    # radii floor(.54/2 * 10) = 2 and floor(.54/2 * 3) = 0: sigmas 5/6 and 1/6 cells
    torch.testing.assert_close(
        mask[1, 3] / mask[1, 4], torch.tensor(math.exp((0.5**2 - 1.5**2) / (2 * (5 / 6) ** 2)))
    )
    torch.testing.assert_close(mask[0, 4] / mask[1, 4], torch.tensor(math.exp(-18.0)))


def test_centernets_gaussian_is_round() -> None:
    mask = gaussian_mask(boxes((0, 0, 320, 160)), 32, 5, 10, sigma="centernet")
    # radius floor((-21 + sqrt(441 + 168)) / 2) = 1, sigma 1/2
    torch.testing.assert_close(
        mask[2, 3] / mask[2, 4], torch.tensor(math.exp((0.5**2 - 1.5**2) / (2 * 0.5**2)))
    )
    torch.testing.assert_close(mask[1, 4] / mask[2, 4], torch.tensor(math.exp(-1 / (2 * 0.5**2))))


def test_where_lesions_overlap_the_larger_value_counts() -> None:
    first, second = (32.0, 32.0, 128.0, 128.0), (96.0, 64.0, 192.0, 160.0)
    both = gaussian_mask(boxes(first, second), 32, 6, 8)

    def plain(x: float, y: float, box: tuple[float, ...]) -> float:
        x0, y0, x1, y1 = (side / 32 for side in box)
        if not (x0 <= x <= x1 and y0 <= y <= y1):
            return 0.0
        dx = (x - (x0 + x1) / 2) / ((x1 - x0) / 6)
        dy = (y - (y0 + y1) / 2) / ((y1 - y0) / 6)
        return math.exp(-(dx**2 + dy**2) / 2)

    want = torch.tensor(
        [
            [max(plain(x + 0.5, y + 0.5, box) for box in (first, second)) for x in range(8)]
            for y in range(6)
        ]
    )
    torch.testing.assert_close(both, want / want.norm())


sides = st.floats(0.5, 400.0)


@settings(max_examples=150)
@given(
    lesions=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), sides, sides), min_size=1, max_size=3
    ),
    stride=st.sampled_from([8, 32, 64]),
    sigma=st.sampled_from(["box", "centernet", "ttfnet"]),
    ratio=st.sampled_from([1e-3, 0.05, 1 / 6, 1.0]),
)
def test_the_squares_of_every_mask_sum_to_one(
    lesions: list[tuple[float, ...]], stride: int, sigma: str, ratio: float
) -> None:
    H, W = PICTURE
    xyxy = torch.tensor(
        [
            (cx * W - w / 2, cy * H - h / 2, cx * W + w / 2, cy * H + h / 2)
            for cx, cy, w, h in lesions
        ]
    )
    xyxy[:, 0::2].clamp_(0, W)
    xyxy[:, 1::2].clamp_(0, H)
    h, w = -(-H // stride), -(-W // stride)
    mask = gaussian_mask(xyxy, stride, h, w, sigma=sigma, sigma_ratio=ratio)
    assert mask.isfinite().all() and (mask >= 0).all()
    assert mask.square().sum().item() == pytest.approx(1.0, abs=1e-4)


def test_without_lesions_the_mask_is_zero() -> None:
    mask = gaussian_mask(torch.zeros(0, 4), 32, 3, 5)
    assert mask.shape == (3, 5) and not mask.any()


def test_a_lesion_between_cell_centres_selects_the_cell_it_lies_in() -> None:
    # the measured example: 32 x 25 px around (433, 320) covers no cell centre at stride 64
    small = (417.0, 307.5, 449.0, 332.5)
    mask = mask_of(small, 64)
    assert mask[320 // 64, 433 // 64].item() == 1.0
    assert mask.sum().item() == 1.0


def test_a_small_lesion_beside_a_large_one_is_not_lost() -> None:
    large = (0.0, 0.0, 224.0, 224.0)
    for x in (320.0, 325.0, 330.0, 335.0):  # inside one cell, out to its corner
        small = (x, x, x + 24.0, x + 24.0)
        mask = gaussian_mask(boxes(large, small), 32, 12, 12)
        assert mask[10:, 10:].max().item() == pytest.approx(mask.max().item())


def test_a_lesion_in_the_last_corner_stays_on_the_grid() -> None:
    mask = gaussian_mask(boxes((159.0, 95.0, 160.0, 96.0)), 32, 3, 5)
    assert mask[2, 4].item() == 1.0


def test_the_mask_follows_the_stride_and_not_the_ratio_of_sizes() -> None:
    # The same lesion in the same image, padded more: the same cells.
    tight, padded = (
        gaussian_mask(boxes(MIDDLE), 32, 25, 34),
        gaussian_mask(boxes(MIDDLE), 32, 40, 40),
    )
    torch.testing.assert_close(padded[:25, :34], tight)
    assert not padded[25:].any() and not padded[:, 34:].any()


# ------------------------------------------------------------------------- the loss


def test_the_loss_of_one_lesion_is_what_arithmetic_says() -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=2, teacher_dim=2)
    student = torch.zeros(2, 1, 3)
    teacher = torch.tensor([[[0.0, 1.0, 5.0]], [[0.0, -3.0, 5.0]]])
    # the lesion is the middle cell: M = 1 there; |0 - 1| + |0 + 3| over 3 pixels
    lesion = boxes((32, 0, 64, 32))
    loss = tfd.compare(features(student), features(teacher), [lesion])
    assert loss.item() == pytest.approx(4 / 3, rel=1e-6)
    half = TargetGuidedFeatureDistillation(weight=0.5, student_dim=2, teacher_dim=2)
    half_loss = half.compare(features(student), features(teacher), [lesion])
    assert half_loss.item() == pytest.approx(2 / 3)


def test_two_lesions_share_the_mask() -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=1, teacher_dim=1)
    teacher = torch.tensor([[[2.0, 7.0, 4.0]]])
    lesions = boxes((0, 0, 32, 32), (64, 0, 96, 32))  # M = 1 / sqrt(2) in both cells
    loss = tfd.compare(features(torch.zeros(1, 1, 3)), features(teacher), [lesions])
    assert loss.item() == pytest.approx((2 + 4) / math.sqrt(2) / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("normalizer", "want"), [("pixels", 4 / 3), ("elements", 4 / 6), ("mask_sum", 4.0)]
)
def test_the_normaliser_decides_what_n_counts(normalizer: str, want: float) -> None:
    tfd = TargetGuidedFeatureDistillation(normalizer=normalizer, student_dim=2, teacher_dim=2)
    teacher = torch.tensor([[[0.0, 1.0, 5.0]], [[0.0, -3.0, 5.0]]])
    loss = tfd.compare(features(torch.zeros(2, 1, 3)), features(teacher), [boxes((32, 0, 64, 32))])
    assert loss.item() == pytest.approx(want, rel=1e-6)


def test_the_loss_of_a_batch_is_the_mean_over_its_images() -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=4, teacher_dim=4)
    student, teacher = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    lesions = [boxes((10, 10, 90, 70)), torch.zeros(0, 4), boxes((0, 0, 150, 150))]
    together = tfd.compare(features(*student), features(*teacher), lesions)
    parts = [
        tfd.compare(features(student[i]), features(teacher[i]), lesions[i : i + 1]).item()
        for i in range(3)
    ]
    assert parts[1] == 0.0
    assert together.item() == pytest.approx(sum(parts) / 3, rel=1e-5)


def test_equal_features_cost_nothing() -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=4, teacher_dim=4)
    maps = torch.randn(4, 5, 6)
    assert (
        tfd.compare(features(maps), features(maps.clone()), [boxes((0, 0, 90, 90))]).item() == 0.0
    )


@pytest.mark.parametrize("normalizer", ["pixels", "elements", "mask_sum"])
def test_a_batch_without_lesions_costs_nothing_and_keeps_the_graph(normalizer: str) -> None:
    tfd = TargetGuidedFeatureDistillation(normalizer=normalizer, student_dim=4, teacher_dim=4)
    maps = torch.randn(4, 5, 6, requires_grad=True)
    loss = tfd.compare(features(maps), features(torch.randn(4, 5, 6)), [torch.zeros(0, 4)])
    assert loss.item() == 0.0
    loss.backward()
    assert maps.grad is not None and not maps.grad.any()


def test_only_the_student_learns_and_only_where_the_lesion_is() -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=4, teacher_dim=4)
    student = torch.randn(4, 5, 6, requires_grad=True)
    teacher = torch.randn(4, 5, 6, requires_grad=True)
    lesion = boxes((32, 32, 128, 96))
    tfd.compare(features(student), features(teacher), [lesion]).backward()
    assert teacher.grad is None
    touched = student.grad.abs().sum(0) > 0
    assert torch.equal(touched, gaussian_mask(lesion, 32, 5, 6) > 0)


def test_padding_is_no_pixel_of_the_image() -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=4, teacher_dim=4)
    student, teacher = torch.randn(4, 3, 4), torch.randn(4, 3, 4)
    lesion = [boxes((20, 20, 110, 80))]
    alone = tfd.compare(features(student), features(teacher), lesion)
    grid = nn.functional.pad(torch.stack([student, teacher]), (0, 3, 0, 2), value=9.0)
    padding = torch.ones(1, 5, 7, dtype=torch.bool)
    padding[:, :3, :4] = False
    padded = tfd.compare(
        Features({32: grid[:1]}, {32: padding}), Features({32: grid[1:]}, {32: padding}), lesion
    )
    assert padded.item() == pytest.approx(alone.item(), rel=1e-6)


def test_the_level_is_chosen_by_its_stride() -> None:
    tfd = TargetGuidedFeatureDistillation(stride=16, student_dim=2, teacher_dim=2)
    student = Features({8: torch.randn(1, 2, 8, 8), 16: torch.zeros(1, 2, 4, 4)}, None)
    teacher = Features(
        {16: torch.ones(1, 2, 4, 4), 32: torch.randn(1, 2, 2, 2), 64: torch.randn(1, 2, 1, 1)}, None
    )
    loss = tfd.compare(student, teacher, [boxes((16, 16, 32, 32))])
    assert loss.item() == pytest.approx(2 / 16, rel=1e-6)


# ------------------------------------------------------------------------- alignment


def test_without_alignment_there_is_nothing_to_learn() -> None:
    assert not list(TargetGuidedFeatureDistillation().parameters())


def test_an_aligned_student_of_another_width_learns_from_the_teacher() -> None:
    tfd = TargetGuidedFeatureDistillation(align="conv1x1", student_dim=3, teacher_dim=5)
    student = torch.randn(3, 4, 4, requires_grad=True)
    tfd.compare(
        features(student), features(torch.randn(5, 4, 4)), [boxes((0, 0, 128, 128))]
    ).backward()
    assert student.grad.any()
    assert all(parameter.grad.any() for parameter in tfd.parameters())


def test_alignment_is_a_projection_of_the_students_features() -> None:
    tfd = TargetGuidedFeatureDistillation(align="conv1x1", student_dim=2, teacher_dim=2)
    with torch.no_grad():
        tfd.align.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -1.0]]).view(2, 2, 1, 1))
        tfd.align.bias.copy_(torch.tensor([0.5, 0.0]))
    student = torch.randn(2, 4, 4)
    teacher = torch.stack([2 * student[0] + 0.5, -student[1]])
    loss = tfd.compare(features(student), features(teacher), [boxes((0, 0, 128, 128))])
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


# ------------------------------------------------------------------------- refusals


def test_widths_that_differ_need_alignment() -> None:
    with pytest.raises(ValueError, match=r"width 128 .* 256: set distillation\.tfd\.align=conv1x1"):
        TargetGuidedFeatureDistillation(student_dim=128, teacher_dim=256)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_missing_level_is_named_with_its_owner(who: str) -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=2, teacher_dim=2)
    has, lacks = features(torch.zeros(2, 3, 3)), features(torch.zeros(2, 3, 3), stride=16)
    pair = (lacks, has) if who == "student" else (has, lacks)
    with pytest.raises(ValueError, match=rf"tfd\.stride=32, but the {who} has .* \[16\]"):
        tfd.compare(*pair, [torch.zeros(0, 4)])


def test_maps_of_different_size_are_refused() -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=2, teacher_dim=2)
    student, teacher = features(torch.zeros(2, 3, 4)), features(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"\(3, 4\) cells .* \(4, 4\): .* size_divisor"):
        tfd.compare(student, teacher, [torch.zeros(0, 4)])


def test_half_precision_features_are_compared_in_single_precision() -> None:
    tfd = TargetGuidedFeatureDistillation(student_dim=2, teacher_dim=2)
    student, teacher = torch.randn(2, 3, 3).half(), torch.randn(2, 3, 3).half()
    lesion = [boxes((0, 0, 96, 96))]
    have = tfd.compare(features(student), features(teacher), lesion)
    assert have.dtype == torch.float32
    want = tfd.compare(features(student.float()), features(teacher.float()), lesion)
    torch.testing.assert_close(have, want)
