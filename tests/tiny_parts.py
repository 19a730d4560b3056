"""A backbone that a config can name, small enough for a step in milliseconds."""

from __future__ import annotations

import torch
from torch import nn

from v2idetr.modeling.backbone import FeatureShape


class TinyBackbone(nn.Module):
    """Strides 8, 16 and 32, by patches and two convolutions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Conv2d(3, width, 8, stride=8),
                nn.Conv2d(width, width, 2, stride=2),
                nn.Conv2d(width, width, 2, stride=2),
            ]
        )
        self.width = width

    def output_shape(self) -> dict[str, FeatureShape]:
        return {f"c{i}": FeatureShape(self.width, 8 * 2**i) for i in range(3)}

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {}
        for index, stage in enumerate(self.stages):
            pixels = stage(pixels).relu()
            maps[f"c{index}"] = pixels
        return maps


class TinyNormBackbone(TinyBackbone):
    """The same with a batch normalisation that is trained."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = super().forward(pixels)
        return maps | {"c2": self.norm(maps["c2"])}
