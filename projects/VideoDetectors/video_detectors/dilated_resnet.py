"""ResNet whose last stage keeps the stride of the one before it (DC5), by dilated convolutions."""

from __future__ import annotations

from detectron2.modeling import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn


def dc5_stages(depth: int, *, norm: str = "FrozenBN") -> list[list[nn.Module]]:
    """Stages for Detectron2's ResNet of 50 or more layers; res5 has stride 16.

    As in torchvision and so DETR, the first block of res5 is not dilated yet. Names and shapes of
    the weights are those without dilation.
    """
    stages = ResNet.make_default_stages(depth, stride_in_1x1=False, norm=norm)
    blocks = len(stages[-1])
    stages[-1] = ResNet.make_stage(
        BottleneckBlock,
        blocks,
        stride_per_block=[1] * blocks,
        dilation_per_block=[1, *[2] * (blocks - 1)],
        in_channels=1024,
        out_channels=2048,
        bottleneck_channels=512,
        stride_in_1x1=False,
        norm=norm,
    )
    return stages
