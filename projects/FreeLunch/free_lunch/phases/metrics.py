"""Metrics of surgical phase recognition over whole videos, strict and relaxed at boundaries.

**Averages.** Accuracy is taken by video, then averaged; its standard deviation is over videos
(n - 1). Precision, recall, Jaccard and F1 are taken by video and phase, averaged by phase over the
videos in which they are defined, then over phases. Funke et al., "Metrics Matter in Surgical Phase
Recognition" (arXiv 2305.13961), treat undefined values in two ways; this is their strategy A, as
implemented in SurgPhaseBench, which follows them (``Evaluation/eval_phase.py``). Only what has
denominator zero is left out:

    ==========================  =========  =======  ===========
    phase in the video          precision  recall   Jaccard, F1
    ==========================  =========  =======  ===========
    labelled and predicted      defined    defined  defined
    labelled, never predicted   --         0        0
    predicted, never labelled   0          --       0
    neither                     --         --       --
    ==========================  =========  =======  ===========

Their strategy B, the one of the MATLAB scripts below, leaves out all values of a phase that a
video's ground truth lacks, so that inventing a phase costs nothing but accuracy. F1 is averaged
like the others: F1 of mean precision and mean recall is an upper bound of it.

**Relaxed.** In the first 10 s of a ground-truth segment of phase b, predicting a phase a that may
precede b is right (a late transition); in the last 10 s of a segment of phase a, predicting b that
may follow a is right (an early one). Which transitions a -> b are allowed is a table by data set
(``TRANSITIONS``), read from the scripts; other phase lists allow each phase and the next one. With
right frames in place of equal ones,

    precision = right predicted / predicted     Jaccard = right in the union / union
    recall    = right labelled / labelled       F1 = right (labelled + predicted) / all of both

so that each is defined where the strict one is, is at least as large, and at most 1.

**What the released scripts do.** Read: ``Evaluate.m`` and ``Main.m`` of SV-RCNet
(``surgicalVideo/evaluation_Cholec80``, ``evaluation_M2CAI``), ``Evaluate.m``, ``Evaluate_m2cai.m``,
``Main_m2cai.m`` and ``matlab-phase/code/Main.m`` of TMRNet (``code/eval``).

- Both data sets share one table: M2CAI16 is Cholec80 with TrocarPlacement in front. Neither has
  packaging after cleaning nor cleaning after retraction, though Cholec80's workflow has both.
- ``curDiff(curDiff(end-t+1:end)==1) = 0`` builds a mask over the last t frames of a segment and
  applies it to the first t. Early transitions stay errors, and the frame at the same offset from
  the start becomes right whatever was predicted there. Segments of at most t frames are unharmed.
- True positives are right frames of the union, also for precision and recall, which can then exceed
  100 %; ``Main.m`` clips them.
- A phase that is labelled but never predicted has precision NaN, or 100 % where the tolerance gives
  it true positives (x/0, clipped). Only SV-RCNet's M2CAI script has 0 there.
- The tolerance is ``10 * fps`` frames. ``Main.m`` has fps 1 for Cholec80, which is right for
  predictions at 1 fps, and fps 25 for M2CAI16. Predictions at 5 fps (Free Lunch) are then relaxed
  by 50 s.

``rule="released"`` reproduces them, for comparison with published numbers only; pass the fps that
the script had. It gives no F1, because the scripts do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from free_lunch.phases.videos import VideoPhases, check_phases

Rule = Literal["described", "released"]
Transition = tuple[int, int]  # (phase before, phase after)

METRICS = ("precision", "recall", "jaccard", "f1")

# Gallbladder dissection (3) may be followed by packaging (4) or cleaning (5), packaging also by
# retraction (6) at once.
_CHOLEC80: frozenset[Transition] = frozenset(
    {(0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (4, 5), (4, 6), (5, 6)}
)
# Allowed transitions by data set, phases in the order of the data set's publication.
TRANSITIONS: dict[str, frozenset[Transition]] = {
    "cholec80": _CHOLEC80,
    "m2cai16": frozenset({(0, 1), *((a + 1, b + 1) for a, b in _CHOLEC80)}),
}


def phase_metrics(
    videos: Sequence[VideoPhases],
    *,
    num_phases: int,
    fps: float,
    transitions: str | Collection[Transition] | None = None,
    tolerance_s: float = 10.0,
    rule: Rule = "described",
) -> dict[str, Any]:
    """Strict and relaxed metrics of phase recognition.

    Args:
        videos: ground truth and prediction of whole videos.
        num_phases: K.
        fps: labelled frames per second.
        transitions: allowed transitions of the relaxed metrics: a name in ``TRANSITIONS``, pairs of
            phase indices, or None for each phase and the next one.
        tolerance_s: tolerance before and after a boundary, in seconds.
        rule: "described" or "released", see the module; the strict metrics are the same in both.

    Returns:
        A dict for JSON; metrics are fractions, None where undefined::

            videos, frames                     counts
            confusion_matrix                   K lists of K frame counts, [truth][predicted]
            videos_with_phase                  by phase, in the ground truth
            strict, relaxed                    accuracy, accuracy_std, precision, recall, jaccard,
                                               f1, per_phase (lists by phase of the last four)

    Raises:
        ValueError: no video; a phase index outside [0, K); fps or tolerance out of range; an
            unknown data set or rule; transitions that do not fit K.
    """
    if not videos:
        raise ValueError("Phase metrics need at least one video; there is none.")
    if rule not in get_args(Rule):
        raise ValueError(
            f"Unknown rule {rule!r} of the relaxed metrics; use one of {get_args(Rule)}."
        )
    if not (fps > 0 and tolerance_s >= 0):
        raise ValueError(f"Need fps > 0 and tolerance_s >= 0, got {fps} and {tolerance_s}.")
    allowed = allowed_transitions(transitions, num_phases)
    # The small term keeps 10 s * 0.7 fps at 7 frames.
    tolerance = math.ceil(tolerance_s * fps - 1e-9)
    confusion = np.zeros((num_phases, num_phases), dtype=np.int64)
    with_phase = np.zeros(num_phases, dtype=np.int64)
    strict, relaxed = [], []
    for video in videos:
        check_phases(video.name, video.truth, num_phases)
        check_phases(video.name, video.predicted, num_phases)
        np.add.at(confusion, (video.truth, video.predicted), 1)
        with_phase += np.bincount(video.truth, minlength=num_phases) > 0
        equal = video.truth == video.predicted
        right = right_frames(video, allowed, tolerance, rule)
        values_of = _described if rule == "described" else _released
        strict.append((equal.mean(), _described(video, equal, num_phases)))
        relaxed.append((right.mean(), values_of(video, right, num_phases)))
    return {
        "videos": len(videos),
        "frames": sum(len(video.truth) for video in videos),
        "confusion_matrix": confusion.tolist(),
        "videos_with_phase": with_phase.tolist(),
        "strict": _summary(strict),
        "relaxed": _summary(relaxed),
    }


def allowed_transitions(
    transitions: str | Collection[Transition] | None, num_phases: int
) -> Bool[np.ndarray, "K K"]:
    """Whether phase b (column) may follow phase a (row).

    Raises:
        ValueError: unknown data set; a pair outside the phases; a table for another number of them.
    """
    if transitions is None:
        return np.eye(num_phases, k=1, dtype=bool)
    if isinstance(transitions, str):
        if transitions not in TRANSITIONS:
            raise ValueError(
                f"No table of transitions for data set {transitions!r}; there are "
                f"{', '.join(sorted(TRANSITIONS))}. Give pairs of phase indices, or None."
            )
        name, transitions = transitions, TRANSITIONS[transitions]
        expected = 1 + max(after for _, after in transitions)
        if expected != num_phases:
            raise ValueError(
                f"Data set {name!r} has {expected} phases, but num_phases is {num_phases}; give "
                "the transitions of your phase list, or None for each phase and the next one."
            )
    allowed = np.zeros((num_phases, num_phases), dtype=bool)
    for before, after in transitions:
        if not (0 <= before < num_phases and 0 <= after < num_phases):
            raise ValueError(
                f"Transition ({before}, {after}) is outside the {num_phases} phases, which count "
                "from 0."
            )
        allowed[before, after] = True
    return allowed


def right_frames(
    video: VideoPhases, allowed: Bool[np.ndarray, "K K"], tolerance: int, rule: Rule
) -> Bool[np.ndarray, "T"]:
    """Frames that are right within ``tolerance`` frames of a boundary.

    The first and last frames of a video count as boundaries, as in the scripts.
    """
    truth, predicted = video.truth, video.predicted
    right = truth == predicted
    for start, end in _segments(truth):
        size = min(tolerance, end - start)
        head, tail = slice(start, start + size), slice(end - size, end)
        right[head] |= allowed[predicted[head], truth[start]]
        early = allowed[truth[start], predicted[tail]]
        right[tail if rule == "described" else head] |= early
    return right


def _segments(phases: Int[np.ndarray, "T"]) -> Iterator[tuple[int, int]]:
    """(first frame, last frame + 1) of each run of one phase."""
    changes = (np.flatnonzero(np.diff(phases)) + 1).tolist()
    return pairwise([0, *changes, len(phases)])


def _counts(
    video: VideoPhases, right: Bool[np.ndarray, "T"], num_phases: int
) -> Int[np.ndarray, "6 K"]:
    """Frames by phase: labelled, predicted and in their union, then the right ones of each."""

    def by_phase(frames: Bool[np.ndarray, "T"]) -> Int[np.ndarray, "3 K"]:
        labelled = np.bincount(video.truth[frames], minlength=num_phases)
        predicted = np.bincount(video.predicted[frames], minlength=num_phases)
        both = np.bincount(video.truth[frames & equal], minlength=num_phases)
        return np.stack([labelled, predicted, labelled + predicted - both])

    equal = video.truth == video.predicted
    return np.concatenate([by_phase(np.ones_like(right)), by_phase(right)])


def _described(
    video: VideoPhases, right: Bool[np.ndarray, "T"], num_phases: int
) -> Float[np.ndarray, "4 K"]:
    """``METRICS`` of a video by phase; NaN where undefined."""
    counts = _counts(video, right, num_phases)
    labelled, predicted, union, right_labelled, right_predicted, right_union = counts
    return np.stack(
        [
            _ratio(right_predicted, predicted),
            _ratio(right_labelled, labelled),
            _ratio(right_union, union),
            _ratio(right_labelled + right_predicted, labelled + predicted),
        ]
    )


def _released(
    video: VideoPhases, right: Bool[np.ndarray, "T"], num_phases: int
) -> Float[np.ndarray, "4 K"]:
    """``METRICS`` of a video by phase as the MATLAB scripts have them; NaN where undefined."""
    labelled, predicted, union, *_, positives = _counts(video, right, num_phases)
    precision = np.where((predicted == 0) & (positives > 0), 1.0, _ratio(positives, predicted))
    values = np.stack(
        [
            np.minimum(precision, 1.0),
            np.minimum(_ratio(positives, labelled), 1.0),
            _ratio(positives, union),
            np.full(num_phases, np.nan),
        ]
    )
    return np.where(labelled > 0, values, np.nan)


def _ratio(part: Int[np.ndarray, "K"], whole: Int[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _summary(videos: Sequence[tuple[float, Float[np.ndarray, "4 K"]]]) -> dict[str, Any]:
    """Averages over videos, then phases, of (accuracy, ``METRICS`` by phase)."""
    accuracies = [float(accuracy) for accuracy, _ in videos]
    by_phase = [
        [_mean(column) for column in metric.T]
        for metric in np.stack([values for _, values in videos], axis=1)
    ]
    return {
        "accuracy": _mean(accuracies),
        "accuracy_std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        **{name: _mean(values) for name, values in zip(METRICS, by_phase, strict=True)},
        "per_phase": dict(zip(METRICS, by_phase, strict=True)),
    }


def _mean(values: Any) -> float | None:
    """Mean of the defined values, independent of their order; None if there is none."""
    defined = [float(value) for value in values if value is not None and not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else None
