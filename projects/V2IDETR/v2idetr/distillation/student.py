"""A student in training: the plain detector plus what it learns from the teacher (equation 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.feature_distillation import EmbeddingDistillation, FeatureDistillation
from v2idetr.distillation.knowledge import Frames, Knowledge, Reach, teacher_knowledge, views_of
from v2idetr.distillation.loss_names import LOSSES
from v2idetr.distillation.query_distillation import QueryDistillation
from v2idetr.distillation.spatial_masks import attended_queries
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.modeling.criterion import Targets
from v2idetr.modeling.interface import Images, Memory


class DistilledStudent(nn.Module):
    """Wraps a detector for training; in evaluation it is that detector and nothing else.

    Args:
        student: the plain detector; its state dict is what is kept after training.
        tfd, cqd: the paper's two distillation losses; None leaves one out.
        fd, ed, qd: those it compares them with in Table IV.
        frames: which frames of a clip the student learns from: "current", as the paper, or "all":
            every frame is a current one for all losses, at one forward of the teacher. Losses stay
            means over frames, so that their weights keep their meaning.

    Raises:
        ValueError: no loss at all, or one under another's name; ``frames="all"`` for a student that
            sees clips itself.
    """

    student: Any  # a Detector: torch types its submodules as Tensor | Module

    def __init__(
        self,
        *,
        student: nn.Module,
        tfd: TargetGuidedFeatureDistillation | None = None,
        fd: FeatureDistillation | None = None,
        ed: EmbeddingDistillation | None = None,
        cqd: CrossViewQueryDistillation | None = None,
        qd: QueryDistillation | None = None,
        frames: Frames = "current",
    ) -> None:
        super().__init__()
        self.student, self.tfd, self.fd, self.ed = student, tfd, fd, ed
        self.cqd, self.qd = cqd, qd
        self.frames: Frames = frames
        if frames == "all" and self.student.num_frames > 1:
            raise ValueError(
                f"distillation.frames=all is for students of single frames; model sees clips of "
                f"{self.student.num_frames}."
            )
        given = {name: loss for name in LOSSES if (loss := getattr(self, name)) is not None}
        if not given:
            raise ValueError(
                f"A distilled student needs one of distillation.{', '.join(LOSSES)}; for none of "
                "them, run the stage 'plain'."
            )
        for name, loss in given.items():
            if loss.key != name:
                raise ValueError(
                    f"distillation.{name}: {type(loss).__name__} belongs below "
                    f"distillation.{loss.key}."
                )
        self.reach = Reach(max(loss.reach for loss in given.values()))

    @property
    def num_frames(self) -> int:
        return self.student.num_frames

    def count_frames(self, batched_inputs: list[dict[str, Any]]) -> int:
        return self.student.count_frames(views_of(batched_inputs, self.frames))

    def count_boxes(self, batched_inputs: list[dict[str, Any]]) -> int:
        return self.student.count_boxes(views_of(batched_inputs, self.frames))

    def knowledge(self, teacher: nn.Module, batched_inputs: list[dict[str, Any]]) -> Knowledge:
        """What a frozen teacher knows about a batch, as far as these losses need it."""
        return teacher_knowledge(teacher, batched_inputs, reach=self.reach, frames=self.frames)

    def forward(
        self,
        batched_inputs: list[dict[str, Any]],
        knowledge: Knowledge | None = None,
        num_boxes: float | None = None,
    ) -> Any:
        """Detection and distillation losses in training, the student's detections otherwise.

        Args:
            batched_inputs: one dict a sample, see ``data/clip_mapper.py``.
            knowledge: of these samples, see :meth:`knowledge`.
            num_boxes: what box losses are divided by, see ``SetCriterion``.
        """
        if not self.training:
            return self.student(batched_inputs)
        assert knowledge is not None, "training a distilled student needs the teacher's knowledge"
        student, net = self.student, self.student.net
        views = views_of(batched_inputs, self.frames)
        images = student.images(student.frames(views))
        targets = student.targets(student.frames(views))
        memory = net.encode(net.extract(images))
        own = net.queries(memory)
        if self.cqd is None:
            decoded = net.decode(memory, own)
        else:
            cross = self.cqd.cross_view(
                knowledge, reference_dim=own.reference.shape[-1], generators=_draws(views)
            )
            decoded, cross_decoded = self.cqd.decode(net, memory, own, cross.queries)
        losses = student.criterion(
            decoded, targets, proposals=memory.proposals, num_boxes=num_boxes
        )
        if self.cqd is not None:
            losses["loss_cqd"] = self.cqd(cross_decoded, cross)
        if self.qd is not None:
            scores = student.criterion.classification.scores(decoded.logits)
            losses["loss_qd"] = self.qd((decoded, scores), (knowledge.decoded, knowledge.scores))
        return losses | self._map_losses(memory, knowledge, targets, images)

    def _map_losses(
        self, memory: Memory, knowledge: Knowledge, targets: Targets, images: Images
    ) -> dict[str, Tensor]:
        """The losses between feature maps."""
        boxes_xyxy_px = [
            box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([w, h, w, h])
            for boxes, (h, w) in zip(targets.boxes, images.sizes, strict=True)
        ]
        attended = None
        if any(loss is not None and loss.mask == "attention" for loss in (self.fd, self.ed)):
            assert knowledge.decoded is not None and knowledge.scores is not None
            attended = attended_queries(knowledge.decoded, knowledge.scores, targets.boxes)
        losses = {}
        if self.tfd is not None:
            losses["loss_tfd"] = self.tfd(memory.features, knowledge.features, boxes_xyxy_px)
        if self.fd is not None:
            losses["loss_fd"] = self.fd(
                memory.features, knowledge.features, boxes_xyxy_px, attended
            )
        if self.ed is not None:
            losses["loss_ed"] = self.ed(
                memory.encoded(), knowledge.encoded, boxes_xyxy_px, attended
            )
        return losses


def _draws(views: list[dict[str, Any]]) -> list[torch.Generator | None]:
    """A generator a view from its own seed: draws do not depend on the batch around."""
    return [
        torch.Generator().manual_seed(view["seed"]) if "seed" in view else None for view in views
    ]
