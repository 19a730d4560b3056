"""Detectron2's own detectors, such as Faster R-CNN, as detectors that can be trained here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from torch import Tensor, nn

from v2idetr.modeling.backbone_weights import load_imagenet_weights
from v2idetr.modeling.trainable import Sample


class Detectron2Backbone(Backbone):
    """A backbone of ``modeling/backbone.py`` as one of Detectron2, for its FPN to stand on.

    Args:
        backbone: maps (B, 3, H, W) to ``{name: (B, channels, h, w)}``.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def output_shape(self) -> dict[str, ShapeSpec]:
        shapes: dict[str, Any] = self.backbone.output_shape()  # pyright: ignore[reportCallIssue]
        return {n: ShapeSpec(channels=s.channels, stride=s.stride) for n, s in shapes.items()}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.backbone(pixels)


class Detectron2Detector(nn.Module):
    """A meta-architecture of Detectron2 as a ``TrainableDetector`` of single frames.

    RetinaNet and FCOS divide their losses by a moving average that they keep as a Python number. It
    is kept in their buffer ``saved_loss_normalizer`` as well, 0 before the first step, and so saved
    with the weights. All processes have their mean, so that each resumes with the same.

    Args:
        net: the meta-architecture, for RGB images in [0, 255].
        class_names: K names; must agree with the number of classes of ``net``.
        weights: ImageNet weights of its backbone, for an FPN of the part below it, see
            ``load_imagenet_weights``.

    Raises:
        ValueError: class names or weights do not fit the network.
    """

    num_frames = 1
    net: Any

    def __init__(
        self, *, net: nn.Module, class_names: Sequence[str], weights: str | None = None
    ) -> None:
        super().__init__()
        _check_classes(net, class_names)
        self.net, self.class_names = net, list(class_names)
        load_imagenet_weights(image_backbone(net), weights, key="model.weights")
        if isinstance(net, DenseDetector):
            net.register_buffer("saved_loss_normalizer", torch.tensor(0.0, dtype=torch.float64))

    @property
    def pixel_mean(self) -> Tensor:
        """(3, 1, 1), RGB, for pixels in [0, 255]."""
        return self.net.pixel_mean

    @property
    def pixel_std(self) -> Tensor:
        """(3, 1, 1), RGB, for pixels in [0, 255]."""
        return self.net.pixel_std

    def count_frames(self, batched_inputs: list[Sample]) -> int:
        """How many labelled frames supervise this batch."""
        return len(batched_inputs)

    def count_boxes(self, batched_inputs: list[Sample]) -> int:
        """How many lesions supervise this batch."""
        return sum(len(sample["instances"]) for sample in batched_inputs)

    def forward(
        self, batched_inputs: list[Sample], num_boxes: float | None = None
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, detections of every sample's current frame otherwise.

        Args:
            batched_inputs: one dict a sample, see ``data/clip_mapper.py``.
            num_boxes: not used. Detectron2 divides its losses by anchors and proposals of the
                micro-batch, so gradients depend on how a batch is cut.
        """
        if not (self.training and isinstance(self.net, DenseDetector)):
            return self.net(batched_inputs)
        with dense_losses(self.net):
            return self.net(batched_inputs)


@contextmanager
def dense_losses(net: Any) -> Iterator[None]:
    """The block that computes the losses of a RetinaNet or FCOS, see :class:`Detectron2Detector`.

    Their normalizer continues from the saved one, and is saved after the block.
    """
    value = float(net.saved_loss_normalizer)
    if value > 0:
        net.loss_normalizer = value
    elif hasattr(net, "loss_normalizer"):
        del net.loss_normalizer
    # Their focal loss is scripted: optimised from a process's second call on, it would have
    # other last bits in a resumed run.
    with torch.jit.optimized_execution(False):
        yield
    saved = net.saved_loss_normalizer.fill_(net.loss_normalizer)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(saved)
        saved /= dist.get_world_size()


def image_backbone(net: nn.Module) -> nn.Module:
    """The part of a network that has ImageNet weights: below the FPN, if it has one.

    Raises:
        ValueError: the network has no backbone.
    """
    backbone: Any = getattr(net, "backbone", None)
    if backbone is None:
        raise ValueError(f"model.net: {type(net).__name__} has no backbone to load weights into.")
    bottom_up = getattr(backbone, "bottom_up", backbone)
    return bottom_up.backbone if isinstance(bottom_up, Detectron2Backbone) else bottom_up


def _check_classes(net: Any, class_names: Sequence[str]) -> None:
    part: Any = net
    key = "model.net"
    if not hasattr(net, "num_classes"):
        part, key = getattr(net, "roi_heads", None), "model.net.roi_heads"
    if not hasattr(part, "num_classes"):
        raise ValueError(
            f"model.net: {type(net).__name__} is no detector of classes: neither it nor its "
            "roi_heads has num_classes."
        )
    if part.num_classes != len(class_names):
        raise ValueError(
            f"The network has {part.num_classes} classes, but class_names are "
            f"{list(class_names)}: set {key}.num_classes={len(class_names)}."
        )
