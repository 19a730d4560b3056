"""A pretrained backbone in a detector: the detector's features are those of the encoder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from configs.models import backbones, encoders
from free_lunch.encoder import Encoder
from v2idetr.modeling.backbone_weights import load_imagenet_weights

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))


def encoder_of(config: object, **changes) -> Encoder:
    torch.manual_seed(0)
    encoder = instantiate({**copy.deepcopy(config), **changes})
    assert isinstance(encoder, Encoder)
    encoder.train()
    with torch.no_grad():  # statistics of its own
        encoder.backbone(PIXELS)
    return encoder.eval()


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_lite0"])
def test_a_detectors_backbone_gives_the_features_of_the_encoder(name: str, tmp_path: Path) -> None:
    encoder = encoder_of(getattr(encoders, name))
    torch.save({"model": encoder.state_dict()}, tmp_path / "final.pth")
    backbone = instantiate(copy.deepcopy(getattr(backbones, name)))
    load_imagenet_weights(backbone, str(tmp_path / "final.pth"))
    with torch.no_grad():
        ours = backbone.eval()(PIXELS)[list(backbone.output_shape())[-1]]
        theirs = encoder.backbone(PIXELS)[encoder.coarsest]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_mocos_own_checkpoint_is_a_teachers_start(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(1)
    resnet = torchvision.models.resnet50(weights=None)
    state = {f"module.encoder_q.{name}": tensor for name, tensor in resnet.state_dict().items()}
    state |= {"module.queue": torch.zeros(4, 8), "module.encoder_k.fc.0.weight": torch.zeros(3)}
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": state}, tmp_path / "moco.pth")
    encoder = encoder_of(encoders.resnet50, weights=str(tmp_path / "moco.pth"))
    assert torch.equal(encoder.backbone.stem.conv1.weight, resnet.conv1.weight)


def test_a_frozen_backbone_keeps_its_statistics_in_training() -> None:
    public = encoder_of(
        encoders.efficientnet_lite0, weights="package:efficientnet-lite0", freeze_backbone=True
    )
    before = {name: t.clone() for name, t in public.backbone.state_dict().items()}
    public.train()(PIXELS)
    assert public.head.training
    assert all(torch.equal(t, before[n]) for n, t in public.backbone.state_dict().items())


def test_a_backbone_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save({"model": encoder_of(encoders.efficientnet_lite0).state_dict()}, tmp_path / "a.pth")
    backbone = instantiate(copy.deepcopy(backbones.resnet18))
    with pytest.raises(ValueError, match=r"a\.pth does not fit the backbone ResNet"):
        load_imagenet_weights(backbone, str(tmp_path / "a.pth"))
