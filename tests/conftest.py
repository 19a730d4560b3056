"""Small detectors and samples that every part of the test suite can ask for."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from v2idetr.modeling.backbone import FeatureShape
from v2idetr.modeling.classification import FocalClassification, SoftmaxClassification
from v2idetr.modeling.criterion import SetCriterion
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.detr import DETR
from v2idetr.modeling.fusion import Fusion
from v2idetr.modeling.matcher import HungarianMatcher
from v2idetr.modeling.meta_arch import Detector
from v2idetr.modeling.sam_detr import SAMDETR
from v2idetr.modeling.temporal import MSI

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Forked processes cannot use the thread pool of their parent."""
    torch.set_num_threads(1)


class TinyBackbone(nn.Module):
    """Strides 8, 16 and 32 from four convolutions and a max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((8, 16), (16, 24), (24, 32))
        )

    def output_shape(self) -> dict[str, FeatureShape]:
        channels = (16, 24, 32)
        return {f"c{i}": FeatureShape(c, 8 * 2**i) for i, c in enumerate(channels)}

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.pool(self.stem(pixels).relu())
        maps = {}
        for index, stage in enumerate(self.stages):
            x = (stage(x) + 0.1).relu()
            maps[f"c{index}"] = x
        return maps


def tiny_net(*, temporal: bool = False, **changes) -> DeformableDETR:
    """A Deformable DETR of width 32 with 2 + 2 layers and 12 queries."""
    settings = {
        "num_classes": 1,
        "d": 32,
        "num_queries": 12,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "ffn_dim": 48,
        "dropout": 0.0,
    } | changes
    msi = Fusion(features=MSI(d=settings["d"], ffn_dim=48, num_heads=4)) if temporal else None
    net = DeformableDETR(backbone=TinyBackbone(), fusion=msi, **settings)
    for head in net.box_heads:  # the zeros of the initialisation would hide mistakes
        nn.init.normal_(head.layers[-1].weight, std=0.1)
    return net


def tiny_detr(**changes) -> DETR:
    """A DETR of width 32 with 2 + 2 layers and 12 queries."""
    settings = {
        "num_classes": 1,
        "d": 32,
        "num_queries": 12,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "ffn_dim": 48,
        "dropout": 0.0,
    } | changes
    return DETR(backbone=TinyBackbone(), **settings)


def tiny_sam_detr(**changes) -> SAMDETR:
    """A SAM-DETR of width 32 with 2 + 2 layers and 12 queries; 2 + 3 at multiple scales."""
    settings = {
        "num_classes": 1,
        "d": 32,
        "num_queries": 12,
        "num_encoder_layers": 2,
        "num_decoder_layers": 3 if changes.get("multi_scale") else 2,
        "num_heads": 4,
        "ffn_dim": 48,
        "dropout": 0.0,
    } | changes
    net = SAMDETR(backbone=TinyBackbone(), **settings)
    for head in net.box_heads:
        nn.init.normal_(head.layers[-1].weight, std=0.1)
    return net


def tiny_detector(**changes) -> Detector:
    net = tiny_net(**changes)
    return Detector(net=net, criterion=criterion(), class_names=["polyp"] * net.num_classes)


def tiny_detr_detector(**changes) -> Detector:
    net = tiny_detr(**changes)
    names = ["polyp"] * net.num_classes
    return Detector(net=net, criterion=softmax_criterion(), class_names=names)


def tiny_sam_detr_detector(**changes) -> Detector:
    net = tiny_sam_detr(**changes)
    return Detector(net=net, criterion=criterion(), class_names=["polyp"] * net.num_classes)


def tiny_teacher(num_frames: int = 3, **changes) -> Detector:
    net = tiny_net(temporal=True, **changes)
    for parameter in net.fusion.parameters():
        nn.init.normal_(parameter, std=0.05)
    names = ["polyp"] * net.num_classes
    return Detector(net=net, criterion=criterion(), class_names=names, num_frames=num_frames)


def criterion() -> SetCriterion:
    return SetCriterion(classification=FocalClassification(), matcher=HungarianMatcher())


def softmax_criterion() -> SetCriterion:
    """With the weights of DETR."""
    return SetCriterion(
        classification=SoftmaxClassification(),
        matcher=HungarianMatcher(class_weight=1.0),
        class_weight=1.0,
    )


def make_frame(generator: torch.Generator, size: tuple[int, int], lesions: int) -> dict:
    h, w = size
    low = torch.rand(lesions, 2, generator=generator) * 0.5
    extent = 0.1 + torch.rand(lesions, 2, generator=generator) * 0.4
    boxes = torch.cat([low, low + extent], 1) * torch.tensor([w, h, w, h])
    instances = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.zeros(lesions).long())
    pixels = torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
    return {"image": pixels, "instances": instances, "height": h, "width": w}


def make_sample(
    seed: int = 0, *, size: tuple[int, int] = (64, 96), num_frames: int = 3, lesions: int = 1
) -> dict:
    """A clip of noise with random boxes, as the loader yields it."""
    generator = torch.Generator().manual_seed(seed)
    clip = [
        make_frame(generator, size, lesions)
        | {"file_name": f"clip{seed}/{t}.png", "frame_index": t}
        for t in range(num_frames)
    ]
    middle = num_frames // 2
    return clip[middle] | {"clip": clip, "clip_index": middle, "seed": seed, "image_id": seed}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: after other tests, a child may not be able to use autograd."""

    def forks(item: pytest.Item) -> bool:
        module = getattr(item, "module", None)
        fixtures = getattr(item, "fixturenames", ())
        return "in_child" in fixtures or hasattr(module, "in_two_processes")

    items.sort(key=lambda item: not forks(item))
