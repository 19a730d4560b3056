"""Pixels -> detections, as tensors, without dicts, files or ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torchvision.ops import box_convert

from v2idetr.modeling.classification import Classification
from v2idetr.modeling.interface import Decoded, DetectorNetwork, Images, select_queries


@dataclass
class Detections:
    """The best k detections of every image, best first.

    Attributes:
        scores: in [0, 1].
        classes: 0-based.
        boxes: cxcywh in [0, 1] of the unpadded image.
    """

    scores: Float[Tensor, "B k"]
    classes: Int[Tensor, "B k"]
    boxes: Float[Tensor, "B k 4"]


def normalised_images(
    images: Sequence[Tensor],
    *,
    mean: Float[Tensor, "3 1 1"],
    std: Float[Tensor, "3 1 1"],
    size_divisor: int,
    num_frames: int = 1,
) -> Images:
    """One normalised batch of RGB images (3, H, W) in [0, 255], padded to multiples of a divisor.

    Padding is zero, at the right and at the bottom.
    """
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    H, W = (-(-max(axis) // size_divisor) * size_divisor for axis in zip(*sizes, strict=True))
    pixels = mean.new_zeros(len(images), 3, H, W)
    for row, image, (h, w) in zip(pixels, images, sizes, strict=True):
        row[:, :h, :w] = (image.to(mean.device, non_blocking=True) - mean) / std
    return Images(pixels, sizes, num_frames)


def best_detections(decoded: Decoded, topk: int, classification: Classification) -> Detections:
    """The best detections of the last layer, k <= topk, without non-maximum suppression."""
    scores, classes, query = classification.detections(decoded.logits[-1], topk)
    return Detections(scores, classes, select_queries(decoded.boxes[-1], query))


class ImageDetector(nn.Module):
    """Frames of one size -> scores, classes and boxes, for export and live video.

    Args:
        net: network of a detector of single images.
        classification: meaning of its logits.
        pixel_mean, pixel_std: RGB statistics for pixels in [0, 255].
        size_divisor: divisor of padded image sizes in pixels.
        score_topk: largest number of detections per image.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        net: DetectorNetwork,
        classification: Classification,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisor: int,
        score_topk: int,
    ) -> None:
        super().__init__()
        self.net, self.classification = net, classification
        self.size_divisor, self.score_topk = size_divisor, score_topk
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(3, 1, 1), False)

    def forward(
        self, images: UInt8[Tensor, "B H W 3"]
    ) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"], Float[Tensor, "B k 4"]]:
        """Scores, classes and boxes (xyxy in [0, 1] of the frame) of RGB frames."""
        height, width = images.shape[1:3]
        below, right = -height % self.size_divisor, -width % self.size_divisor
        pixels = (images.permute(0, 3, 1, 2) - self.pixel_mean) / self.pixel_std
        if below or right:
            pixels = F.pad(pixels, (0, right, 0, below))
        decoded = self.net(Images(pixels, [(height, width)]))
        found = best_detections(decoded, self.score_topk, self.classification)
        boxes = box_convert(found.boxes, "cxcywh", "xyxy").clamp(0, 1)
        return found.scores, found.classes, boxes
