"""Base class and input of the distillation losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
    """Outputs of student and teacher for one batch of frames, the input of distillation losses.

    Attributes:
        student: the student's output in training.
        teacher: the teacher's output for the same frames.
        extra: extra queries of losses, and the student's decoder outputs for them, by loss key.
    """

    student: TrainingOutput
    teacher: Knowledge
    extra: dict[str, tuple[ExtraQueries, Decoded]] = field(default_factory=dict)

    @cached_property
    def boxes_xyxy_px(self) -> list[Float[Tensor, "_ 4"]]:
        """Lesions of every frame in pixels of the student's images."""
        return [
            box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([w, h, w, h])
            for boxes, (h, w) in zip(
                self.student.targets.boxes, self.student.images.sizes, strict=True
            )
        ]

    @cached_property
    def attended(self) -> Float[Tensor, "L B d"]:
        """Sum of the teacher's query features, see :func:`attended_queries`."""
        assert self.teacher.decoded is not None and self.teacher.scores is not None
        return attended_queries(
            self.teacher.decoded, self.teacher.scores, self.student.targets.boxes
        )


class DistillationLoss(nn.Module):
    """A loss term of the student, ``distillation.<key>`` in the config.

    Attributes:
        key: name in the config, and of the loss as ``loss_<key>``; by default the paper's.
        reach: last required step of the teacher.
        compares_features: whether the networks' projected features are compared directly, so that
            both networks need the same normalisation.
    """

    key: str
    reach: Reach | property
    compares_features = False

    def extra_queries(
        self,
        knowledge: Knowledge,
        *,
        reference_dim: int,
        generators: Sequence[torch.Generator | None],
    ) -> ExtraQueries | None:
        """Extra queries for the student's decoder; None for none.

        Args:
            knowledge: the teacher's output for the batch.
            reference_dim: dimension of the student's references, 2 or 4.
            generators: one generator per frame; None for torch's global one.
        """
        return None

    def forward(self, pairing: Pairing) -> Float[Tensor, ""]:
        """The weighted loss."""
        raise NotImplementedError

    def measures(self, pairing: Pairing) -> dict[str, Float[Tensor, ""]]:
        """Further numbers for the log, by name; called without gradients. By default none."""
        return {}
