"""Linear probe: multinomial logistic regression on fixed features of frames.

With standardised features z = (x - mean) / std of the training frames, the probe minimises in
float64, by L-BFGS from zero,

    mean over frames of -log softmax(z W + b)[label]  +  l2 / 2 * |W|^2

For l2 > 0 the minimum is unique, so that neither a seed nor a learning rate enters a comparison
of representations. The result is folded into one map of raw features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax

from free_lunch.phases.videos import VideoFeatures, mean_accuracy, stack_videos

MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class LinearProbe:
    """A linear map from raw features to phase logits.

    Attributes:
        weight, bias: of the logits ``features @ weight + bias``. A phase without training frames
            has weight 0 and bias -inf.
        l2: the weight of the penalty.
        notes: what a reader of the result should know, to be logged.
    """

    weight: Float[np.ndarray, "d K"]
    bias: Float[np.ndarray, "K"]
    l2: float
    notes: tuple[str, ...]

    def logits(self, features: Float[np.ndarray, "T d"]) -> Float[np.ndarray, "T K"]:
        """Phase logits of each frame."""
        return features @ self.weight + self.bias

    def predict(self, features: Float[np.ndarray, "T d"]) -> Int[np.ndarray, "T"]:
        """Phase index of each frame."""
        return self.logits(features).argmax(axis=1)


@dataclass(frozen=True)
class LinearChoice:
    """The probe chosen on validation videos.

    Attributes:
        probe: the chosen one.
        accuracies: accuracy of each L2 weight, averaged over the validation videos.
    """

    probe: LinearProbe
    accuracies: dict[float, float]


def fit_linear(train: Sequence[VideoFeatures], *, num_phases: int, l2: float) -> LinearProbe:
    """Fit the probe to all frames of the training videos.

    Holds the features once more in float64. A feature that is constant in training gets weight 0.

    Raises:
        ValueError: no video; l2 not positive; a phase index outside [0, K); features of different
            widths.
    """
    return _fit_all(train, num_phases, [l2])[0]


def choose_linear(
    train: Sequence[VideoFeatures],
    validation: Sequence[VideoFeatures],
    *,
    num_phases: int,
    l2_weights: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
) -> LinearChoice:
    """The probe with the highest accuracy, averaged over validation videos.

    Of several, the one with the largest L2 weight.

    Raises:
        ValueError: as ``fit_linear``; no validation video or no L2 weight.
    """
    if not validation or not l2_weights:
        raise ValueError("Choosing a probe needs at least one validation video and one L2 weight.")
    stack_videos([*train[:1], *validation], num_phases)
    probes = _fit_all(train, num_phases, sorted(set(l2_weights), reverse=True))
    accuracies = {
        probe.l2: mean_accuracy(
            [video.with_predictions(probe.predict(video.features)) for video in validation]
        )
        for probe in probes
    }
    # max takes the first of several, and the L2 weights descend.
    return LinearChoice(max(probes, key=lambda probe: accuracies[probe.l2]), accuracies)


def _fit_all(
    train: Sequence[VideoFeatures], num_phases: int, l2_weights: Sequence[float]
) -> list[LinearProbe]:
    """A probe for each L2 weight, each fit starting from the one before."""
    if min(l2_weights) <= 0:
        raise ValueError(
            f"L2 weights of the linear probe must be positive, got {min(l2_weights)}: without a "
            "penalty, separable phases have no best weights."
        )
    features, labels = stack_videos(train, num_phases)
    mean = features.mean(axis=0, dtype=np.float64)
    std = features.std(axis=0, dtype=np.float64)
    # At the resolution of the features it is rounding, which division would blow up.
    std[std <= 8 * np.finfo(features.dtype).eps * np.abs(mean)] = np.inf
    standardised = (features - mean) / std
    present = np.bincount(labels, minlength=num_phases) > 0
    notes = tuple(
        f"Phase {phase} has no frame in the {len(train)} training videos; the linear probe never "
        "predicts it."
        for phase in np.flatnonzero(~present)
    )
    targets = np.cumsum(present)[labels] - 1  # index among the present phases
    solution = np.zeros((features.shape[1] + 1, int(present.sum())))
    probes = []
    for l2 in l2_weights:
        solution, failure = _minimise(standardised, targets, solution, l2)
        fit_notes = notes
        if failure:
            fit_notes += (f"The linear probe with L2 weight {l2:g} did not converge: {failure}.",)
        weight = np.zeros((features.shape[1], num_phases))
        bias = np.full(num_phases, -np.inf)
        weight[:, present] = solution[:-1] / std[:, None]
        bias[present] = solution[-1] - mean @ weight[:, present]
        probes.append(LinearProbe(weight, bias, l2, fit_notes))
    return probes


def _minimise(
    z: Float[np.ndarray, "N d"],
    targets: Int[np.ndarray, "N"],
    start: Float[np.ndarray, "d+1 P"],
    l2: float,
) -> tuple[Float[np.ndarray, "d+1 P"], str]:
    """Weights with the bias as last row, for P phases; and why L-BFGS stopped early, or ""."""
    frames = np.arange(len(z))

    def objective(flat: Float[np.ndarray, "_"]) -> tuple[float, Float[np.ndarray, "_"]]:
        solution = flat.reshape(start.shape)
        weight, bias = solution[:-1], solution[-1]
        log_p = log_softmax(z @ weight + bias, axis=1)
        loss = -log_p[frames, targets].mean() + l2 / 2 * (weight**2).sum()
        error = np.exp(log_p)
        error[frames, targets] -= 1
        error /= len(z)
        gradient = np.concatenate([z.T @ error + l2 * weight, error.sum(axis=0)[None]])
        return float(loss), gradient.ravel()

    result = minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": MAX_ITERATIONS,
            "maxfun": 2 * MAX_ITERATIONS,
            "ftol": 1e-12,
            "gtol": 1e-7,
        },
    )
    return result.x.reshape(start.shape), "" if result.success else str(result.message)
