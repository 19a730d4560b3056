"""The training forward of a detection transformer: what it gives, and who can do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from v2idetr.modeling.classification import Classification
from v2idetr.modeling.criterion import SetCriterion, Targets
from v2idetr.modeling.extra_queries import ExtraQueries
from v2idetr.modeling.interface import Decoded, DetectorNetwork, Images, Memory, Queries
from v2idetr.modeling.trainable import Sample, TrainableDetector


@dataclass
class TrainingOutput:
    """What a training step computes of a batch of frames.

    Attributes:
        losses: of detection, weighted, by name.
        images: normalised.
        targets: the lesions.
        memory: the encoder's output.
        queries: the detector's own.
        decoded: these, decoded.
        extra: the sets of extra queries that were asked for, decoded, in their order.
        classification: what the logits mean.
    """

    losses: dict[str, Tensor]
    images: Images
    targets: Targets
    memory: Memory
    queries: Queries
    decoded: Decoded
    extra: list[Decoded]
    classification: Classification

    @cached_property
    def scores(self) -> Float[Tensor, "L B N K"]:
        """Probability of each class for the decoded queries."""
        return self.classification.scores(self.decoded.logits)


@runtime_checkable
class TransformerDetector(TrainableDetector, Protocol):
    """A detector that can teach and be taught: ``meta_arch.Detector``."""

    net: DetectorNetwork
    criterion: SetCriterion

    def frames(self, batched_inputs: list[Sample]) -> list[Sample]:
        """The frames that it looks at, and is supervised on."""
        ...

    def current(self, batched_inputs: list[Sample]) -> Tensor | None:
        """Index of every sample's current frame among its frames; None for all of them."""
        ...

    def images(self, frames: list[Sample]) -> Images:
        """Normalised images in one tensor."""
        ...

    def losses(
        self,
        frames: list[Sample],
        extra: Sequence[ExtraQueries] = (),
        num_boxes: float | None = None,
    ) -> TrainingOutput:
        """The training forward."""
        ...
