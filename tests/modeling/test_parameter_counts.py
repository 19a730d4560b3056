"""The networks have exactly as many parameters as the official implementations.

The numbers were counted on the official code of DETR, Deformable DETR and SAM-DETR with a
ResNet-50. Nothing is initialised here: the networks are built on torch's meta device.
"""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import instantiate
from torch import nn

from configs.models.backbones import efficientnet_lite0, resnet18, resnet50
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.detr import DETR
from v2idetr.modeling.sam_detr import SAMDETR
from v2idetr.modeling.temporal import MSI

STEM_AND_FIRST_STAGE = 222_400  # frozen in the official recipe

REFINED = {"box_refine": True}
TWO_STAGE = {"box_refine": True, "two_stage": True}


def count(module: nn.Module, *, trainable: bool = False) -> int:
    parameters = module.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad or not trainable)


def build(kind: type[nn.Module] = DeformableDETR, **settings) -> nn.Module:
    with torch.device("meta"):
        return kind(backbone=instantiate(copy.deepcopy(resnet50)), **settings)


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({"num_classes": 91, "num_queries": 300}, 40_069_665),
        ({"num_classes": 1, "num_queries": 100}, 39_944_135),
        ({"num_classes": 91, "num_queries": 300, "strides": (32,)}, 34_066_593),
        ({"num_classes": 91, "num_queries": 300, **REFINED}, 40_849_660),
        ({"num_classes": 91, "num_queries": 300, **TWO_STAGE}, 41_181_529),
    ],
    ids=["coco", "one_class", "single_scale", "box_refined", "two_stage"],
)
def test_deformable_detr_with_resnet50_counts_as_the_official_one(
    settings: dict, total: int
) -> None:
    net = build(**settings)
    assert count(net) == total
    assert count(net, trainable=True) == total - STEM_AND_FIRST_STAGE


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
@pytest.mark.parametrize(("num_classes", "total"), [(91, 41_524_768), (1, 41_501_638)])
def test_detr_with_resnet50_counts_as_the_official_one(num_classes: int, total: int) -> None:
    net = build(DETR, num_classes=num_classes, num_queries=100)
    assert count(net) == total
    assert count(net, trainable=True) == total - STEM_AND_FIRST_STAGE


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
@pytest.mark.parametrize(
    ("settings", "total", "layer"),
    [
        ({"num_classes": 91, "num_queries": 300}, 58_296_458, 4_248_144),
        ({"num_classes": 1, "num_queries": 100}, 58_156_878, 4_248_144),
        ({"num_classes": 91, "num_queries": 300, "smca": True}, 58_345_706, 4_256_352),
        ({"num_classes": 91, "num_queries": 300, "multi_scale": True}, 55_194_698, 4_248_144),
    ],
    ids=["coco", "one_class", "smca", "multi_scale"],
)
def test_sam_detr_with_resnet50_counts_as_the_official_one(
    settings: dict, total: int, layer: int
) -> None:
    net = build(SAMDETR, **settings)
    assert count(net) == total
    assert count(net, trainable=True) == total - STEM_AND_FIRST_STAGE
    assert count(net.decoder[0]) == layer


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
@pytest.mark.parametrize("kind", [DeformableDETR, DETR, SAMDETR])
def test_the_stem_and_the_first_stage_are_frozen_and_nothing_else(kind: type[nn.Module]) -> None:
    net = build(kind, num_classes=1)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith(("backbone.stem.", "backbone.res2.")) for name in frozen)
    assert frozen == {
        name
        for name, _ in net.named_parameters()
        if name.startswith(("backbone.stem.", "backbone.res2."))
    }


def test_the_first_stage_of_efficientnet_is_frozen() -> None:
    with torch.device("meta"):
        backbone = instantiate(copy.deepcopy(efficientnet_lite0))
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    first = {
        name
        for name, _ in backbone.named_parameters()
        if name.startswith(("body.conv_stem", "body.blocks.0."))
    }
    assert frozen == first
    assert first


@pytest.mark.parametrize("config", [resnet50, resnet18, efficientnet_lite0])
def test_batch_normalisation_of_every_backbone_is_frozen(config: object) -> None:
    with torch.device("meta"):
        backbone = instantiate(copy.deepcopy(config))
    assert not [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({}, 2_989_056),
        ({"depth": 2}, 5_978_112),
        ({"depth": 2, "ffn_dim": 2048}, 10_180_608),  # closest to the paper's "+10 M"
    ],
)
def test_msi_has_as_many_parameters_as_blocks_of_uniformer(settings: dict, total: int) -> None:
    # UniFormer's local blocks have batch norms; our layer norms have as many parameters.
    with torch.device("meta"):
        assert count(MSI(**settings)) == total
