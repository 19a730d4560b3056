"""Detectors of ours with a ResNet of a few channels, as tests of checkpoints need them."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem
from torch import nn

from tests.checkpoints.file_names import TINY, Size
from tests.conftest import criterion, softmax_criterion
from v2idetr.modeling.meta_arch import Detector
from v2idetr.modeling.weight_rules import families


def tiny_resnet(size: Size = TINY) -> ResNet:
    """Detectron2's, with one basic block a stage or more."""
    stages, into = [], size.stem
    for stage, (blocks, out) in enumerate(zip(size.blocks, size.widths, strict=True)):
        strides = [1 if stage == 0 else 2, *[1] * (blocks - 1)]
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=strides,
                in_channels=into,
                out_channels=out,
                norm="FrozenBN",
            )
        )
        into = out
    stem = BasicStem(3, size.stem, norm="FrozenBN")
    return ResNet(stem, stages, out_features=["res3", "res4", "res5"], freeze_at=2)


def tiny_network(kind: str, size: Size = TINY, **changes) -> Any:
    """A network of ours: "DETR", "DeformableDETR" or "SAMDETR"."""
    settings = {
        "num_classes": size.classes,
        "d": size.d,
        "num_queries": size.queries,
        "num_encoder_layers": size.encoder,
        "num_decoder_layers": size.decoder,
        "num_heads": size.heads,
        "ffn_dim": size.ffn,
        "isolate_padding": False,  # as published
    }
    if kind == "DeformableDETR":
        settings["strides"] = (8, 16, 32, 64) if size.levels == 4 else (32,)
    return families()[kind](**{"backbone": tiny_resnet(size)} | settings | changes)


def detector_of(net: Any, names: list[str] | None = None, **changes) -> Detector:
    softmax = net.num_logits > net.num_classes
    return Detector(
        net=net,
        criterion=softmax_criterion() if softmax else criterion(),
        class_names=names or [f"class {i}" for i in range(net.num_classes)],
        **changes,
    )


def disturbed(net: nn.Module) -> nn.Module:
    """With noise on all weights and statistics, some of which start at zero or at one."""
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor += 0.1 * torch.rand_like(tensor)
    return net
