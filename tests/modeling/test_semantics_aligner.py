"""The semantics aligner against its formulae, written with other operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, roi_align

from tests.modeling.sam_levels import PICTURES, boxes, level_of, map_of, sine
from v2idetr.modeling.sam_detr.semantics_aligner import (
    SemanticsAligner,
    interpolation,
    read_points,
    read_regions,
)


def torchvision_regions(map_: Tensor, reference: Tensor, width: float, height: float) -> Tensor:
    """RoIAlign of one picture's boxes, (N, 49, d)."""
    scale = torch.tensor([width, height, width, height])
    in_cells = box_convert(reference, "cxcywh", "xyxy") * scale
    regions = roi_align(map_.unsqueeze(0), [in_cells], 7, spatial_scale=1.0, aligned=True)
    return regions.flatten(2).transpose(1, 2)


# ------------------------------------------------------------------------- reads


@pytest.mark.parametrize("shape", [(6, 9), (1, 1), (2, 30), (25, 34)])
def test_regions_are_those_of_roi_align(shape: tuple[int, int]) -> None:
    level, reference = level_of([shape, shape]), boxes(2, 40)
    regions = read_regions(level, reference)
    for b in range(2):
        want = torchvision_regions(map_of(level)[b], reference[b], shape[1], shape[0])
        torch.testing.assert_close(regions[b], want, atol=1e-4, rtol=1e-4)


def test_regions_of_a_padded_picture_are_those_of_the_picture_alone() -> None:
    level, reference = level_of(PICTURES), boxes(2, 40)
    regions = read_regions(level, reference)
    for b, (h, w) in enumerate(PICTURES):
        want = torchvision_regions(map_of(level)[b, :, :h, :w], reference[b], w, h)
        torch.testing.assert_close(regions[b], want, atol=1e-4, rtol=1e-4)


def test_a_picture_may_end_inside_a_cell_that_is_still_read() -> None:
    level, reference = level_of([(5, 6)]), boxes(1, 40)  # 192 x 144 px at stride 32
    level.image_cells = torch.tensor([[6.0, 4.5]])
    regions = read_regions(level, reference)
    want = torchvision_regions(map_of(level)[0], reference[0], 6.0, 4.5)
    torch.testing.assert_close(regions[0], want, atol=1e-4, rtol=1e-4)


def test_as_published_regions_at_the_edge_read_the_padding() -> None:
    level, reference = level_of(PICTURES, isolated=False), boxes(2, 40)
    regions = read_regions(level, reference)
    for b, (h, w) in enumerate(PICTURES):
        want = torchvision_regions(map_of(level)[b], reference[b], w, h)
        torch.testing.assert_close(regions[b], want, atol=1e-4, rtol=1e-4)
    alone = torchvision_regions(map_of(level)[1, :, :4, :5], reference[1], 5, 4)
    assert (regions[1] - alone).abs().max() > 0.1


def test_regions_send_back_the_gradient_of_roi_align() -> None:
    level, reference = level_of([(6, 9)]), boxes(1, 10)
    level.tokens.requires_grad_()
    weight = torch.randn(13, 49, 8)
    (have,) = torch.autograd.grad((read_regions(level, reference)[0] * weight).sum(), level.tokens)
    theirs = torchvision_regions(map_of(level)[0], reference[0], 9, 6)
    (want,) = torch.autograd.grad((theirs * weight).sum(), level.tokens)
    torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)


