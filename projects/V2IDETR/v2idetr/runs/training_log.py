"""Costs and validation curves of trainings, from their metrics.jsonl."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from v2idetr.runs.stage_folder import read_metrics


@dataclass(frozen=True)
class TrainingCost:
    """Of one or several trainings, without their evaluations.

    Attributes:
        steps: updates of weights.
        labelled_frames: frames that gave a gradient by their labels, each as often as it did.
        processor_time_s: of all threads of the main process; on a GPU, of the steps without
            waiting for data.
    """

    steps: int = 0
    labelled_frames: float = 0.0
    processor_time_s: float = 0.0

    def __add__(self, other: TrainingCost) -> TrainingCost:
        return TrainingCost(
            self.steps + other.steps,
            self.labelled_frames + other.labelled_frames,
            self.processor_time_s + other.processor_time_s,
        )

    def steps_for(self, what: str, others: TrainingCost) -> int:
        """Steps of this training's kind that cost as much as others; at least one.

        Args:
            what: "frames" or "processor_time".
            others: what was spent.
        """
        if what == "frames":
            share = others.labelled_frames / self.labelled_frames
        else:
            share = others.processor_time_s / self.processor_time_s
        return max(1, math.ceil(share * self.steps - 1e-9))


def training_cost(metrics: Path) -> TrainingCost:
    """The cost of a stage, from its metrics.jsonl.

    Raises:
        ValueError: the file has no costs, as those written before they were measured.
    """
    cost, before = TrainingCost(), 0
    for line in read_metrics(metrics):
        if "time_s" not in line:  # an evaluation
            continue
        steps, before = line["iteration"] - before, line["iteration"]
        try:
            frames, time_s = line["labelled_frames"], line["processor_time_s"]
        except KeyError as error:
            raise ValueError(
                f"{metrics} does not say what its steps cost ({error.args[0]} is missing): it was "
                "written by an earlier version. Train that run again in another --output."
            ) from error
        cost += TrainingCost(steps, steps * frames, steps * time_s)
    return cost


def validation_curve(metrics: Path, metric: str) -> list[tuple[int, float]]:
    """Steps and a validation metric, in percent, of a stage's evaluations that have it."""
    points = ((line["iteration"], line.get(f"val/{metric}")) for line in read_metrics(metrics))
    return [(steps, 100 * value) for steps, value in points if value is not None]
