"""Interface of detectors for engine and evaluation."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

Sample = dict[str, Any]  # of one frame and its clip, see ``data/clip_mapper.py``


@runtime_checkable
class Trainable(Protocol):
    """A torch module for training in a stage.

    In training, ``model(batch, num_boxes=...)``, with further arguments of the stage's hooks, gives
    weighted losses by name, each a scalar. ``num_boxes`` is the divisor of the box losses, see
    ``SetCriterion``.
    """

    training: bool

    def __call__(self, batched_inputs: list[Sample], **extra: Any) -> Any: ...

    def count_frames(self, batched_inputs: list[Sample]) -> int:
        """Number of labelled frames of a batch."""
        ...

    def count_boxes(self, batched_inputs: list[Sample]) -> int:
        """Number of lesions in the labelled frames of a batch; 0 for training without boxes."""
        ...


@runtime_checkable
class TrainableDetector(Trainable, Protocol):
    """A detector for training, evaluation and tables.

    In evaluation it gives ``[{"instances": Instances}]``, one per sample, with pred_boxes in pixels
    of the original frame, scores and pred_classes.

    Optional members: ``reference_sampler`` chooses the frames of its clips, see
    ``data/reference_sampler.py``; ``evaluation_sampler`` chooses others in evaluation, also in
    another number. ``order = "video"`` requests whole videos, frame by frame, in evaluation, with a
    call of ``reset()`` before each video.

    Attributes:
        num_frames: number of input frames per clip, T; 1 for the current frame alone.
        class_names: class names by index.
    """

    num_frames: int
    class_names: list[str]
