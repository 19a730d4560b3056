"""What a distillation loss is: a module that compares a student with its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import box_convert

from v2idetr.distillation.knowledge import Knowledge, Reach
from v2idetr.distillation.spatial_masks import attended_queries
from v2idetr.modeling.extra_queries import ExtraQueries
from v2idetr.modeling.interface import Decoded
from v2idetr.modeling.training import TrainingOutput


@dataclass
class Pairing:
    """Student and teacher on one batch of frames: what every distillation loss is given.

    Attributes:
        student: the training forward of the student.
        teacher: what the teacher knows of the same frames.
        extra: of the losses that asked for extra queries, by their keys: the queries, and what the
            student made of them.
    """

    student: TrainingOutput
    teacher: Knowledge
    extra: dict[str, tuple[ExtraQueries, Decoded]] = field(default_factory=dict)

    @cached_property
    def boxes_xyxy_px(self) -> list[Float[Tensor, "_ 4"]]:
        """The lesions of every frame, in pixels of the student's images."""
        return [
            box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([w, h, w, h])
            for boxes, (h, w) in zip(
                self.student.targets.boxes, self.student.images.sizes, strict=True
            )
        ]

    @cached_property
    def attended(self) -> Float[Tensor, "L B d"]:
        """What the teacher's decoder looks for, see :func:`attended_queries`."""
        assert self.teacher.decoded is not None and self.teacher.scores is not None
        return attended_queries(
            self.teacher.decoded, self.teacher.scores, self.student.targets.boxes
        )


class DistillationLoss(nn.Module):
    """A term of the student's training, below ``distillation.<key>`` in the config.

    Attributes:
        key: its name in the config; the loss is reported as ``loss_<key>``.
        reach: how far the teacher has to go for it.
        compares_features: whether the student's projected features are compared as they are, so
            that both networks must normalise them alike.
    """

    key: ClassVar[str]
    reach: Reach | property
    compares_features = False

    def extra_queries(
        self,
        knowledge: Knowledge,
        *,
        reference_dim: int,
        generators: Sequence[torch.Generator | None],
    ) -> ExtraQueries | None:
        """Queries for the student to decode beside its own; None for none.

        Args:
            knowledge: what the teacher knows of the batch.
            reference_dim: 2 or 4, as the references of the student's own queries.
            generators: one a frame; None draws from torch's global state.
        """
        return None

    def forward(self, pairing: Pairing) -> Float[Tensor, ""]:
        """The weighted loss."""
        raise NotImplementedError
