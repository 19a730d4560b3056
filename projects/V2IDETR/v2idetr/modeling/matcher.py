"""Bipartite matching of predictions to lesions (DETR, equation 2; Deformable DETR's focal cost)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou


class HungarianMatcher(nn.Module):
    """Cheapest one-to-one assignment between an image's queries and its lesions.

    Args:
        class_weight: of the focal classification cost.
        l1_weight: of the L1 distance between cxcywh boxes in [0, 1].
        giou_weight: of minus the generalised IoU.
        alpha, gamma: of the focal cost, as in the focal loss.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        self.alpha, self.gamma = alpha, gamma

    @torch.no_grad()
    def forward(
        self,
        logits: Float[Tensor, "B N K"],
        boxes: Float[Tensor, "B N 4"],
        labels: list[Int[Tensor, " _"]],
        targets: list[Float[Tensor, "_ 4"]],
    ) -> list[tuple[Tensor, Tensor]]:
        """Indices (query, lesion) of the matched pairs of every image, min(N, M) each.

        Args:
            logits, boxes: predictions; boxes are cxcywh in [0, 1].
            labels, targets: 0-based classes and cxcywh boxes of every image's lesions.

        Raises:
            FloatingPointError: a cost is not finite; says in which image and term.
        """
        sizes = [len(label) for label in labels]
        cost = self._cost(logits.float(), boxes.float(), torch.cat(labels), torch.cat(targets))
        pairs = []
        for image, own in enumerate(cost.cpu().split(sizes, dim=-1)):
            query, lesion = linear_sum_assignment(own[image].numpy())
            pairs.append((torch.as_tensor(query), torch.as_tensor(lesion)))
        return pairs

    def _cost(
        self, logits: Tensor, boxes: Tensor, label: Tensor, target: Tensor
    ) -> Float[Tensor, "B N total"]:
        """Cost of every query of every image against every lesion of the batch."""
        shape = (*logits.shape[:2], len(label))
        p = logits.flatten(0, 1).sigmoid()[:, label]
        boxes, target = boxes.flatten(0, 1), target.float()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        overlap = generalized_box_iou(
            box_convert(boxes, "cxcywh", "xyxy"), box_convert(target, "cxcywh", "xyxy")
        )
        terms = {
            "class": self.class_weight * (positive - negative),
            "L1": self.l1_weight * torch.cdist(boxes, target, p=1),
            "GIoU": -self.giou_weight * overlap,
        }
        cost = sum(terms.values(), torch.zeros((), device=logits.device)).view(shape)
        if not torch.isfinite(cost).all():
            images = (~torch.isfinite(cost)).flatten(1).any(1).nonzero().flatten().tolist()
            bad = [name for name, term in terms.items() if not torch.isfinite(term).all()]
            raise FloatingPointError(
                f"Matching costs {bad} of images {images} of the batch are not finite, because "
                "the predictions are not. Lower optimizer.lr, or set train.amp=off."
            )
        return cost
