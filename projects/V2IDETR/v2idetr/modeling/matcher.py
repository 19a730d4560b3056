"""Bipartite matching of predictions to lesions (DETR, equation 1)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

from v2idetr.modeling.classification import Classification


class HungarianMatcher(nn.Module):
    """Cheapest one-to-one assignment between an image's queries and its lesions.

    Args:
        class_weight: weight of the classification's cost.
        l1_weight: weight of the L1 distance between cxcywh boxes in [0, 1].
        giou_weight: weight of minus the generalised IoU.
    """

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        super().__init__()
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight

    @torch.no_grad()
    def forward(
        self,
        logits: Float[Tensor, "B N logits"],
        boxes: Float[Tensor, "B N 4"],
        labels: list[Int[Tensor, " _"]],
        targets: list[Float[Tensor, "_ 4"]],
        classification: Classification,
    ) -> list[tuple[Tensor, Tensor]]:
        """Indices (query, lesion) of the matched pairs of every image, min(N, M) each.

        Args:
            logits, boxes: predictions; boxes are cxcywh in [0, 1].
            labels, targets: 0-based classes and cxcywh boxes of every image's lesions.
            classification: meaning of the logits, the same as in the criterion.

        Raises:
            FloatingPointError: a cost is not finite; names images and terms.
        """
        class_cost = classification.cost(logits.float().flatten(0, 1), torch.cat(labels))
        return self.assign(class_cost, boxes, targets)

    @torch.no_grad()
    def assign(
        self,
        class_cost: Float[Tensor, "BN total"],
        boxes: Float[Tensor, "B N 4"],
        targets: list[Float[Tensor, "_ 4"]],
    ) -> list[tuple[Tensor, Tensor]]:
        """Matched pairs for any class cost.

        Args:
            class_cost: unweighted cost of every query for every target of the batch.
            boxes, targets: cxcywh in [0, 1].
        """
        sizes = [len(target) for target in targets]
        cost = self._cost(class_cost, boxes.float(), torch.cat(targets))
        pairs = []
        for image, own in enumerate(cost.cpu().split(sizes, dim=-1)):
            query, lesion = linear_sum_assignment(own[image].numpy())
            pairs.append((torch.as_tensor(query), torch.as_tensor(lesion)))
        return pairs

    def _cost(
        self, class_cost: Tensor, boxes: Tensor, target: Tensor
    ) -> Float[Tensor, "B N total"]:
        """Cost of every query of every image for every lesion of the batch."""
        shape = (*boxes.shape[:2], len(target))
        boxes, target = boxes.flatten(0, 1), target.float()
        overlap = generalized_box_iou(
            box_convert(boxes, "cxcywh", "xyxy"), box_convert(target, "cxcywh", "xyxy")
        )
        terms = {
            "class": self.class_weight * class_cost,
            "L1": self.l1_weight * torch.cdist(boxes, target, p=1),
            "GIoU": -self.giou_weight * overlap,
        }
        cost = sum(terms.values(), torch.zeros((), device=boxes.device)).view(shape)
        if not torch.isfinite(cost).all():
            images = (~torch.isfinite(cost)).flatten(1).any(1).nonzero().flatten().tolist()
            bad = [name for name, term in terms.items() if not torch.isfinite(term).all()]
            raise FloatingPointError(
                f"the matching costs ({', '.join(bad)}) of images {images} of the batch are not "
                "finite, because the predictions are not"
            )
        return cost
