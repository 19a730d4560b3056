"""Weighted k-nearest-neighbour classification of frames by cosine similarity.

Instance discrimination (Wu et al., CVPR 2018): each of the k most similar labelled
frames votes for its phase with weight exp(similarity / temperature). Measures a representation
without training anything on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from free_lunch.phases.videos import VideoFeatures, mean_accuracy, stack_videos

# Similarities held at a time: 64 MB. Queries are taken in chunks that fit.
MAX_SIMILARITIES = 2**24


@dataclass(frozen=True)
class KnnChoice:
    """The k chosen on validation videos.

    Attributes:
        k: number of neighbours.
        accuracies: accuracy of each k, averaged over the validation videos.
    """

    k: int
    accuracies: dict[int, float]


def knn_predict(
    features: Float[np.ndarray, "N d"],
    labels: Int[np.ndarray, "N"],
    queries: Float[np.ndarray, "Q d"],
    *,
    k: int,
    num_phases: int,
    temperature: float = 0.07,
) -> Int[np.ndarray, "Q"]:
    """Phase of each query frame; the lowest index of several with equal votes.

    A feature of norm zero has similarity 0 to all.

    Raises:
        ValueError: k outside [1, N]; temperature not positive.
    """
    return _predict(features, labels, queries, [k], num_phases, temperature)[0]


def choose_k(
    train: Sequence[VideoFeatures],
    validation: Sequence[VideoFeatures],
    *,
    ks: Sequence[int] = (1, 5, 10, 20, 50, 100, 200),
    num_phases: int,
    temperature: float = 0.07,
) -> KnnChoice:
    """The k with the highest accuracy, averaged over validation videos; the smallest of several.

    Raises:
        ValueError: no training or validation video; no k, or one outside [1, N]; temperature not
            positive; features of different widths.
    """
    features, labels = stack_videos(train, num_phases)
    stack_videos([train[0], *validation], num_phases)
    if not validation or not ks:
        raise ValueError("Choosing k needs at least one validation video and one k.")
    ks = sorted(set(ks))
    predicted = [
        _predict(features, labels, video.features, ks, num_phases, temperature)
        for video in validation
    ]
    accuracies = {
        k: mean_accuracy(
            [
                video.with_predictions(by_k[i])
                for video, by_k in zip(validation, predicted, strict=True)
            ]
        )
        for i, k in enumerate(ks)
    }
    # max takes the first of several, and ks ascend.
    return KnnChoice(k=max(ks, key=accuracies.__getitem__), accuracies=accuracies)


def _predict(
    features: Float[np.ndarray, "N d"],
    labels: Int[np.ndarray, "N"],
    queries: Float[np.ndarray, "Q d"],
    ks: Sequence[int],
    num_phases: int,
    temperature: float,
) -> Int[np.ndarray, "ks Q"]:
    """Phases of the queries for each k, from one search with the largest."""
    if min(ks) < 1 or max(ks) > len(features):
        raise ValueError(
            f"k must lie between 1 and the {len(features)} labelled frames, got {sorted(ks)}."
        )
    if temperature <= 0:
        raise ValueError(f"The temperature of k-NN must be positive, got {temperature}.")
    bank, phases = _unit(features), torch.tensor(labels, dtype=torch.long)
    predicted = []
    for chunk in _unit(queries).split(max(1, MAX_SIMILARITIES // len(bank))):
        similarity = chunk @ bank.T
        similarity, neighbours = similarity.topk(max(ks), dim=1)  # most similar first
        # Relative to the nearest neighbour, which cancels in the comparison of votes.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = [
            weights.new_zeros(len(chunk), num_phases).scatter_add_(
                1, phases[neighbours[:, :k]], weights[:, :k]
            )
            for k in ks
        ]
        predicted.append(torch.stack(votes).argmax(dim=-1))
    return torch.cat(predicted, dim=1).numpy()


def _unit(features: Float[np.ndarray, "n d"]) -> Float[torch.Tensor, "n d"]:
    """Features divided by their norm, in float32; a copy, since arrays may be read-only."""
    return F.normalize(torch.tensor(features, dtype=torch.float32), dim=1)
