"""Image encoder: a backbone, global average pooling and MoCo v2's projection head.

Legend: B images, H W pixels, c channels of the backbone's coarsest map, d dimensions of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor, nn

from v2idetr.modeling.backbone_weights import load_imagenet_weights


class PooledBackbone(nn.Module):
    """Images -> features that probes and detectors build on: the coarsest map, averaged.

    Args:
        backbone: see ``v2idetr.modeling.backbone``.
        pixel_mean, pixel_std: of RGB channels in 0..255, as the detector that gets the backbone.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, *, backbone: nn.Module, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        shapes = self.backbone.output_shape()
        self.coarsest = max(shapes, key=lambda name: shapes[name].stride)
        self.num_features = int(shapes[self.coarsest].channels)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            numbers = torch.tensor(list(values), dtype=torch.float32)
            self.register_buffer(name, numbers.view(3, 1, 1), persistent=False)

    def features(self, pixels: Tensor) -> Float[Tensor, "B c"]:
        """Features of RGB images (B, 3, H, W) in 0..255, of any type."""
        maps = self.backbone((pixels.float() - self.pixel_mean) / self.pixel_std)
        return maps[self.coarsest].mean((2, 3))


class Encoder(PooledBackbone):
    """Images -> unit vectors whose dot products are similarities.

    Args:
        backbone, pixel_mean, pixel_std: see :class:`PooledBackbone`.
        weights: of the backbone, see `load_imagenet_weights`; "" for random ones, None where
            others follow.
        hidden_dim, dim: of the head. The paper's are 2048 and 128.
        freeze_backbone: learn the head alone: what a public model has learned is preserved
            (semantic-preserving training).

    Raises:
        ValueError: the weights do not fit the backbone, or the head has no dimensions.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        weights: str | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        hidden_dim: int = 2048,
        dim: int = 128,
        freeze_backbone: bool = False,
    ) -> None:
        for name, number, papers in (("hidden_dim", hidden_dim, 2048), ("dim", dim, 128)):
            if number < 1:
                raise ValueError(f"{name}={number} must be at least 1; the paper's is {papers}.")
        super().__init__(backbone=backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        load_imagenet_weights(backbone, weights, key="weights")
        self.dim, self.freeze_backbone = dim, freeze_backbone
        self.head = MoCoProjectionHead(self.num_features, hidden_dim, dim)
        if freeze_backbone:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        if self.freeze_backbone:  # statistics of batch normalisations are preserved as well
            self.backbone.eval()
        return self

    def forward(self, pixels: Tensor) -> Float[Tensor, "B d"]:
        """Unit vectors of images, see `features`."""
        return F.normalize(self.head(self.features(pixels)).float(), dim=1)