def test_points_are_read_as_by_grid_sample_and_so_are_their_gradients() -> None:
    regions = torch.randn(2, 5, 49, 8, requires_grad=True)
    points = (torch.rand(2, 5, 4, 2) * 2.4 - 1.2).requires_grad_()  # also beyond the region
    have = read_points(regions, points)
    grid = regions.flatten(0, 1).transpose(1, 2).reshape(10, 8, 7, 7)
    read = F.grid_sample(grid, points.view(10, 1, 4, 2), align_corners=False)
    want = read.view(2, 5, 8, 4).transpose(2, 3)
    torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(have)
    for ours, theirs in zip(
        torch.autograd.grad((have * weight).sum(), [regions, points]),
        torch.autograd.grad((want * weight).sum(), [regions, points]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_interpolation_between_cells_is_linear_and_zero_beyond_them() -> None:
    weights = interpolation(torch.tensor([1.25, 0.0, -0.5, -1.0, 2.5, 9.0]), 3)
    want = [
        *([0.0, 0.75, 0.25], [1.0, 0.0, 0.0], [0.5, 0.0, 0.0]),
        *([0.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]),
    ]
    assert weights.tolist() == want


# ------------------------------------------------------------------------- the aligner


def aligner(**changes: Any) -> SemanticsAligner:
    return SemanticsAligner(**{"d": 8, "num_heads": 4, "smca": False} | changes)


def linear(module: Any, x: Tensor) -> Tensor:
    return x @ module.weight.T + module.bias


def by_the_formulae(
    module: SemanticsAligner, query: Tensor, reference: Tensor, region: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One query (d,) with its box (4,) and its region (49, d), head by head."""
    d, heads = len(query), module.num_heads
    reduced = linear(module.region_proj, region).relu()  # (49, d / 4)
    x = reduced.T.reshape(-1)  # channel by channel
    for index, layer in enumerate(module.salient_points.layers):
        x = linear(layer, x if index == 0 else x.relu())
    content_gate = linear(module.content_gate, query).sigmoid()
    position_gate = linear(module.position_gate, query).sigmoid()
    contents, positions, points = [], [], []
    for head in range(heads):
        inside = x[2 * head : 2 * head + 2].tanh()
        grid = region.T.reshape(1, d, 7, 7)
        read = F.grid_sample(grid, inside.view(1, 1, 1, 2), align_corners=False).flatten()
        point = reference[:2] + reference[2:] / 2 * inside
        contents.append(read * content_gate[head * d : (head + 1) * d])
        place = sine(float(point[0]), float(point[1]), d)
        positions.append(place * position_gate[head * d : (head + 1) * d])
        points.append(point)
    sharpness = x[2 * heads :].view(heads, 2) if module.smca else None
    return torch.stack(contents), torch.stack(positions), torch.stack(points), sharpness


@pytest.mark.parametrize("smca", [False, True])
@torch.no_grad()
def test_an_aligned_query_is_what_the_formulae_say(smca: bool) -> None:
    module, level, reference = aligner(smca=smca), level_of(PICTURES), boxes(2, 3)
    query = torch.randn(2, 6, 8)
    aligned = module(query, reference, level)
    assert (aligned.sharpness is not None) is smca
    for b, (h, w) in enumerate(PICTURES):
        regions = torchvision_regions(map_of(level)[b, :, :h, :w], reference[b], w, h)
        for n in range(6):
            want = by_the_formulae(module, query[b, n], reference[b, n], regions[n])
            have = (aligned.content, aligned.position, aligned.points, aligned.sharpness)
            for ours, theirs in zip(have, want, strict=True):
                if ours is not None:
                    torch.testing.assert_close(ours[b, n], theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_salient_points_stay_inside_the_reference() -> None:
    module, level, reference = aligner(), level_of(PICTURES), boxes(2, 9)
    module.salient_points.layers[-1].bias.normal_(std=30.0)
    points = module(torch.randn(2, 12, 8), reference, level).points
    centre, size = reference.unsqueeze(2).split(2, -1)
    assert ((points - centre).abs() <= size / 2 + 1e-6).all()


def test_no_gradient_reaches_a_reference_or_passes_the_sine() -> None:
    module, level = aligner(), level_of(PICTURES)
    reference = boxes(2, 3).requires_grad_()
    aligned = module(torch.randn(2, 6, 8), reference, level)
    for output in (aligned.content, aligned.position):
        (gradient,) = torch.autograd.grad(
            output.sum(), [reference], retain_graph=True, allow_unused=True
        )
        assert gradient is None
    last = module.salient_points.layers[-1].weight
    (through_sine,) = torch.autograd.grad(
        aligned.position.sum(), [last], retain_graph=True, allow_unused=True
    )
    (through_reads,) = torch.autograd.grad(aligned.content.sum(), [last])
    assert through_sine is None
    assert through_reads.any()


def test_places_and_reads_keep_their_digits_in_half_precision() -> None:
    module, level, reference = aligner(), level_of(PICTURES), boxes(2, 9)
    query = torch.randn(2, 12, 8)
    want = module(query, reference, level)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        have = module(query, reference, level)
    assert have.points.dtype == torch.float32
    torch.testing.assert_close(have.points, want.points, atol=0.02, rtol=0)
    torch.testing.assert_close(have.content.float(), want.content, atol=0.1, rtol=0.1)
