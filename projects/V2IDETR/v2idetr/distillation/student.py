"""A student in training: the plain detector plus what it learns from the teacher (equation 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.ops import box_convert

from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.knowledge import Knowledge
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation


class DistilledStudent(nn.Module):
    """Wraps a detector for training; in evaluation it is that detector and nothing else.

    Args:
        student: the plain detector; its state dict is what is kept after training.
        tfd, cqd: the two distillation losses; None leaves one out.
    """

    student: Any  # a Detector: torch types its submodules as Tensor | Module

    def __init__(
        self,
        *,
        student: nn.Module,
        tfd: TargetGuidedFeatureDistillation | None,
        cqd: CrossViewQueryDistillation | None,
    ) -> None:
        super().__init__()
        if tfd is None and cqd is None:
            raise ValueError(
                "A distilled student needs distillation.tfd or distillation.cqd; for neither, run "
                "the stage 'plain'."
            )
        self.student, self.tfd, self.cqd = student, tfd, cqd

    @property
    def num_frames(self) -> int:
        return self.student.num_frames

    def count_boxes(self, batched_inputs: list[dict[str, Any]]) -> int:
        return self.student.count_boxes(batched_inputs)

    def forward(
        self,
        batched_inputs: list[dict[str, Any]],
        knowledge: Knowledge | None = None,
        num_boxes: float | None = None,
    ) -> Any:
        """Detection and distillation losses in training, the student's detections otherwise."""
        if not self.training:
            return self.student(batched_inputs)
        assert knowledge is not None, "training a distilled student needs the teacher's knowledge"
        student, net = self.student, self.student.net
        images = student.images(student.frames(batched_inputs))
        targets = student.targets(student.frames(batched_inputs))
        memory = net.encode(net.extract(images))
        own = net.queries(memory)
        if self.cqd is None:
            decoded = net.decode(memory, own)
        else:
            cross = self.cqd.cross_view(
                knowledge, reference_dim=own.reference.shape[-1], generators=_draws(batched_inputs)
            )
            decoded, cross_decoded = self.cqd.decode(net, memory, own, cross.queries)
        losses = student.criterion(
            decoded, targets, proposals=memory.proposals, num_boxes=num_boxes
        )
        if self.cqd is not None:
            losses["loss_cqd"] = self.cqd(cross_decoded, cross)
        if self.tfd is not None:
            boxes_xyxy_px = [
                box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([w, h, w, h])
                for boxes, (h, w) in zip(targets.boxes, images.sizes, strict=True)
            ]
            losses["loss_tfd"] = self.tfd(memory.features, knowledge.features, boxes_xyxy_px)
        return losses


def _draws(batched_inputs: list[dict[str, Any]]) -> list[torch.Generator | None]:
    """A generator a sample from the sample's own seed: draws do not depend on the batch around."""
    return [
        torch.Generator().manual_seed(sample["seed"]) if "seed" in sample else None
        for sample in batched_inputs
    ]
