"""Detection loss: matched class, L1 and GIoU terms after every decoder layer (DETR, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from v2idetr.modeling.classification import Classification, FocalClassification
from v2idetr.modeling.interface import Decoded, Proposals
from v2idetr.modeling.matcher import HungarianMatcher


@dataclass
class Targets:
    """The lesions of a batch.

    Attributes:
        labels: 0-based classes, one tensor (M,) an image.
        boxes: cxcywh in [0, 1] of the unpadded picture, one tensor (M, 4) an image.
    """

    labels: list[Int[Tensor, " _"]]
    boxes: list[Float[Tensor, "_ 4"]]

    @property
    def num_boxes(self) -> int:
        return sum(len(labels) for labels in self.labels)


class SetCriterion(nn.Module):
    """Detection loss of all decoder layers, each matched anew.

    Args:
        classification: what the logits mean, to the matcher and to ``Detector`` too.
        matcher: assigns queries to lesions.
        class_weight, l1_weight, giou_weight: of the three terms.
    """

    def __init__(
        self,
        *,
        classification: Classification,
        matcher: HungarianMatcher,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ) -> None:
        super().__init__()
        self.classification, self.matcher = classification, matcher
        self.weights = {"class": class_weight, "l1": l1_weight, "giou": giou_weight}

    def forward(
        self,
        decoded: Decoded,
        targets: Targets,
        *,
        proposals: Proposals | None = None,
        num_boxes: float | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is the detection loss.

        Args:
            decoded: the detector's own queries after every layer.
            targets: the lesions.
            proposals: of a two-stage encoder, trained to tell lesion from background.
            num_boxes: what box sums are divided by; by default the mean number of lesions a
                process has in this batch, at least 1 over all processes.
        """
        if num_boxes is None:
            num_boxes = mean_over_processes(targets.num_boxes, decoded.logits.device)
        losses: dict[str, Tensor] = {}
        last = len(decoded.logits) - 1
        for layer, (logits, boxes) in enumerate(zip(decoded.logits, decoded.boxes, strict=True)):
            suffix = "" if layer == last else f"_{layer}"
            terms = self._losses(logits, boxes, targets, num_boxes)
            losses.update({f"loss_{name}{suffix}": term for name, term in terms.items()})
        if proposals is not None:
            # Of a two-stage detector, whose K logits no other classification takes.
            assert isinstance(self.classification, FocalClassification)
            anything = Targets([torch.zeros_like(x) for x in targets.labels], targets.boxes)
            logits = proposals.logits.masked_fill(~proposals.valid.unsqueeze(-1), -20.0)
            terms = self._losses(logits, proposals.boxes, anything, num_boxes)
            losses.update({f"loss_{name}_encoder": term for name, term in terms.items()})
        return losses

    def _losses(
        self, logits: Tensor, boxes: Tensor, targets: Targets, num_boxes: float
    ) -> dict[str, Tensor]:
        logits, boxes, device = logits.float(), boxes.float(), logits.device
        pairs = self.matcher(logits, boxes, targets.labels, targets.boxes, self.classification)
        first = accumulate((len(boxes) for boxes in targets.boxes), initial=0)
        triples = [
            torch.stack([torch.full_like(q, b), q, m + before])
            for b, ((q, m), before) in enumerate(zip(pairs, first, strict=False))
        ]
        image, query, lesion = torch.cat(triples, 1).to(device)  # at once: a GPU waits for each
        matched = torch.cat(targets.boxes)[lesion].float()
        label = torch.full(logits.shape[:2], -1, device=device)
        label[image, query] = torch.cat(targets.labels)[lesion]
        predicted = boxes[image, query]
        distance = generalized_box_iou_loss(
            box_convert(predicted, "cxcywh", "xyxy"),
            box_convert(matched, "cxcywh", "xyxy"),
            reduction="sum",
        )
        terms = {
            "class": self.classification.loss(logits, label, num_boxes),
            "l1": F.l1_loss(predicted, matched, reduction="sum") / num_boxes,
            "giou": distance / num_boxes,
        }
        return {name: self.weights[name] * term for name, term in terms.items()}


def mean_over_processes(count: int | float, device: torch.device) -> float:
    """A count summed over all processes, at least 1, divided by their number.

    Divided so, the average of the processes' gradients is the gradient of the whole batch.
    """
    world = 1
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        total = torch.tensor(float(count), device=device)
        dist.all_reduce(total)
        count, world = float(total), dist.get_world_size()
    return max(float(count), 1.0) / world
