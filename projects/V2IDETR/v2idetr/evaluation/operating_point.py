"""Choice of a detector's score threshold, on validation data.

f1              the highest F1 of a rule; the highest of several such thresholds
recall          the highest threshold with at least this recall of a rule
false_alarms    the lowest threshold from which on there are at most so many false alarms a minute
alert_rate      the lowest threshold at which at most this share of the lesion-free frames has a
                detection. TRUE-Colon's search tries only scores of lesion-free frames, so its
                matched threshold (``match_alert_rate``) can be higher
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from v2idetr.evaluation.false_alarms import alarm_steps
from v2idetr.evaluation.frames import LabelledFrame
from v2idetr.evaluation.lesion_metrics import Outcomes, Sweep, choose_threshold, judge, sweep
from v2idetr.evaluation.pool import Pool
from v2idetr.evaluation.predictions import SCORE_DECIMALS
from v2idetr.evaluation.true_colon_protocol import frame_scores

By = Literal["f1", "recall", "false_alarms", "alert_rate"]
NO_DETECTION = 1.0  # threshold where there are no scores to choose from
SAME_F1 = 0.995  # of the best F1: from here on it is the same
WIDE = 0.1  # width of a range of thresholds that makes the choice arbitrary
ALL_COUNT = "The target is met at any threshold: all detections count."
NOTHING_LEFT = "The target is met only without any false alarm on the data of the choice."


@dataclass(frozen=True)
class Choice:
    """What a threshold is chosen by; ``target``: recall, false alarms a minute, or share."""

    by: By = "f1"
    target: float | None = None

    def __post_init__(self) -> None:
        assert self.by in get_args(By) and (self.target is None) == (self.by == "f1"), self

    @property
    def words(self) -> str:
        """The choice as part of a sentence."""
        target = 0.0 if self.target is None else self.target
        return {
            "f1": "highest F1",
            "recall": f"recall of at least {100 * target:g} %",
            "false_alarms": f"at most {target:g} false alarms a minute",
            "alert_rate": f"a detection on at most {100 * target:g} % of the lesion-free frames",
        }[self.by]


@dataclass(frozen=True)
class OperatingPoint:
    """A chosen threshold.

    Attributes:
        threshold: detections with at least this score count.
        reached: what the target's metric is at the threshold, on the data of the choice.
        met: whether the target is met.
        remarks: what makes the choice doubtful, in sentences.
    """

    threshold: float
    reached: float | None
    met: bool
    remarks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {**vars(self), "remarks": list(self.remarks)}


def choose(
    choice: Choice, rule: str, pool: Pool, frames: Sequence[LabelledFrame]
) -> OperatingPoint:
    """Choose a threshold.

    Args:
        choice: what it is chosen by.
        rule: name in ``lesion_metrics.RULES``.
        pool, frames: the data of the choice, with the detector's predictions.

    Raises:
        ValueError: the data lacks what the choice needs: lesions, lesion-free frames, a rate.
    """
    outcomes = judge(frames, rule)
    if choice.by in ("f1", "recall") and not outcomes.lesions.sum():
        raise ValueError(
            f"{pool.source}: has no lesions, so no threshold can be chosen by {choice.words}; give "
            "--threshold, or validation data with lesions."
        )
    choosers: dict[By, Callable[[], OperatingPoint]] = {
        "f1": lambda: _by_f1(outcomes),
        "recall": lambda: _by_recall(outcomes, choice),
        "false_alarms": lambda: _by_false_alarms(choice, rule, pool, frames),
        "alert_rate": lambda: _by_alert_rate(choice, pool, frames),
    }
    return choosers[choice.by]()


def _by_f1(outcomes: Outcomes) -> OperatingPoint:
    threshold = choose_threshold(outcomes)
    curve = sweep(outcomes)
    if not curve.tp.any():
        said = f"No lesion is found at any threshold; {threshold:g} is taken."
        return OperatingPoint(threshold, 0.0, False, (said,))
    best = int(curve.f1.argmax())
    return OperatingPoint(threshold, float(curve.f1[best]), True, saturation(curve))


def saturation(curve: Sweep) -> tuple[str, ...]:
    """Remarks on data that cannot tell thresholds apart: F1 is perfect, or nearly constant."""
    best = int(curve.f1.argmax())
    top = float(curve.f1[best])
    same = curve.f1 >= SAME_F1 * top
    first = best - int(np.argmin(same[: best + 1][::-1])) + 1 if not same[: best + 1].all() else 0
    behind = same[best:]
    last = best + int(np.argmin(behind)) - 1 if not behind.all() else len(same) - 1
    # Between two scores the counts are those of the higher one.
    low = float(curve.thresholds[last + 1]) if last + 1 < len(same) else 0.0
    high = float(curve.thresholds[first])
    remarks = []
    if top == 1.0:
        remarks.append(
            "F1 is perfect on the data of the choice, which is too easy to tell thresholds apart."
        )
    if high - low >= WIDE:
        remarks.append(
            f"F1 is the same (within {100 * (1 - SAME_F1):.1f} %) at all thresholds from {low:.3f} "
            f"to {high:.3f}: the choice among them is arbitrary."
        )
    return tuple(remarks)


def _by_recall(outcomes: Outcomes, choice: Choice) -> OperatingPoint:
    assert choice.target is not None
    curve = sweep(outcomes)
    recall = curve.tp / curve.lesions
    enough = np.flatnonzero(recall >= choice.target)
    if enough.size:
        index = int(enough[0])  # thresholds descend
        return OperatingPoint(float(curve.thresholds[index]), float(recall[index]), True)
    best = float(recall.max(initial=0.0))
    threshold = float(curve.thresholds[int(recall.argmax())]) if len(recall) else NO_DETECTION
    said = (
        f"A recall of {choice.target:g} is not reached at any threshold; the highest is {best:.3f}."
    )
    return OperatingPoint(threshold, best, False, (said,))


def _by_false_alarms(
    choice: Choice, rule: str, pool: Pool, frames: Sequence[LabelledFrame]
) -> OperatingPoint:
    assert choice.target is not None
    if pool.total_minutes is None:
        raise ValueError(
            f"{pool.source}: has no frame rate, so false alarms a minute are unknown; give --fps."
        )
    thresholds, alarms = alarm_steps(pool, frames, rule)  # descending
    a_minute = alarms / pool.total_minutes
    too_many = np.flatnonzero(a_minute > choice.target)
    if not too_many.size:
        reached = float(a_minute[-1]) if len(a_minute) else 0.0
        return OperatingPoint(0.0, reached, True, (ALL_COUNT,))
    index = int(too_many[0])  # the highest threshold with too many
    threshold = round(float(thresholds[index]) + 10.0**-SCORE_DECIMALS, SCORE_DECIMALS)
    reached = float(a_minute[index - 1]) if index else 0.0
    return OperatingPoint(threshold, reached, True, () if index else (NOTHING_LEFT,))


def _by_alert_rate(choice: Choice, pool: Pool, frames: Sequence[LabelledFrame]) -> OperatingPoint:
    assert choice.target is not None
    if not pool.lesion_free_frames:
        raise ValueError(
            f"{pool.source}: has no lesion-free frames, so their share with a detection is unknown;"
            " give validation data with lesion-free frames, or choose by another target."
        )
    _, scores = frame_scores(pool, frames)
    counts = Counter(score for score in scores if score > 0)
    reached = 0.0
    alerts = 0
    for score in sorted(counts, reverse=True):
        alerts += counts[score]
        rate = alerts / len(scores)
        if rate > choice.target:
            threshold = round(score + 10.0**-SCORE_DECIMALS, SCORE_DECIMALS)
            remarks = () if reached else (NOTHING_LEFT,)
            return OperatingPoint(threshold, reached, True, remarks)
        reached = rate
    return OperatingPoint(0.0, reached, True, (ALL_COUNT,))
