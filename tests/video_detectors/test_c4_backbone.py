"""The C4 backbone: two maps of one stride, from the stages of an ordinary backbone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny_parts import TinyBackbone
from tests.video_detectors.tiny_c4 import C4, tiny_rcnn, tiny_resnet
from v2idetr.modeling.backbone import TimmBackbone
from v2idetr.modeling.detectron2_models import image_backbone
from video_detectors.c4_backbone import C4Backbone, from_grids, in_grids


@pytest.mark.parametrize("stride", [8, 16])
def test_both_maps_have_the_stride(stride: int) -> None:
    backbone = C4Backbone(tiny_resnet(), stride=stride, out_channels=6)
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert {name: x.shape[1:] for name, x in maps.items()} == {
        "c4": (C4, 64 // stride, 96 // stride),
        "c5": (6, 64 // stride, 96 // stride),
    }
    for name, shape in backbone.output_shape().items():
        assert (shape.channels, shape.stride) == (maps[name].shape[1], stride)


def test_the_map_before_the_last_stage_is_that_of_the_ordinary_backbone() -> None:
    ordinary, pixels = tiny_resnet(), torch.randn(1, 3, 64, 96)
    backbone = C4Backbone(copy.deepcopy(ordinary), stride=16, out_channels=6)
    assert torch.equal(backbone(pixels)["c4"], ordinary(pixels)["res4"])


@pytest.mark.parametrize("stride", [8, 16])
def test_every_second_cell_is_that_of_the_ordinary_backbone(stride: int) -> None:
    ordinary, pixels = tiny_resnet(), torch.randn(2, 3, 64, 96)
    backbone = C4Backbone(copy.deepcopy(ordinary), stride=stride)
    n, maps, want = 32 // stride, backbone(pixels), ordinary(pixels)
    torch.testing.assert_close(maps["c4"][..., :: n // 2, :: n // 2], want["res4"])
    c5 = backbone.reduce(want["res5"]).relu()
    torch.testing.assert_close(maps["c5"][..., ::n, ::n], c5)


@pytest.mark.parametrize(("stride", "dilations"), [(16, (1, 1, 2)), (8, (1, 2, 4))])
def test_strides_become_dilations_of_the_blocks_after_the_strided_one(stride, dilations) -> None:
    body, pixels = tiny_resnet(), torch.randn(2, 3, 64, 96)
    dilated, before = copy.deepcopy(body), 1
    for name, dilation in zip(("res3", "res4", "res5"), dilations, strict=True):
        for index, block in enumerate(dilated.get_submodule(name)):
            for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
                if dilation > 1:
                    conv.stride = (1, 1)
                if conv.kernel_size == (3, 3):
                    n = before if index == 0 else dilation
                    conv.dilation = conv.padding = (n, n)
        before = dilation
    backbone = C4Backbone(body, stride=stride)
    want, have = dilated(pixels), backbone(pixels)
    torch.testing.assert_close(have["c4"], want["res4"])
    torch.testing.assert_close(have["c5"], backbone.reduce(want["res5"]).relu())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_grids_of_every_nth_cell_are_taken_apart_and_put_together(n: int) -> None:
    x = torch.randn(2, 3, 6, 12)
    grids = in_grids(x, n)
    for b, row, column in np.ndindex(2, n, n):
        assert torch.equal(grids[(b * n + row) * n + column], x[b, :, row::n, column::n])
    assert torch.equal(from_grids(grids, n), x)


def test_the_steps_one_after_the_other_are_the_whole() -> None:
    backbone, pixels = C4Backbone(tiny_resnet()), torch.randn(2, 3, 32, 64)
    at_once, in_steps = backbone(pixels), backbone.deep(backbone.shallow(pixels))
    assert all(torch.equal(at_once[name], in_steps[name]) for name in ("c4", "c5"))


@pytest.mark.parametrize("stride", [8, 16])
def test_an_efficientnet_has_the_maps_too(stride: int) -> None:
    body = TimmBackbone("tf_efficientnet_lite0", strides=[16, 32]).eval()
    ordinary, pixels = copy.deepcopy(body), torch.randn(1, 3, 64, 96)
    backbone = C4Backbone(body, stride=stride, out_channels=6)
    with torch.no_grad():
        maps = backbone(pixels)
        assert maps["c4"].shape == (1, 112, 64 // stride, 96 // stride)
        assert maps["c5"].shape == (1, 6, 64 // stride, 96 // stride)
        want, n = ordinary(pixels), 16 // stride
        # Strided convolutions of TensorFlow's padding have their centres at odd cells.
        torch.testing.assert_close(maps["c4"][..., n - 1 :: n, n - 1 :: n], want["stride16"])
        n = 32 // stride
        c5 = backbone.reduce(want["stride32"]).relu()
        torch.testing.assert_close(
            maps["c5"][..., n - 1 :: n, n - 1 :: n], c5, rtol=1e-4, atol=1e-4
        )


def test_weights_have_the_names_of_the_ordinary_backbone() -> None:
    net = tiny_rcnn()
    assert image_backbone(net) is net.backbone.bottom_up
    assert list(net.backbone.bottom_up.state_dict()) == list(tiny_resnet().state_dict())


def test_images_are_padded_to_whole_cells_of_every_grid() -> None:
    images = tiny_rcnn().preprocess_image([{"image": torch.zeros(3, 50, 70)}])
    assert images.tensor.shape[-2:] == (64, 96)
    assert images.image_sizes == [(50, 70)]


def test_other_backbones_and_strides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the blocks of TinyBackbone are not known.*ResNet"):
        C4Backbone(TinyBackbone())
    with pytest.raises(ValueError, match=r"maps of strides \[32\].*out_features=\[res4, res5\]"):
        C4Backbone(tiny_resnet(("res5",)))
    with pytest.raises(ValueError, match=r"maps of strides \[8, 32\]"):
        C4Backbone(tiny_resnet(("res3", "res5")))
    with pytest.raises(ValueError, match=r"stride=32 must be one of \[16, 8, 4\]"):
        C4Backbone(tiny_resnet(), stride=32)
