"""Losses, matching costs and scores of class logits: focal (Deformable DETR) or softmax (DETR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

Detections = tuple[Float[Tensor, "B k"], Int[Tensor, "B k"], Int[Tensor, "B k"]]


@runtime_checkable
class Classification(Protocol):
    """Meaning of class logits, shared by matcher, criterion and post-processing.

    Attributes:
        uses_quality: whether the loss uses the boxes' IoU.
    """

    uses_quality: ClassVar[bool]

    def num_logits(self, num_classes: int) -> int:
        """Number of logits per query for K classes."""
        ...

    def cost(
        self, logits: Float[Tensor, "Q logits"], label: Int[Tensor, " M"]
    ) -> Float[Tensor, "Q M"]:
        """Unweighted cost of matching each query with a lesion of each label."""
        ...

    def loss(
        self,
        logits: Float[Tensor, "B N logits"],
        label: Int[Tensor, "B N"],
        num_boxes: float,
        quality: Float[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, ""]:
        """The unweighted loss.

        Args:
            logits: logits of all queries.
            label: label of each query's matched lesion; -1 for none.
            num_boxes: mean number of lesions in a batch of this size, see ``SetCriterion``.
            quality: IoU of each query's box with that of its lesion, 0 without one; None unless
                ``uses_quality``.
        """
        ...

    def scores(self, logits: Float[Tensor, "*Q logits"]) -> Float[Tensor, "*Q K"]:
        """Probability of each class, in single precision."""
        ...

    def detections(self, logits: Float[Tensor, "B N logits"], topk: int) -> Detections:
        """Scores in [0, 1], best first, classes and queries of the best detections, k <= topk."""
        ...


@dataclass(frozen=True, kw_only=True)
class FocalClassification:
    """One sigmoid per class (Lin et al., 2017; Deformable DETR). A query may have several classes.

    Attributes:
        alpha, gamma: parameters of the focal loss and of the matching cost derived from it.
    """

    uses_quality: ClassVar[bool] = False

    alpha: float = 0.25
    gamma: float = 2.0

    def num_logits(self, num_classes: int) -> int:
        """K, because background is low scores for every class."""
        return num_classes

    def cost(self, logits: Float[Tensor, "Q K"], label: Int[Tensor, " M"]) -> Float[Tensor, "Q M"]:
        """The focal loss of a positive minus that of a negative."""
        p = logits.sigmoid()[:, label]
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return positive - negative

    def loss(
        self,
        logits: Float[Tensor, "B N K"],
        label: Int[Tensor, "B N"],
        num_boxes: float,
        quality: Float[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, ""]:
        """Sum over queries and classes, divided by the number of lesions."""
        K = logits.shape[-1]
        onehot = F.one_hot(label.where(label >= 0, K), K + 1)[..., :K].to(logits.dtype)
        focal = sigmoid_focal_loss(logits, onehot, alpha=self.alpha, gamma=self.gamma)
        return focal.sum() / num_boxes

    def scores(self, logits: Float[Tensor, "*Q K"]) -> Float[Tensor, "*Q K"]:
        """Their sum need not be one."""
        return logits.float().sigmoid()

    def detections(self, logits: Float[Tensor, "B N K"], topk: int) -> Detections:
        """The best pairs of query and class, k = min(topk, N * K)."""
        K = logits.shape[-1]
        scores = self.scores(logits).flatten(1)
        best, index = scores.topk(min(topk, scores.shape[1]), dim=1)
        return best, index % K, index // K


@dataclass(frozen=True, kw_only=True)
class SoftmaxClassification:
    """One softmax over the classes and "no object", the last logit (DETR, equations 1 and 2).

    Attributes:
        eos_coef: weight of "no object" in the loss. At DETR's 0.1 one lesion among 100 queries
            has 9 % of the weight, seven lesions 43 %.
    """

    uses_quality: ClassVar[bool] = False

    eos_coef: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.eos_coef <= 1:
            raise ValueError(
                f"criterion.classification.eos_coef must be above 0 and at most 1, got "
                f'{self.eos_coef}: without it no query learns to predict "no object".'
            )

    def num_logits(self, num_classes: int) -> int:
        """K + 1, the last for "no object"."""
        return num_classes + 1

    def cost(
        self, logits: Float[Tensor, "Q logits"], label: Int[Tensor, " M"]
    ) -> Float[Tensor, "Q M"]:
        """Minus the probability of the label."""
        return -logits.softmax(-1)[:, label]

    def loss(
        self,
        logits: Float[Tensor, "B N logits"],
        label: Int[Tensor, "B N"],
        num_boxes: float,
        quality: Float[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, ""]:
        """Weighted mean of the cross entropy over all queries.

        The sum of the weights follows from ``num_boxes``, not from ``label``, so that micro-batches
        and processes give the mean over the whole batch. Like ``num_boxes``, it
        counts one lesion in a batch without any.
        """
        no_object = logits.shape[-1] - 1
        weight = logits.new_ones(no_object + 1)
        weight[no_object] = self.eos_coef
        target = label.where(label >= 0, no_object)
        total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight, reduction="sum")
        return total / (num_boxes + self.eos_coef * (label.numel() - num_boxes))

    def scores(self, logits: Float[Tensor, "*Q logits"]) -> Float[Tensor, "*Q K"]:
        """Without the probability of "no object", so that they sum to less than one."""
        return logits.float().softmax(-1)[..., :-1]

    def detections(self, logits: Float[Tensor, "B N logits"], topk: int) -> Detections:
        """The best queries, each with its most likely class, k = min(topk, N)."""
        scores, classes = self.scores(logits).max(-1)
        best, query = scores.topk(min(topk, scores.shape[1]), dim=1)
        return best, classes.gather(1, query), query
