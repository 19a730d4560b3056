"""Cross-view Query Distillation (V2I-DETR, section II-D, equations 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from v2idetr.distillation.distances import (
    Layers,
    compared_layers,
    cosine_distance,
    one_of,
    width_projection,
)
from v2idetr.distillation.knowledge import Knowledge, Reach
from v2idetr.distillation.loss import DistillationLoss, Pairing
from v2idetr.modeling.extra_queries import ExtraQueries, Visibility
from v2idetr.modeling.interface import Decoded, Queries, select_queries

PerFrame = Literal["N/T", "N/2", "N"]
Sampling = Literal["disjoint", "independent"]
Source = Literal["input", "decoded"]
Reference = Literal["query", "prediction"]


@dataclass(kw_only=True)
class CrossView(ExtraQueries):
    """Teacher queries for the student's decoder, and the teacher's decoded features for them.

    Attributes:
        queries: q_t of all frames of a view's clip, n per frame, in the order of frames.
        target: D_t of the same (frame, index), after every layer of the teacher.
    """

    target: Float[Tensor, "L V Tn d"]


class CrossViewQueryDistillation(DistillationLoss):
    """Cosine distance between the student's and the teacher's decoded features of teacher queries.

    ``L_qe = mean(1 - cos(D_hat, D))``: equation 5 plus a constant, so that it cannot be negative.

    Args:
        weight: lambda_qe of equation 6.
        per_frame: number of queries per frame, n: "N/T" (N for all frames together), "N/2" or "N".
        sampling: "disjoint": one permutation cut into T chunks, so that no index is drawn for two
            frames (if T * n <= N); "independent": equation 4 literally.
        mask: visibility in the student's self-attention: "one_way": cross-view queries see the
            student's own, but not the reverse; "isolated": neither sees the other; "none": all see
            all.
        source: content of Q_t: "input": the decoder's inputs; "decoded": its last outputs.
        reference: reference of a cross-view query: "query": as in the teacher; "prediction": the
            teacher's predicted box.
        layers: compared decoder layers: "last", or "all" for their mean.
        student_dim, teacher_dim: widths; learnt projections map one to the other if they differ.
    """

    key = "cqd"
    reach = Reach.CLIPS

    def __init__(
        self,
        *,
        weight: float = 5.0,
        per_frame: PerFrame = "N/T",
        sampling: Sampling = "disjoint",
        mask: Visibility = "one_way",
        source: Source = "input",
        reference: Reference = "query",
        layers: Layers = "last",
        student_dim: int = 256,
        teacher_dim: int = 256,
    ) -> None:
        super().__init__()
        one_of("cqd.per_frame", per_frame, PerFrame)
        one_of("cqd.sampling", sampling, Sampling)
        one_of("cqd.mask", mask, Visibility)
        one_of("cqd.source", source, Source)
        one_of("cqd.reference", reference, Reference)
        one_of("cqd.layers", layers, Layers)
        self.weight, self.per_frame, self.sampling = weight, per_frame, sampling
        self.source, self.reference = source, reference
        self.mask: Visibility = mask
        self.layers: Layers = layers
        self.content_in = width_projection(teacher_dim, student_dim)
        self.position_in = width_projection(teacher_dim, student_dim)
        self.hidden_out = width_projection(student_dim, teacher_dim)

    def queries_per_frame(self, num_queries: int, num_frames: int) -> int:
        """n for a teacher of ``num_queries`` queries and clips of ``num_frames`` frames.

        Raises:
            ValueError: n would be zero.
        """
        n = {"N/T": num_queries // num_frames, "N/2": num_queries // 2, "N": num_queries}
        if n[self.per_frame] < 1:
            raise ValueError(
                f"distillation.cqd.per_frame={self.per_frame} of {num_queries} teacher queries and "
                f"{num_frames} frames leaves no query to distil."
            )
        return n[self.per_frame]

    def extra_queries(
        self,
        knowledge: Knowledge,
        *,
        reference_dim: int,
        generators: Sequence[torch.Generator | None],
    ) -> CrossView:
        """Draw the cross-view queries of a batch; see ``DistillationLoss``."""
        assert knowledge.queries is not None and knowledge.hidden is not None
        T, N, V = knowledge.num_frames, knowledge.queries.num_queries, len(generators)
        n = self.queries_per_frame(N, T)
        disjoint = self.sampling == "disjoint" and T * n <= N
        index = torch.stack(
            [draw_indices(N, T, n, disjoint=disjoint, generator=g) for g in generators]
        ).to(knowledge.hidden.device)  # (V, T, n)
        per_frame = index.flatten(0, 1)  # (V*T, n)
        frames = torch.arange(knowledge.hidden.shape[1], device=per_frame.device).view(-1, 1, T)
        frames = frames.expand(-1, V // len(frames), -1).flatten()  # (V*T,), the teacher's
        queries = knowledge.queries.of_images(frames).select(per_frame)
        hidden = knowledge.hidden[:, frames]
        target = torch.stack([select_queries(layer, per_frame) for layer in hidden])
        if self.source == "decoded":
            queries.content = target[-1]
        if self.reference == "prediction":
            assert knowledge.boxes is not None
            queries.reference = select_queries(knowledge.boxes[frames], per_frame)
        queries = Queries(
            self.content_in(queries.content).reshape(V, T * n, -1),
            self.position_in(queries.position).reshape(V, T * n, -1),
            queries.reference.reshape(V, T * n, -1),
        )
        target = target.reshape(len(target), V, T * n, -1)
        queries = queries.with_reference_dim(reference_dim)
        return CrossView(queries, self.mask, target=target)

    def forward(self, pairing: Pairing) -> Float[Tensor, ""]:
        """The weighted loss between student and teacher for the cross-view queries."""
        cross_view, decoded = pairing.extra[self.key]
        assert isinstance(cross_view, CrossView)
        return self.compare(decoded, cross_view)

    def measures(self, pairing: Pairing) -> dict[str, Float[Tensor, ""]]:
        """Mean cosine of student and teacher for the cross-view queries after each layer.

        Named by the student's layers, from 0. Decoders of different depth are paired from their
        last layers on; the learnt projection, if there is one, is that of the loss.
        """
        cross_view, decoded = pairing.extra[self.key]
        assert isinstance(cross_view, CrossView)
        depth = len(decoded.hidden)
        pairs = min(depth, len(cross_view.target))
        distance = cosine_distance(
            self.hidden_out(decoded.hidden[depth - pairs :]), cross_view.target[-pairs:]
        )
        cosines = 1 - distance.flatten(1).mean(1)
        return {f"cosine_layer{depth - pairs + i}": cosine for i, cosine in enumerate(cosines)}

    def compare(self, decoded: Decoded, cross_view: CrossView) -> Float[Tensor, ""]:
        """The weighted loss: mean of 1 - cos over layers, views and cross-view queries.

        Args:
            decoded: the student's decoder outputs for ``cross_view.queries``.
            cross_view: cross-view queries of the batch.
        """
        hidden, target = decoded.hidden, cross_view.target
        ours, theirs = compared_layers("cqd", self.layers, len(hidden), len(target))
        projected = self.hidden_out(hidden[ours])
        return self.weight * cosine_distance(projected, target[theirs]).mean()


def draw_indices(
    N: int, T: int, n: int, *, disjoint: bool, generator: torch.Generator | None = None
) -> Int[Tensor, "T n"]:
    """n different indices below N for each of T frames; with ``disjoint``, none occurs twice."""
    if disjoint:
        assert T * n <= N
        return torch.randperm(N, generator=generator)[: T * n].view(T, n)
    return torch.stack([torch.randperm(N, generator=generator)[:n] for _ in range(T)])
