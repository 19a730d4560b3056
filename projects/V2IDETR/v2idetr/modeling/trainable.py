"""What engine and evaluation ask of a detector, whatever is inside it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

Sample = dict[str, Any]  # of one frame and its clip, see ``data/clip_mapper.py``


@runtime_checkable
class Trainable(Protocol):
    """A torch module that a stage trains.

    Called in training, it gives weighted losses by name, each a scalar: ``model(batch,
    num_boxes=...)``, with what the stage's hooks add. ``num_boxes`` is what sums over boxes are
    divided by, see ``SetCriterion``.
    """

    training: bool

    def __call__(self, batched_inputs: list[Sample], **extra: Any) -> Any: ...

    def count_frames(self, batched_inputs: list[Sample]) -> int:
        """How many labelled frames supervise a batch."""
        ...

    def count_boxes(self, batched_inputs: list[Sample]) -> int:
        """How many lesions supervise a batch; 0 for what is trained without boxes."""
        ...


@runtime_checkable
class TrainableDetector(Trainable, Protocol):
    """A detector that can be trained, evaluated, saved and put into tables.

    In evaluation it gives ``[{"instances": Instances}]``, one a sample, with pred_boxes in pixels
    of the original frame, scores and pred_classes.

    It may have three further members. ``reference_sampler`` chooses the frames of its clips, see
    ``data/reference_sampler.py``. ``order = "video"`` asks for whole videos, frame after frame, in
    evaluation; ``reset()`` is then called before each of them.

    Attributes:
        num_frames: T, frames of a clip that it looks at; 1 for the current frame alone.
        class_names: by class index.
    """

    num_frames: int
    class_names: list[str]
