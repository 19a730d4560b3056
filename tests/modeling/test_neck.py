"""From backbone maps to levels of one width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from v2idetr.modeling.backbone import FeatureShape
from v2idetr.modeling.interface import Images
from v2idetr.modeling.neck import Neck, PaddedGroupNorm, flatten_levels

SHAPES = {"c3": FeatureShape(6, 8), "c4": FeatureShape(10, 16), "c5": FeatureShape(14, 32)}


def maps_of(B: int, H: int, W: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(B, s.channels, H // s.stride, W // s.stride) for name, s in SHAPES.items()
    }


def test_without_padding_group_normalisation_is_the_ordinary_one() -> None:
    norm, x = PaddedGroupNorm(4, 8), torch.randn(2, 8, 5, 7)
    assert torch.equal(norm(x), nn.functional.group_norm(x, 4, norm.weight, norm.bias, norm.eps))


def test_statistics_come_from_the_picture_alone_and_padding_becomes_zero() -> None:
    norm = PaddedGroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 5, 7) * 3 + 1
    padding = torch.zeros(2, 5, 7, dtype=torch.bool)
    padding[0, 3:], padding[0, :, 4:] = True, True
    out = norm(x, padding)
    torch.testing.assert_close(out[:1, :, :3, :4], norm(x[:1, :, :3, :4]), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1:], norm(x[1:]), atol=1e-5, rtol=0)
    assert not out[0, :, 3:].any()
    assert not out[0, :, :, 4:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_precision_maps_are_those_of_single_precision(
    dtype: torch.dtype,
) -> None:
    # A level of a full-size picture has more values a group than a half can count.
    norm = PaddedGroupNorm(4, 32)
    x = (torch.randn(1, 32, 100, 134) * 3 + 1).to(dtype)
    padding = torch.zeros(1, 100, 134, dtype=torch.bool)
    padding[:, :, 130:] = True
    want = norm(x.float(), padding)
    torch.testing.assert_close(norm(x, padding).float(), want, atol=0.02, rtol=0.01)


def test_levels_of_the_backbone_are_projected_and_the_coarser_one_reads_the_raw_last_map() -> None:
    neck = Neck(SHAPES, strides=(8, 16, 32, 64), d=32)
    maps = maps_of(2, 64, 128)
    features = neck(maps, Images(torch.zeros(2, 3, 64, 128), [(64, 128)] * 2))
    assert {stride: tuple(m.shape) for stride, m in features.maps.items()} == {
        8: (2, 32, 8, 16),
        16: (2, 32, 4, 8),
        32: (2, 32, 2, 4),
        64: (2, 32, 1, 2),
    }
    assert features.padding is None
    projection = neck.projections[3]
    assert tuple(projection.weight.shape) == (32, 14, 3, 3)
    torch.testing.assert_close(features.maps[64], neck.norms[3](projection(maps["c5"])))


def test_levels_beyond_the_first_coarser_one_read_the_level_before() -> None:
    neck = Neck(SHAPES, strides=(32, 64, 128), d=32)
    maps = maps_of(1, 256, 256)
    features = neck(maps, Images(torch.zeros(1, 3, 256, 256), [(256, 256)]))
    want = neck.norms[2](neck.projections[2](features.maps[64]))
    torch.testing.assert_close(features.maps[128], want)


def test_without_normalisation_a_level_is_the_bare_projection_with_zeros_on_padding() -> None:
    neck = Neck(SHAPES, strides=(32,), d=20, norm="none")
    maps = maps_of(2, 64, 128)
    nn.init.normal_(neck.projections[0].bias)
    features = neck(maps, Images(torch.zeros(2, 3, 64, 128), [(64, 128), (30, 60)]))
    want = neck.projections[0](maps["c5"])
    torch.testing.assert_close(features.maps[32][0], want[0])
    torch.testing.assert_close(features.maps[32][1, :, :1, :2], want[1, :, :1, :2])
    assert not features.maps[32][1, :, 1:].any() and not features.maps[32][1, :, :, 2:].any()
    assert not list(neck.norms.parameters())


def test_projections_start_as_in_the_official_code() -> None:
    neck = Neck(SHAPES, strides=(8, 16, 32, 64), d=32)
    for projection in neck.projections:
        assert not projection.bias.any()
        fan = sum(nn.init._calculate_fan_in_and_fan_out(projection.weight))
        assert projection.weight.abs().max() <= (6 / fan) ** 0.5
        assert projection.weight.abs().max() > 0.8 * (6 / fan) ** 0.5


@pytest.mark.parametrize(
    ("strides", "d", "message"),
    [
        ((16, 8), 32, "must ascend"),
        ((8, 16), 48, "divisible by 32"),
        ((4, 8), 32, "stride 4 needs a backbone map"),
        ((32, 128), 32, "stride 128 needs a backbone map"),
    ],
)
def test_levels_that_cannot_be_made_are_refused(
    strides: tuple[int, ...], d: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Neck(SHAPES, strides=strides, d=d)


def test_tokens_are_the_cells_of_all_levels_row_by_row() -> None:
    maps = {8: torch.rand(2, 3, 2, 4), 16: torch.rand(2, 3, 1, 2)}
    tokens, shapes = flatten_levels(maps)
    assert shapes == [(2, 4), (1, 2)]
    assert torch.equal(tokens[:, 5], maps[8][:, :, 1, 1])
    assert torch.equal(tokens[:, 9], maps[16][:, :, 0, 1])
