"""What the teacher knows about a batch of clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from v2idetr.modeling.interface import Features, Queries


@dataclass
class Knowledge:
    """The frozen teacher's view of a batch of C clips of T frames; nothing in it has a gradient.

    Attributes:
        features: of the current frames (C), after the temporal module: Y in equation 3.
        queries: decoder inputs Q of all frames (C*T), clip-major; None when not asked for.
        hidden: decoded features D of these queries after every layer.
        current: index of the current frame in its clip.
        num_frames: T.
    """

    features: Features
    queries: Queries | None
    hidden: Float[Tensor, "L CT N d"] | None
    current: Int[Tensor, " C"]
    num_frames: int


@torch.no_grad()
def teacher_knowledge(
    teacher: Any, batched_inputs: list[dict[str, Any]], *, decode: bool = True
) -> Knowledge:
    """Run the teacher on whole clips.

    Args:
        teacher: a ``ClipDetector`` (or any detector whose ``frames``, ``images`` and ``current``
            give clips), in evaluation mode.
        batched_inputs: samples with their clips, as in training.
        decode: decode the queries of all frames; not needed for feature distillation alone.
    """
    if teacher.training:
        raise ValueError("The teacher must be in evaluation mode: call teacher.eval() first.")
    images = teacher.images(teacher.frames(batched_inputs))
    features = teacher.net.extract(images)
    current = teacher.current(batched_inputs)
    queries = hidden = None
    if decode:
        memory = teacher.net.encode(features)
        queries = teacher.net.queries(memory).detach()
        hidden = teacher.net.decode(memory, queries).hidden
    T = images.num_frames
    return Knowledge(features.select(current), queries, hidden, current % T, T)
