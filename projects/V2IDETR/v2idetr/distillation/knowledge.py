"""The teacher's outputs for a batch of clips."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from v2idetr.modeling.interface import Decoded, Features, Queries
from v2idetr.modeling.trainable import Sample
from v2idetr.modeling.training import TransformerDetector

Frames = Literal["current", "all"]


class Reach(IntEnum):
    """Last step of the teacher for a batch; each includes those before it."""

    FEATURES = 0  # the temporal module's output for the views
    MEMORY = 1  # the encoder's output for the views
    DECODED = 2  # the decoded queries of the views
    CLIPS = 3  # the decoded queries of all frames


@dataclass
class Knowledge:
    """Features, queries and detections of the frozen teacher for a batch of C clips of T frames.

    Views are the student's training frames, see :func:`views_of`: V = C or C*T. Attributes beyond
    the requested reach are None; none has a gradient.

    Attributes:
        features: features of the V views after the temporal module, Y in equation 3.
        queries: decoder inputs Q of all C*T frames, clip-major.
        hidden: decoded features D of these queries after every layer.
        num_frames: T.
        boxes: predicted boxes of these queries after the last layer, cxcywh in [0, 1].
        encoded: encoder output for the views, as maps.
        decoded: decoder outputs of the views.
        scores: probability of each class for the views' queries.
    """

    features: Features
    queries: Queries | None
    hidden: Float[Tensor, "L CT N d"] | None
    num_frames: int
    boxes: Float[Tensor, "CT N 4"] | None = None
    encoded: Features | None = None
    decoded: Decoded | None = None
    scores: Float[Tensor, "L V N K"] | None = None


def views_of(batched_inputs: list[Sample], frames: Frames) -> list[Sample]:
    """The student's training samples.

    Args:
        batched_inputs: C samples with their clips, see ``data/clip_mapper.py``.
        frames: "current": these samples; "all": C*T samples, clip-major, with every frame of every
            clip as the current one, and a seed for each.
    """
    if frames == "current":
        return batched_inputs
    views = []
    for sample in batched_inputs:
        for index, frame in enumerate(sample["clip"]):
            view = {**frame, "clip": sample["clip"], "clip_index": index}
            if "seed" in sample:
                own = np.random.SeedSequence((sample["seed"], index)).generate_state(1, np.uint64)
                view["seed"] = int(own[0])
            views.append(view)
    return views


@torch.no_grad()
def teacher_knowledge(
    teacher: TransformerDetector,
    batched_inputs: list[Sample],
    *,
    reach: Reach = Reach.CLIPS,
    frames: Frames = "current",
) -> Knowledge:
    """Run the teacher once on whole clips, up to the required step.

    Args:
        teacher: teacher in evaluation mode.
        batched_inputs: samples with their clips, as in training.
        reach: last required step. Below ``CLIPS`` only the views are encoded, unless the teacher
            mixes frames after its encoder.
        frames: choice of views, see :func:`views_of`.

    Raises:
        ValueError: the teacher is in training mode, or a clip has a wrong number of frames.
    """
    if teacher.training:
        raise ValueError("The teacher must be in evaluation mode: call teacher.eval() first.")
    net, images = teacher.net, teacher.images(teacher.frames(batched_inputs))
    features = net.extract(images)
    T = images.num_frames
    everything = torch.arange(len(batched_inputs) * T, device=images.pixels.device)
    current = teacher.current(batched_inputs)
    views = everything if frames == "all" or current is None else current
    knowledge = Knowledge(features.select(views), None, None, T)
    if reach < Reach.MEMORY:
        return knowledge
    mixes = getattr(net, "mixes_frames_after", None)
    if reach < Reach.CLIPS and not (mixes is not None and mixes("features")):
        features, views = knowledge.features, everything[: len(views)]
    memory = net.encode(features)
    knowledge.encoded = memory.encoded().select(views)
    if reach < Reach.DECODED:
        return knowledge
    queries = net.queries(memory).detach()
    decoded = net.decode(memory, queries)
    own = knowledge.decoded = decoded.select(views)
    knowledge.scores = teacher.criterion.classification.scores(own.logits)
    if reach == Reach.CLIPS:
        knowledge.queries, knowledge.hidden = queries, decoded.hidden
        knowledge.boxes = decoded.boxes[-1]
    return knowledge
