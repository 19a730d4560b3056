"""Query Distillation, row 8 of Table IV (V2I-DETR, section II-D), the baseline of CQD."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from v2idetr.distillation.distances import (
    Layers,
    compared_layers,
    cosine_distance,
    one_of,
    width_projection,
)
from v2idetr.distillation.knowledge import Reach
from v2idetr.distillation.loss import DistillationLoss, Pairing
from v2idetr.modeling.interface import Decoded, select_queries
from v2idetr.modeling.matcher import HungarianMatcher

Matching = Literal["index", "hungarian"]


class QueryDistillation(DistillationLoss):
    """QD: cosine distance between decoded queries of student and teacher for the same frame.

    ``L = mean_i (1 - cos(D_s[i], D_t[sigma(i)]))``, without additional queries.

    Args:
        weight: weight of the loss.
        matching: sigma: "index": the query of the same index ("directly", in the paper's words);
            "hungarian": the cheapest assignment of the two sets of predictions by boxes and class
            scores, for each layer. Query indices of networks with different initialisations do not
            correspond.
        layers: compared decoder layers: "last", or "all" for their mean.
        student_dim, teacher_dim: widths; a learnt projection maps one to the other if they differ.
    """

    key = "qd"
    reach = Reach.DECODED

    def __init__(
        self,
        *,
        weight: float = 5.0,
        matching: Matching = "index",
        layers: Layers = "last",
        student_dim: int = 256,
        teacher_dim: int = 256,
    ) -> None:
        super().__init__()
        one_of("qd.matching", matching, Matching)
        one_of("qd.layers", layers, Layers)
        self.weight = weight
        self.matching: Matching = matching
        self.layers: Layers = layers
        self.matcher = HungarianMatcher()
        self.hidden_out = width_projection(student_dim, teacher_dim)

    def forward(self, pairing: Pairing) -> Float[Tensor, ""]:
        """The weighted loss between the decoded queries."""
        own, teacher = pairing.student, pairing.teacher
        assert teacher.decoded is not None and teacher.scores is not None
        return self.compare((own.decoded, own.scores), (teacher.decoded, teacher.scores))

    def compare(
        self,
        student: tuple[Decoded, Float[Tensor, "Ls B Ns K"]],
        teacher: tuple[Decoded, Float[Tensor, "Lt B Nt K"]],
    ) -> Float[Tensor, ""]:
        """The weighted loss.

        Args:
            student, teacher: decoded queries of the same images after every layer, and their class
                scores.
        """
        hidden, target = student[0].hidden, teacher[0].hidden
        losses = []
        layers = compared_layers("qd", self.layers, len(hidden), len(target))
        for ours, theirs in zip(*layers, strict=True):
            query, match = self._pairs(_layer(student, ours), _layer(teacher, theirs))
            projected = self.hidden_out(select_queries(hidden[ours], query))
            losses.append(cosine_distance(projected, select_queries(target[theirs], match)))
        return self.weight * torch.stack(losses).mean()

    @torch.no_grad()
    def _pairs(
        self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]
    ) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B n"]]:
        """Indices of the compared queries of student and teacher."""
        (boxes, scores), (target_boxes, target_scores) = student, teacher
        B, N = boxes.shape[:2]
        if self.matching == "index":
            if target_boxes.shape[1] != N:
                raise ValueError(
                    f"distillation.qd.matching=index pairs queries by their index, but the "
                    f"student has {N} and the teacher {target_boxes.shape[1]}: use "
                    "matching=hungarian, or set both models to the same num_queries."
                )
            index = torch.arange(N, device=boxes.device).expand(B, -1)
            return index, index
        class_cost = torch.cdist(scores.flatten(0, 1), target_scores.flatten(0, 1), p=1)
        pairs = self.matcher.assign(class_cost, boxes, list(target_boxes))
        query, match = (torch.stack(side).to(boxes.device) for side in zip(*pairs, strict=True))
        return query, match


def _layer(predictions: tuple[Decoded, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """Boxes and scores of one layer."""
    return predictions[0].boxes[layer], predictions[1][layer]
