"""Folded normalisations: the same network, its weights as they are now."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from timm.layers import Conv2dSame
from torch import nn
from torchvision.ops import FrozenBatchNorm2d as FrozenBatchNorm2dOfTorchvision

from v2idetr.modeling.backbone import TimmBackbone
from v2idetr.modeling.folded_norm import FoldedConv2d, fold_frozen_norms

BACKBONES = Path(__file__).parents[2] / "configs" / "models" / "backbones.py"


@pytest.fixture(name="pair")
def _pair():
    """A ResNet as Detectron2 makes it, with some statistics, and the same with folded norms."""
    torch.manual_seed(0)
    plain = instantiate(LazyConfig.load(str(BACKBONES)).resnet18).double()
    for module in plain.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for name, buffer in module.named_buffers():
                buffer.uniform_(0.5, 1.5) if name != "bias" else buffer.normal_()
    return plain, fold_frozen_norms(copy.deepcopy(plain))


def maps(backbone, pixels):
    return torch.cat([m.flatten() for m in backbone(pixels).values()])


def pixels(dtype=torch.float64):
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_every_convolution_of_a_resnet_is_folded_and_tensors_keep_their_names(pair):
    plain, folded = pair
    convolutions = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions and all(isinstance(m, FoldedConv2d) for m in convolutions)
    assert list(folded.state_dict()) == list(plain.state_dict())


def test_maps_and_gradients_are_those_of_separate_layers(pair):
    results = []
    for backbone in pair:
        maps(backbone, pixels()).square().mean().backward()
        gradients = {k: p.grad for k, p in backbone.named_parameters() if p.grad is not None}
        results.append((maps(backbone, pixels()), gradients))
    (expected, gradients), (actual, own) = results
    torch.testing.assert_close(actual, expected)
    assert own.keys() == gradients.keys() and len(own) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, msg=name)


@torch.no_grad()
def test_changed_weights_and_statistics_are_seen_at_once(pair):
    plain, folded = pair
    maps(folded, pixels())
    changes = [
        lambda net: net.res2[0].conv1.weight.mul_(2),
        lambda net: net.res5[1].conv2.norm.running_mean.add_(1),
        lambda net: net.load_state_dict({k: 0.9 * v for k, v in net.state_dict().items()}),
        lambda net: setattr(net.stem.conv1.weight, "data", net.stem.conv1.weight.data * 1.5),
        lambda net: net.float(),
    ]
    for change in changes:
        before = maps(folded, pixels(folded.stem.conv1.weight.dtype))
        change(plain)
        change(folded)
        dtype = folded.stem.conv1.weight.dtype
        assert not torch.equal(maps(folded, pixels(dtype)), before)
        torch.testing.assert_close(maps(folded, pixels(dtype)), maps(plain, pixels(dtype)))


def test_weights_are_folded_once_for_many_detections(pair, monkeypatch):
    _, folded = pair
    calls = []
    fold = FoldedConv2d._fold
    monkeypatch.setattr(FoldedConv2d, "_fold", lambda self: calls.append(self) or fold(self))
    with torch.no_grad():
        for _ in range(3):
            maps(folded, pixels())
    assert len(calls) == len(set(calls))
    maps(folded, pixels())
    trainable = sum(conv.weight.requires_grad for conv in set(calls))
    assert len(calls) == len(set(calls)) + trainable


def test_what_was_folded_in_inference_mode_serves_training_too(pair):
    _, folded = pair
    folded.freeze(2)
    with torch.inference_mode():
        maps(folded, pixels())
    maps(folded, pixels()).sum().backward()
    assert folded.res5[0].conv1.weight.grad is not None


def test_half_precision_convolves_in_half_precision(pair):
    plain, folded = (net.float() for net in pair)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = (maps(net, pixels(torch.float32)) for net in (plain, folded))
    assert actual.dtype == torch.bfloat16
    error = (actual - expected).float().norm() / expected.float().norm()
    assert error < 0.02


def timm_pair(name):
    """A backbone of timm with some statistics, folded, and the same with separate layers."""
    torch.manual_seed(0)
    folded = TimmBackbone(name, freeze_stem=False).double()
    for module in folded.modules():
        if isinstance(module, FrozenBatchNorm2dOfTorchvision):
            for key, buffer in module.named_buffers():
                buffer.uniform_(0.5, 1.5) if key != "bias" else buffer.normal_()
    plain = copy.deepcopy(folded)
    for module in plain.modules():
        if isinstance(module, FoldedConv2d):
            module.__class__ = Conv2dSame if module.pads_same else nn.Conv2d
        if isinstance(module, FrozenBatchNorm2dOfTorchvision):
            module.folded = False
    return plain, folded


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_100", "densenet121"]
)
def test_timms_maps_and_gradients_are_those_of_separate_layers(name):
    plain, folded = timm_pair(name)
    assert list(folded.state_dict()) == list(TimmBackbone(name, freeze_stem=False).state_dict())
    results = []
    for backbone in (plain, folded):
        found = maps(backbone, pixels())
        found.square().mean().backward()
        results.append((found.detach(), {k: p.grad for k, p in backbone.named_parameters()}))
    (expected, gradients), (actual, own) = results
    torch.testing.assert_close(actual, expected)
    for key, gradient in gradients.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(own[key] / scale, gradient / scale, msg=key)


def test_all_norms_of_an_efficientnet_are_folded():
    backbone = TimmBackbone("tf_efficientnet_lite0")
    norms = [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2dOfTorchvision)]
    assert norms and all(norm.folded for norm in norms)


def test_a_convolution_whose_output_is_a_map_stays_as_it_is():
    body = TimmBackbone("xception41p", freeze_stem=False).double()
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2dOfTorchvision):
            module.bias.normal_()
    folded = maps(body, pixels())
    for module in body.modules():
        if isinstance(module, FoldedConv2d):
            module.__class__ = nn.Conv2d
        if isinstance(module, FrozenBatchNorm2dOfTorchvision):
            module.folded = False
    torch.testing.assert_close(folded, maps(body, pixels()))


def test_a_copied_backbone_folds_its_own_norms():
    backbone = TimmBackbone("tf_efficientnet_lite0")
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        before = maps(backbone, pixels(torch.float32))
        other.body.bn1.bias.add_(1)
        assert torch.equal(maps(backbone, pixels(torch.float32)), before)
        assert not torch.equal(maps(other, pixels(torch.float32)), before)


def test_a_model_that_needs_the_layers_after_its_last_map_is_refused():
    with pytest.raises(ValueError, match="hrnet_w18_small does not run without the layers after"):
        TimmBackbone("hrnet_w18_small", freeze_stem=False)


def test_other_norms_and_convolutions_with_a_bias_stay():
    frozen = FrozenBatchNorm2d(4)
    others = nn.Sequential(
        Conv2d(3, 4, 1, bias=False, norm=nn.BatchNorm2d(4)),
        Conv2d(4, 4, 1, bias=True, norm=frozen),
        Conv2d(4, 4, 1, bias=False),
        nn.Conv2d(4, 4, 1),
    )
    assert not any(isinstance(m, FoldedConv2d) for m in fold_frozen_norms(others).modules())


def test_a_model_whose_maps_have_channels_last_is_refused():
    with pytest.raises(ValueError, match="is not its 192 channels; use another model"):
        TimmBackbone("swin_tiny_patch4_window7_224", freeze_stem=False)
