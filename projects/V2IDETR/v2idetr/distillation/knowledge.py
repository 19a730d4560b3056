"""What the teacher knows about a batch of clips."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from v2idetr.modeling.interface import Decoded, Features, Queries


class Reach(IntEnum):
    """How far the teacher goes with a batch; each step includes those before it."""

    FEATURES = 0  # the temporal module's output for the current frames
    MEMORY = 1  # the encoder's output for the current frames
    DECODED = 2  # the decoded queries of the current frames
    CLIPS = 3  # the decoded queries of all frames


@dataclass
class Knowledge:
    """The frozen teacher's view of a batch of C clips of T frames; nothing in it has a gradient.

    What lies beyond the reach that was asked for is None.

    Attributes:
        features: of the current frames (C), after the temporal module: Y in equation 3.
        queries: decoder inputs Q of all frames (C*T), clip-major.
        hidden: decoded features D of these queries after every layer.
        num_frames: T.
        boxes: that the teacher predicts for these queries after its last layer, cxcywh in [0, 1].
        encoded: the encoder's output for the current frames, as maps.
        decoded: what became of the queries of the current frames.
        scores: probability of each class for these.
    """

    features: Features
    queries: Queries | None
    hidden: Float[Tensor, "L CT N d"] | None
    num_frames: int
    boxes: Float[Tensor, "CT N 4"] | None = None
    encoded: Features | None = None
    decoded: Decoded | None = None
    scores: Float[Tensor, "L C N K"] | None = None


@torch.no_grad()
def teacher_knowledge(
    teacher: Any, batched_inputs: list[dict[str, Any]], *, reach: Reach = Reach.CLIPS
) -> Knowledge:
    """Run the teacher on whole clips, as far as is needed.

    Args:
        teacher: a ``ClipDetector`` (or any detector whose ``frames``, ``images`` and ``current``
            give clips), in evaluation mode.
        batched_inputs: samples with their clips, as in training.
        reach: see ``DistilledStudent.reach``. Below ``CLIPS`` only the current frames are encoded.

    Raises:
        ValueError: the teacher is in training mode, or a clip has another number of frames.
    """
    if teacher.training:
        raise ValueError("The teacher must be in evaluation mode: call teacher.eval() first.")
    images = teacher.images(teacher.frames(batched_inputs))
    features = teacher.net.extract(images)
    current, T = teacher.current(batched_inputs), images.num_frames
    knowledge = Knowledge(features.select(current), None, None, T)
    if reach < Reach.MEMORY:
        return knowledge
    if reach < Reach.CLIPS:
        features, current = knowledge.features, torch.arange(len(current), device=current.device)
    memory = teacher.net.encode(features)
    knowledge.encoded = memory.encoded().select(current)
    if reach < Reach.DECODED:
        return knowledge
    queries = teacher.net.queries(memory).detach()
    decoded = teacher.net.decode(memory, queries)
    own = knowledge.decoded = decoded.select(current)
    knowledge.scores = teacher.criterion.classification.scores(own.logits)
    if reach == Reach.CLIPS:
        knowledge.queries, knowledge.hidden = queries, decoded.hidden
        knowledge.boxes = decoded.boxes[-1]
    return knowledge
