"""Detection loss: class, L1 and GIoU terms of every decoder layer (DETR, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss

from v2idetr.modeling.classification import Classification
from v2idetr.modeling.interface import Decoded, Proposals
from v2idetr.modeling.matcher import HungarianMatcher


@dataclass
class Targets:
    """The lesions of a batch.

    Attributes:
        labels: 0-based classes, one tensor (M,) per image.
        boxes: cxcywh in [0, 1] of the unpadded image, one tensor (M, 4) per image.
    """

    labels: list[Int[Tensor, " _"]]
    boxes: list[Float[Tensor, "_ 4"]]

    @property
    def num_boxes(self) -> int:
        return sum(len(labels) for labels in self.labels)


Pairs = list[tuple[Tensor, Tensor]]


@dataclass
class LayerOutput:
    """Outputs of one decoder layer in single precision; see ``Decoded``."""

    logits: Float[Tensor, "B N logits"]
    boxes: Float[Tensor, "B N 4"]
    extras: dict[str, Tensor]


@dataclass
class Matches:
    """The m matched pairs of query and lesion of a batch.

    Attributes:
        image, query: indices of each pair.
        label: class of every query's lesion; -1 for none.
        boxes: cxcywh of each pair's lesion in [0, 1].
    """

    image: Int[Tensor, " m"]
    query: Int[Tensor, " m"]
    label: Int[Tensor, "B N"]
    boxes: Float[Tensor, "m 4"]


class SetCriterion(nn.Module):
    """Detection loss of all decoder layers, each with its own matching.

    Args:
        classification: meaning of the logits, also for matcher and ``Detector``.
        matcher: assignment of queries to lesions.
        class_weight, l1_weight, giou_weight: weights of the three terms.
        terms: further terms, (LayerOutput, Matches, num_boxes) -> weighted losses by name.
    """

    def __init__(
        self,
        *,
        classification: Classification,
        matcher: HungarianMatcher,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        terms: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.classification, self.matcher = classification, matcher
        self.weights = {"class": class_weight, "l1": l1_weight, "giou": giou_weight}
        self.terms = nn.ModuleList(terms)

    def forward(
        self,
        decoded: Decoded,
        targets: Targets,
        *,
        proposals: Proposals | None = None,
        num_boxes: float | None = None,
        pairs: Pairs | None = None,
        groups: int = 1,
        name: str = "",
    ) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is the detection loss.

        Args:
            decoded: queries after every layer.
            targets: the lesions.
            proposals: proposals of a two-stage encoder, trained as lesion against background.
            num_boxes: divisor of the box losses; by default the mean number of lesions per process
                in this batch, at least 1 over all processes.
            pairs: known pairs (query, lesion) of every image, as for denoising queries; by default
                each layer is matched.
            groups: number of copies of every lesion among the pairs, a factor of ``num_boxes``.
            name: suffix of the losses' names, for queries that are not the detector's own.
        """
        if num_boxes is None:
            num_boxes = mean_over_processes(targets.num_boxes, decoded.logits.device)
        num_boxes *= groups
        losses: dict[str, Tensor] = {}
        last = len(decoded.logits) - 1
        for layer, (logits, boxes) in enumerate(zip(decoded.logits, decoded.boxes, strict=True)):
            extras = {key: extra[layer].float() for key, extra in decoded.extras.items()}
            output = LayerOutput(logits.float(), boxes.float(), extras)
            suffix = f"_{name}" if name else ""
            suffix += "" if layer == last else f"_{layer}"
            matches = self._matches(output, targets, pairs)
            terms = self._losses(output, matches, num_boxes)
            for term in self.terms:
                terms |= term(output, matches, num_boxes)
            losses.update({f"loss_{key}{suffix}": value for key, value in terms.items()})
        if proposals is not None:
            anything = Targets([torch.zeros_like(x) for x in targets.labels], targets.boxes)
            logits = proposals.logits.masked_fill(~proposals.valid.unsqueeze(-1), -20.0)
            output = LayerOutput(logits.float(), proposals.boxes.float(), {})
            matches = self._matches(output, anything, None)
            terms = self._losses(output, matches, num_boxes)
            losses.update({f"loss_{key}_encoder": value for key, value in terms.items()})
        return losses

    def _matches(self, output: LayerOutput, targets: Targets, pairs: Pairs | None) -> Matches:
        device = output.logits.device
        found: Pairs = pairs or self.matcher(
            output.logits, output.boxes, targets.labels, targets.boxes, self.classification
        )
        first = accumulate((len(boxes) for boxes in targets.boxes), initial=0)
        triples = [
            torch.stack([torch.full_like(q, b), q, m + before])
            for b, ((q, m), before) in enumerate(zip(found, first, strict=False))
        ]
        image, query, lesion = torch.cat(triples, 1).to(
            device
        )  # one copy, because each synchronises with a GPU
        boxes = torch.cat(targets.boxes)[lesion].float()
        label = torch.full(output.logits.shape[:2], -1, device=device)
        label[image, query] = torch.cat(targets.labels)[lesion]
        return Matches(image, query, label, boxes)

    def _losses(self, output: LayerOutput, matches: Matches, num_boxes: float) -> dict[str, Tensor]:
        predicted = output.boxes[matches.image, matches.query]
        corners, target = (box_convert(b, "cxcywh", "xyxy") for b in (predicted, matches.boxes))
        distance = generalized_box_iou_loss(corners, target, reduction="sum")
        quality = None
        if self.classification.uses_quality:
            quality = torch.zeros(matches.label.shape, device=predicted.device)
            quality[matches.image, matches.query] = box_iou(corners.detach(), target).diagonal()
        terms = {
            "class": self.classification.loss(output.logits, matches.label, num_boxes, quality),
            "l1": F.l1_loss(predicted, matches.boxes, reduction="sum") / num_boxes,
            "giou": distance / num_boxes,
        }
        return {name: self.weights[name] * term for name, term in terms.items()}


def mean_over_processes(count: int | float, device: torch.device) -> float:
    """Sum of a count over all processes, at least 1, divided by their number.

    With this divisor, the mean of the processes' gradients is the gradient of the whole batch.
    """
    world = 1
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        total = torch.tensor(float(count), device=device)
        dist.all_reduce(total)
        count, world = float(total), dist.get_world_size()
    return max(float(count), 1.0) / world
