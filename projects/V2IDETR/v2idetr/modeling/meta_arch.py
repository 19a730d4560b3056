"""The Detectron2 side of a detector: dataset dicts in, losses or Instances out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from v2i_runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD
from v2idetr.modeling.classification import Classification
from v2idetr.modeling.criterion import SetCriterion, Targets
from v2idetr.modeling.extra_queries import ExtraQueries, decode_beside
from v2idetr.modeling.inference import ImageDetector, best_detections, normalised_images
from v2idetr.modeling.interface import Decoded, DetectorNetwork, Images
from v2idetr.modeling.trainable import Sample
from v2idetr.modeling.training import TrainingOutput


class Detector(nn.Module):
    """A detector of single images or, with ``num_frames`` above 1, of clips.

    One of images sees the current frame of each sample alone; one of clips sees all frames of its
    clip and is supervised on all of them.

    Args:
        net: see ``interface.DetectorNetwork``.
        criterion: the detection loss; its classification must fit the logits of ``net``.
        class_names: K names; must agree with ``net.num_classes``.
        num_frames: T.
        reference_sampler: choice of the frames of a clip, see ``data/reference_sampler.py``; None
            for a window as ``data`` in the config describes it.
        pixel_mean, pixel_std: RGB, for pixels in [0, 255].
        score_topk: detections per image, as far as the classification gives so many.
        size_divisor: images are padded to multiples of this.

    Raises:
        ValueError: class names or classification do not fit the network; T is below 1.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        net: nn.Module,
        criterion: SetCriterion,
        class_names: Sequence[str],
        num_frames: int = 1,
        reference_sampler: Any = None,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        score_topk: int = 100,
        size_divisor: int = 32,
    ) -> None:
        super().__init__()
        if not isinstance(net, DetectorNetwork):
            raise ValueError(
                f"model.net: {type(net).__name__} is no DetectorNetwork: it lacks members of "
                "modeling/interface.py. Models of Detectron2 are adapted by "
                "v2idetr.modeling.detectron2_models.Detectron2Detector."
            )
        if net.num_classes != len(class_names):
            raise ValueError(
                f"The network has {net.num_classes} classes, but class_names are "
                f"{list(class_names)}: set model.net.num_classes={len(class_names)}."
            )
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
        _check_logits(net, criterion.classification)
        self.net, self.criterion = net, criterion
        self.class_names, self.num_frames = list(class_names), num_frames
        self.reference_sampler = reference_sampler
        self.score_topk, self.size_divisor = score_topk, size_divisor
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(3, 1, 1), False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[Sample], num_boxes: float | None = None
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Weighted losses in training, detections of every sample's current frame otherwise.

        Args:
            batched_inputs: one dict per sample, see ``data/clip_mapper.py``.
            num_boxes: divisor of the box losses, see ``SetCriterion``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        return self.losses(self.frames(batched_inputs), num_boxes=num_boxes).losses

    def losses(
        self,
        frames: list[Sample],
        extra: Sequence[ExtraQueries] = (),
        num_boxes: float | None = None,
    ) -> TrainingOutput:
        """Forward pass in training, also for a student.

        Args:
            frames: frames with their lesions.
            extra: sets of extra queries, in addition to the network's ``training_queries``.
            num_boxes: see :meth:`forward`.
        """
        images, targets = self.images(frames), self.targets(frames)
        memory = self.net.encode(self.net.extract(images))
        own = self.net.queries(memory)
        ask = getattr(self.net, "training_queries", None)
        sets = [*extra, *([] if ask is None else ask(memory, targets))]
        names = [queries.name for queries in sets if queries.pairs is not None]
        if len(set(names)) < len(names):
            raise ValueError(f"sets of extra queries with losses need different names, got {names}")
        decoded, extra_decoded = decode_beside(self.net, memory, own, sets)
        losses = self.criterion(decoded, targets, proposals=memory.proposals, num_boxes=num_boxes)
        for queries, result in zip(sets, extra_decoded, strict=True):
            if queries.pairs is not None:
                losses |= self.criterion(
                    result,
                    targets,
                    num_boxes=num_boxes,
                    pairs=queries.pairs,
                    groups=queries.groups,
                    name=queries.name,
                )
        return TrainingOutput(
            losses,
            images,
            targets,
            memory,
            own,
            decoded,
            extra_decoded[: len(extra)],
            self.criterion.classification,
        )

    @torch.no_grad()
    def inference(self, batched_inputs: list[Sample]) -> list[dict[str, Instances]]:
        """``[{"instances": Instances}]``: pred_boxes in original pixels, scores, pred_classes."""
        images = self.images(self.frames(batched_inputs))
        return self.postprocess(self.net(images, self.current(batched_inputs)), batched_inputs)

    def current(self, batched_inputs: list[Sample]) -> Tensor | None:
        """Index of every sample's current frame among :meth:`frames`; None for all of them."""
        if self.num_frames == 1:
            return None
        index = [c * self.num_frames + s["clip_index"] for c, s in enumerate(batched_inputs)]
        return torch.tensor(index, device=self.device)

    def image_detector(self) -> ImageDetector:
        """The detector as a module of tensors with the same weights, for export and live video.

        Raises:
            ValueError: the detector takes clips.
        """
        if self.num_frames > 1:
            raise ValueError(
                f"the detector takes clips of {self.num_frames} frames; only detectors of single "
                "images can be exported: use the plain detector or the student."
            )
        return ImageDetector(
            self.net,
            self.criterion.classification,
            pixel_mean=self.pixel_mean.flatten().tolist(),
            pixel_std=self.pixel_std.flatten().tolist(),
            size_divisor=self.size_divisor,
            score_topk=self.score_topk,
        ).to(self.device)

    def frames(self, batched_inputs: list[Sample]) -> list[Sample]:
        """The frames that this detector looks at, and is supervised on; those of clips clip-major.

        Raises:
            ValueError: a clip has not T frames.
        """
        if self.num_frames == 1:
            return batched_inputs
        for sample in batched_inputs:
            if len(sample["clip"]) != self.num_frames:
                raise ValueError(
                    f"{sample['file_name']}: the clip has {len(sample['clip'])} frames, the "
                    f"detector needs {self.num_frames}. Make data.num_frames agree with it."
                )
        return [frame for sample in batched_inputs for frame in sample["clip"]]

    def count_frames(self, batched_inputs: list[Sample]) -> int:
        """Number of labelled frames of a batch."""
        return len(self.frames(batched_inputs))

    def count_boxes(self, batched_inputs: list[Sample]) -> int:
        """Number of lesions in the labelled frames of a batch."""
        return sum(len(frame["instances"]) for frame in self.frames(batched_inputs))

    def images(self, frames: list[Sample]) -> Images:
        """Normalised images in one tensor, padded with zeros at the right and at the bottom."""
        return normalised_images(
            [frame["image"] for frame in frames],
            mean=self.pixel_mean,
            std=self.pixel_std,
            size_divisor=self.size_divisor,
            num_frames=self.num_frames,
        )

    def targets(self, frames: list[Sample]) -> Targets:
        """Ground truth of frames for the criterion."""
        labels, boxes, counts = [], [], []
        for frame in frames:
            instances = frame["instances"]
            h, w = frame["image"].shape[-2:]
            xyxy = instances.gt_boxes.tensor.float()
            boxes.append(box_convert(xyxy, "xyxy", "cxcywh") / xyxy.new_tensor([w, h, w, h]))
            labels.append(instances.gt_classes)
            counts.append(len(instances))
        # One copy for all frames, because each synchronises with a GPU.
        all_labels = torch.cat(labels).to(self.device, non_blocking=True)
        all_boxes = torch.cat(boxes).to(self.device, non_blocking=True)
        return Targets(list(all_labels.split(counts)), list(all_boxes.split(counts)))

    def postprocess(
        self, decoded: Decoded, batched_inputs: list[Sample]
    ) -> list[dict[str, Instances]]:
        """The best ``score_topk`` detections of every image, without non-maximum suppression.

        Raises:
            ValueError: a box or a score is not finite; names the frame.
        """
        found = best_detections(decoded, self.score_topk, self.criterion.classification)
        results = []
        for sample, score, label, box in zip(
            batched_inputs, found.scores, found.classes, found.boxes, strict=True
        ):
            h, w = sample["height"], sample["width"]
            instances = Instances((h, w))
            xyxy = box_convert(box, "cxcywh", "xyxy") * box.new_tensor([w, h, w, h])
            if not (xyxy.isfinite().all() and score.isfinite().all()):
                raise ValueError(
                    f"The output for {sample.get('file_name', 'an image')} is not finite. The "
                    "weights are probably damaged: use an earlier checkpoint."
                )
            instances.pred_boxes = Boxes(clip_boxes_to_image(xyxy, (h, w)))
            instances.scores, instances.pred_classes = score, label
            results.append({"instances": instances})
        return results


def _check_logits(net: DetectorNetwork, classification: Classification) -> None:
    needed = classification.num_logits(net.num_classes)
    if net.num_logits != needed:
        kind, name = type(classification).__name__, type(net).__name__
        raise ValueError(
            f"net: {name} gives {net.num_logits} logits a query, but criterion.classification: "
            f"{kind} needs {needed} for {net.num_classes} classes. DETR takes "
            "SoftmaxClassification, Deformable DETR and SAM-DETR take FocalClassification."
        )
