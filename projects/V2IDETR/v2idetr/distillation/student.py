"""Student in training: the plain detector with distillation losses (equation 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from v2idetr.distillation.knowledge import Frames, Knowledge, Reach, teacher_knowledge, views_of
from v2idetr.distillation.loss import DistillationLoss, Pairing
from v2idetr.modeling.trainable import Sample
from v2idetr.modeling.training import TransformerDetector


class DistilledStudent(nn.Module):
    """A detector with distillation losses; in evaluation only the detector.

    Args:
        student: plain detector, whose state dict is saved after training.
        losses: losses by key below ``distillation``; the paper's are "tfd" and "cqd".
        frames: the student's training frames: "current", as in the paper, or "all": every frame of
            a clip, with one forward pass of the teacher. Losses are means over frames, so that
            their weights do not depend on this.

    Raises:
        ValueError: no loss; a student of clips.
    """

    student: TransformerDetector
    losses: nn.ModuleDict

    def __init__(
        self,
        *,
        student: TransformerDetector,
        losses: Mapping[str, DistillationLoss],
        frames: Frames = "current",
    ) -> None:
        super().__init__()
        self.student, self.losses = student, nn.ModuleDict(losses)
        self.frames: Frames = frames
        if student.num_frames > 1:  # what is known of the teacher's frames is cut to current ones
            raise ValueError(
                f"a student looks at single frames, but model.num_frames is {student.num_frames}: "
                "set model.num_frames=1; to train a detector of clips, run the stage 'plain'."
            )
        if not losses:
            raise ValueError(
                "A distilled student needs a loss below distillation, such as distillation.tfd; "
                "to train without, run the stage 'plain'."
            )
        for key, loss in losses.items():
            loss.key = key
        # Of each forward pass, for whoever sets it to a list: agreement with the teacher by name.
        self.agreement: list[dict[str, Tensor]] | None = None
        self.reach = Reach(max(loss.reach for loss in losses.values()))

    @property
    def num_frames(self) -> int:
        return self.student.num_frames

    def count_frames(self, batched_inputs: list[Sample]) -> int:
        return self.student.count_frames(views_of(batched_inputs, self.frames))

    def count_boxes(self, batched_inputs: list[Sample]) -> int:
        return self.student.count_boxes(views_of(batched_inputs, self.frames))

    def knowledge(self, teacher: TransformerDetector, batched_inputs: list[Sample]) -> Knowledge:
        """The frozen teacher's outputs for a batch that these losses require."""
        return teacher_knowledge(teacher, batched_inputs, reach=self.reach, frames=self.frames)

    def forward(
        self,
        batched_inputs: list[Sample],
        knowledge: Knowledge | None = None,
        num_boxes: float | None = None,
    ) -> Any:
        """Detection and distillation losses in training, the student's detections otherwise.

        Args:
            batched_inputs: one dict per sample, see ``data/clip_mapper.py``.
            knowledge: the teacher's outputs for these samples, see :meth:`knowledge`.
            num_boxes: divisor of the box losses, see ``SetCriterion``.
        """
        if not self.training:
            return self.student(batched_inputs)
        assert knowledge is not None, "training a distilled student needs the teacher's knowledge"
        views = views_of(batched_inputs, self.frames)
        asked = {
            key: queries
            for key, loss in self._losses()
            if (
                queries := loss.extra_queries(
                    knowledge,
                    reference_dim=self.student.net.reference_dim,
                    generators=_generators(views),
                )
            )
            is not None
        }
        output = self.student.losses(
            self.student.frames(views), list(asked.values()), num_boxes=num_boxes
        )
        decoded = {
            key: (queries, result)
            for (key, queries), result in zip(asked.items(), output.extra, strict=True)
        }
        pairing = Pairing(output, knowledge, decoded)
        distilled = {key: loss(pairing) for key, loss in self._losses()}
        if self.agreement is not None:
            self.agreement.append(self._agreement(pairing, distilled))
        return output.losses | {f"loss_{key}": loss for key, loss in distilled.items()}

    @torch.no_grad()
    def _agreement(self, pairing: Pairing, distilled: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses without their weights (those that have one above 0), and `measures` of them."""
        found: dict[str, Tensor] = {}
        for key, loss in self._losses():
            if weight := getattr(loss, "weight", 0.0):
                found[key] = distilled[key].detach() / weight
            found |= loss.measures(pairing)
        return found

    def _losses(self) -> list[tuple[str, DistillationLoss]]:
        found: Any = self.losses.items()  # torch types them as plain modules
        return list(found)


def _generators(views: list[Sample]) -> list[torch.Generator | None]:
    """One generator per view, from its seed, so that draws do not depend on the batch."""
    return [
        torch.Generator().manual_seed(view["seed"]) if "seed" in view else None for view in views
    ]
