"""CenterNet (Zhou et al., 2019): a lesion is a peak of a heatmap; maps beside it give its box.

A backbone's maps, each projected to d channels and upsampled to stride 4, are summed. With N
lesions in a batch and lengths in cells, at every cell p and for every class c::

    target     T_pc = max over lesions of c of exp(-|p - floor(centre)|^2 / 2 sigma^2)
    heatmap    L_h = -1/N sum_pc (1 - Y_pc)^2 log Y_pc              where T_pc = 1
                                 (1 - T_pc)^4 Y_pc^2 log(1 - Y_pc)  elsewhere
    size       L_s = 1/N sum over lesions of |S_p - size|_1            at p = floor(centre)
    offset     L_o = 1/N sum over lesions of |O_p - (centre - p)|_1

    L = L_h + 0.1 L_s + L_o

sigma depends on the box, see :func:`gaussian_radius`. Detections are the cells that no neighbour
exceeds. Neck and heads are those that YONA's released code stands on (github.com/yuncheng97/YONA),
which suppresses boxes that overlap; CenterNet itself does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, batched_nms, get_norm
from detectron2.structures import Boxes, ImageList, Instances
from jaxtyping import Float, Int
from torch import Tensor, nn

from v2idetr.distillation.spatial_masks import centernet_radius
from v2idetr.modeling.trainable import Sample
from video_detectors.detector import in_original_pixels

STRIDE = 4  # of the summed map and all predictions
PRIOR = 0.1  # initial probability of a centre
OVERLAP = 0.7  # IoU that a box with a centre inside the Gaussian's radius still has
SIZE_WEIGHT = 0.1


@dataclass(frozen=True)
class Predictions:
    """Predictions at every cell of B frames; lengths in cells."""

    logits: Float[Tensor, "B K h w"]
    sizes: Float[Tensor, "B 2 h w"]
    offsets: Float[Tensor, "B 2 h w"]


class CenterNet(nn.Module):
    """A network in Detectron2's manner, for ``Detectron2Detector`` and for YONA.

    Args:
        backbone: see ``modeling/backbone.py``; all of its maps are used.
        num_classes: K.
        pixel_mean, pixel_std: RGB, of pixels in [0, 255].
        d: width of neck and heads.
        norm: of neck and heads, a name of Detectron2's ``get_norm``; "" for none.
        score_threshold: smallest score of a detection.
        nms_threshold: IoU above which the worse one of two detections of a class is dropped; 1 for
            none.
        max_detections: per frame.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        d: int = 64,
        norm: str = "BN",
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        shapes: dict[str, Any] = backbone.output_shape()  # pyright: ignore[reportCallIssue]
        self.backbone, self.num_classes = backbone, num_classes
        self.neck = Neck({name: shape.channels for name, shape in shapes.items()}, d, norm)
        self.head = Head(d, num_classes, norm)
        self.size_divisor = max(shape.stride for shape in shapes.values())
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.max_detections = max_detections
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, batched_inputs: list[Sample]) -> Any:
        """Losses by name in training, ``[{"instances": Instances}]`` otherwise."""
        images = self.preprocess(batched_inputs)
        predictions = self.head(self.features(images.tensor))
        if self.training:
            lesions = [s["instances"].to(self.pixel_mean.device) for s in batched_inputs]
            return self.losses(predictions, lesions)
        return [
            {"instances": in_original_pixels(found, sample)}
            for found, sample in zip(
                self.detections(predictions, images.image_sizes), batched_inputs, strict=True
            )
        ]

    def preprocess(self, frames: Sequence[Sample]) -> ImageList:
        """Normalised images, padded to one size that all strides divide."""
        device = self.pixel_mean.device
        images = [
            (frame["image"].to(device, non_blocking=True) - self.pixel_mean) / self.pixel_std
            for frame in frames
        ]
        return ImageList.from_tensors(images, self.size_divisor)

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B d h w"]:
        """The summed map."""
        size = pixels.shape[2] // STRIDE, pixels.shape[3] // STRIDE
        return self.neck(self.backbone(pixels), size)

    # ------------------------------------------------------------------ training

    def losses(self, predictions: Predictions, lesions: Sequence[Instances]) -> dict[str, Tensor]:
        """The three losses of the module's docstring, weighted.

        Args:
            predictions: of B frames.
            lesions: ground truth of each, in pixels of the network's input.
        """
        h, w = predictions.logits.shape[-2:]
        boxes = [frame.gt_boxes.tensor / STRIDE for frame in lesions]
        heatmaps = torch.stack(
            [
                target_heatmap(of_frame, frame.gt_classes, (self.num_classes, h, w))
                for of_frame, frame in zip(boxes, lesions, strict=True)
            ]
        )
        frames = [torch.full((len(b),), i, device=b.device) for i, b in enumerate(boxes)]
        everywhere, frame = torch.cat(boxes), torch.cat(frames)
        centres = (everywhere[:, :2] + everywhere[:, 2:]) / 2
        cells = centre_cells(everywhere, (h, w))
        x, y = cells.unbind(1)
        count = max(1, len(everywhere))

        def l1(maps: Tensor, wanted: Tensor) -> Tensor:
            return (maps[frame, :, y, x].float() - wanted).abs().sum() / count

        lengths = everywhere[:, 2:] - everywhere[:, :2]
        return {
            "loss_heatmap": heatmap_loss(predictions.logits.float(), heatmaps),
            "loss_size": SIZE_WEIGHT * l1(predictions.sizes, lengths),
            "loss_offset": l1(predictions.offsets, centres - cells),
        }

    # ------------------------------------------------------------------ evaluation

    def detections(
        self, predictions: Predictions, image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Detections of each frame, the best ones first.

        Args:
            predictions: of B frames.
            image_sizes: (height, width) of each in pixels of the network's input, without padding.

        Returns:
            detections in these pixels, with pred_boxes, scores and pred_classes.
        """
        return [
            self._detections(
                Predictions(**{name: maps[i : i + 1] for name, maps in vars(predictions).items()}),
                size,
            )
            for i, size in enumerate(image_sizes)
        ]

    def _detections(self, predictions: Predictions, image_size: tuple[int, int]) -> Instances:
        h, w = (math.ceil(length / STRIDE) for length in image_size)
        scores = predictions.logits[..., :h, :w].float().sigmoid()  # no peaks in the padding
        peaks = scores == F.max_pool2d(scores, 3, stride=1, padding=1)
        scores = torch.where(peaks, scores, 0.0)[0].flatten()
        scores, best = scores.topk(min(self.max_detections, len(scores)))
        best = best[scores > self.score_threshold]
        scores = scores[: len(best)]
        classes, rows, columns = best // (h * w), best // w % h, best % w
        sizes, offsets = (
            maps[0, :, rows, columns].float().T for maps in (predictions.sizes, predictions.offsets)
        )
        centres, half = torch.stack([columns, rows], 1) + offsets, sizes.clamp(min=0) / 2
        boxes = Boxes(torch.cat([centres - half, centres + half], 1) * STRIDE)
        boxes.clip(image_size)
        keep: Any = batched_nms(boxes.tensor, scores, classes, self.nms_threshold)
        found = Instances(image_size)
        found.pred_boxes, found.scores, found.pred_classes = boxes, scores, classes
        return found[keep]


class Neck(nn.Module):
    """A backbone's maps -> the sum of their projections, upsampled bilinearly.

    Args:
        channels: of each map by name.
        d, norm: see :class:`CenterNet`.
    """

    def __init__(self, channels: dict[str, int], d: int, norm: str) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({n: _layer(c, d, 1, norm) for n, c in channels.items()})

    def forward(self, maps: dict[str, Tensor], size: tuple[int, int]) -> Float[Tensor, "B d h w"]:
        projected = (project(maps[name]) for name, project in self.projections.items())
        upsampled = [F.interpolate(x, size=size, mode="bilinear") for x in projected]
        return torch.stack(upsampled).sum(0)


class Head(nn.Module):
    """Summed map -> predictions, each by a 3 x 3 and a 1 x 1 convolution of its own.

    Args:
        d, num_classes, norm: see :class:`CenterNet`.
    """

    def __init__(self, d: int, num_classes: int, norm: str) -> None:
        super().__init__()
        self.cls_tower, self.size_tower, self.offset_tower = (
            _layer(d, d, 3, norm) for _ in range(3)
        )
        self.cls_score = nn.Conv2d(d, num_classes, 1)
        self.size_pred, self.offset_pred = nn.Conv2d(d, 2, 1), nn.Conv2d(d, 2, 1)
        assert self.cls_score.bias is not None
        nn.init.constant_(self.cls_score.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Float[Tensor, "B d h w"]) -> Predictions:
        return Predictions(
            self.cls_score(self.cls_tower(features)),
            self.size_pred(self.size_tower(features)),
            self.offset_pred(self.offset_tower(features)),
        )


def _layer(inputs: int, outputs: int, kernel_size: int, norm: str) -> Conv2d:
    return Conv2d(
        inputs,
        outputs,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, outputs),
        activation=F.relu,
    )


# ---------------------------------------------------------------------------- targets


def centre_cells(boxes: Float[Tensor, "M 4"], size: tuple[int, int]) -> Int[Tensor, "M 2"]:
    """Column and row of the cell with the centre of each box.

    Args:
        boxes: xyxy in cells.
        size: (h, w) of the map, whose last cell holds centres on its edge.
    """
    h, w = size
    cells = ((boxes[:, :2] + boxes[:, 2:]) / 2).long()
    return cells.clamp(min=0).minimum(cells.new_tensor([w - 1, h - 1]))


def gaussian_radius(lengths: Float[Tensor, "M 2"]) -> Float[Tensor, " M"]:
    """Whole cells from a centre to the edge of its Gaussian, whose sigma is (2 radius + 1) / 6.

    Args:
        lengths: width and height in cells.
    """
    return centernet_radius(lengths.ceil(), OVERLAP).floor()


def target_heatmap(
    boxes: Float[Tensor, "M 4"], classes: Int[Tensor, " M"], shape: tuple[int, int, int]
) -> Float[Tensor, "K h w"]:
    """Largest of the Gaussians of a frame's lesions, by class; exactly 1 at their centre cells.

    Args:
        boxes: xyxy in cells.
        classes: of each.
        shape: (K, h, w).
    """
    heatmap = boxes.new_zeros(shape)
    radius = gaussian_radius(boxes[:, 2:] - boxes[:, :2])[:, None]
    cells = centre_cells(boxes, (shape[1], shape[2]))
    sigma = (2 * radius + 1) / 6

    def along(length: int, centre: Tensor) -> Tensor:
        distance = torch.arange(length, device=boxes.device) - centre[:, None]
        return torch.exp(-distance.square() / (2 * sigma.square())) * (distance.abs() <= radius)

    columns, rows = along(shape[2], cells[:, 0]), along(shape[1], cells[:, 1])
    for index, lesion in zip(classes.tolist(), rows[:, :, None] * columns[:, None], strict=True):
        heatmap[index] = heatmap[index].maximum(lesion)
    return heatmap


def heatmap_loss(
    logits: Float[Tensor, "B K h w"], target: Float[Tensor, "B K h w"]
) -> Float[Tensor, ""]:
    """Focal loss, less where a Gaussian is; divided by the number of centre cells, at least 1."""
    probability = logits.sigmoid()
    centres = target == 1
    at_centres = (1 - probability).square() * F.logsigmoid(logits) * centres
    elsewhere = (1 - target).pow(4) * probability.square() * F.logsigmoid(-logits)
    return -(at_centres + elsewhere).sum() / centres.sum().clamp(min=1)
