"""What the comparisons with transformers share: one backbone, padded noise, noise for weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ResNetConfig

from v2idetr.modeling.backbone import FeatureShape
from v2idetr.modeling.interface import Images


class SharedBackbone(nn.Module):
    """The very backbone of a transformers model, behind our interface.

    Args:
        encoder: of the transformers model; gives the maps up to stride 32.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.model = encoder.model
        channels = encoder.intermediate_channel_sizes
        strides = [2 ** (6 - len(channels) + i) for i in range(len(channels))]
        self.shapes = {
            f"stride{stride}": FeatureShape(c, stride)
            for c, stride in zip(channels, strides, strict=True)
        }

    def output_shape(self) -> dict[str, FeatureShape]:
        return self.shapes

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.shapes, self.model(pixels).feature_maps, strict=True))


def tiny_resnet(*stages: str) -> ResNetConfig:
    """A ResNet that gives the maps of these stages; stage 4 has stride 32."""
    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


def disturb(model: nn.Module) -> None:
    """Add noise to all weights but the backbone's, some of which start at zero."""
    for name, parameter in model.named_parameters():
        if not name.startswith("model.backbone"):
            parameter.data += 0.1 * torch.randn_like(parameter)


def batch(sizes: list[tuple[int, int]]) -> tuple[Images, Tensor]:
    """Noise of these sizes in one padded batch, and transformers' mask of it."""
    H, W = (max(axis) for axis in zip(*sizes, strict=True))
    pixels, mask = torch.zeros(len(sizes), 3, H, W), torch.zeros(len(sizes), H, W).long()
    for index, (h, w) in enumerate(sizes):
        pixels[index, :, :h, :w] = torch.randn(3, h, w)
        mask[index, :h, :w] = 1
    return Images(pixels, sizes), mask


def labels(counts: list[int], num_classes: int) -> list[dict[str, Tensor]]:
    """So many boxes a picture, as transformers wants them."""
    return [
        {
            "class_labels": torch.randint(num_classes, (m,)),
            "boxes": 0.1 + 0.4 * torch.rand(m, 4),
        }
        for m in counts
    ]
