"""Forward pass of a detection transformer in training: its output and its interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from v2idetr.modeling.classification import Classification
from v2idetr.modeling.criterion import SetCriterion, Targets
from v2idetr.modeling.extra_queries import ExtraQueries
from v2idetr.modeling.interface import Decoded, DetectorNetwork, Images, Memory, Queries
from v2idetr.modeling.trainable import Sample, TrainableDetector


@dataclass
class TrainingOutput:
    """Output of the forward pass for a batch of frames.

    Attributes:
        losses: weighted detection losses by name.
        images: normalised images.
        targets: lesions.
        memory: encoder output.
        queries: the detector's own queries.
        decoded: the decoded own queries.
        extra: the decoded sets of requested extra queries, in their order.
        classification: meaning of the logits.
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
    """A possible teacher or student: ``meta_arch.Detector``."""

    if TYPE_CHECKING:  # submodules, which isinstance does not find since Python 3.12
        net: DetectorNetwork
        criterion: SetCriterion

    def frames(self, batched_inputs: list[Sample]) -> list[Sample]:
        """The frames that are input and supervision."""
        ...

    def current(self, batched_inputs: list[Sample]) -> Tensor | None:
        """Index of every sample's current frame in ``frames``; None for all frames."""
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
        """Forward pass in training."""
        ...
