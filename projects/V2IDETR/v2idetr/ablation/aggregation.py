"""Means over seeds and paired differences from evaluation.json files."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from v2idetr.evaluation.bootstrap import f1_difference
from v2idetr.evaluation.table import block, block_names

COCO = ("AP50", "AP", "AP75")
PER_RULE = ("precision", "recall", "f1")

# Percent by metric ("AP50", "endovis_center/f1") by block ("all tests", "easy / seen").
Metrics = dict[str, dict[str, float | None]]
# True positives, false positives and false negatives by video, (split, video_id), by rule.
VideoCounts = dict[str, dict[tuple[str, int], tuple[int, int, int]]]


@dataclass(frozen=True)
class Spread:
    """A metric over seeds.

    Attributes:
        values: values by seed.
    """

    values: Mapping[int, float]

    @property
    def count(self) -> int:
        """Number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean; None without values."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None with fewer than two values."""
        return statistics.stdev(self.values.values()) if self.count > 1 else None

    def minus(self, other: Spread) -> Spread:
        """Differences by seed, for seeds that both have."""
        both = sorted(self.values.keys() & other.values.keys())
        return Spread({seed: self.values[seed] - other.values[seed] for seed in both})

    def as_json(self) -> dict[str, Any]:
        """Mean, standard deviation, number of seeds and values."""
        values = {str(seed): value for seed, value in sorted(self.values.items())}
        return {"mean": self.mean, "sd": self.sd, "n": self.count, "seeds": values}


def read_result(evaluation: Path) -> dict[str, Any]:
    """The content of an evaluation.json.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(evaluation.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{evaluation}: is not JSON ({error}); remove it and run the same command again."
        ) from error


def metrics_of(result: Mapping[str, Any]) -> tuple[Metrics, dict[str, dict[str, int]]]:
    """Metrics of the test splits of an evaluation, and sizes, both by block."""
    metrics: Metrics = {}
    sizes: dict[str, dict[str, int]] = {}
    for title in block_names([result]):
        part = block(result, title)
        assert part is not None
        metrics[title] = _percents(part)
        sizes[title] = {k: part[k] for k in ("videos", "frames", "lesion_free_frames", "lesions")}
    return metrics, sizes


def video_counts(result: Mapping[str, Any]) -> VideoCounts:
    """Counts of each video of all test splits of an evaluation."""
    pooled = result["all_tests"] or next(iter(result["tests"].values()), {})
    counts: VideoCounts = {}
    for video in pooled.get("per_video", ()):
        for rule, found in video["rules"].items():
            key = (video["split"], video["video_id"])
            counts.setdefault(rule, {})[key] = (found["tp"], found["fp"], found["fn"])
    return counts


def paired_f1(
    ours: Mapping[int, VideoCounts], theirs: Mapping[int, VideoCounts], rule: str
) -> dict[str, float] | None:
    """Difference of two rows' pooled F1, in percent, with its 95 % interval over videos.

    The counts of a video are added over the seeds that both rows have.

    Args:
        ours, theirs: counts by seed.
        rule: name of the rule, such as "iou50".

    Returns:
        ``{"difference", "low", "high"}``; None without common seeds or videos.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    videos = sorted({v for side in (ours, theirs) for s in seeds for v in side[s].get(rule, {})})

    def summed(side: Mapping[int, VideoCounts]) -> list[list[int]]:
        counts = [[side[s].get(rule, {}).get(v, (0, 0, 0)) for v in videos] for s in seeds]
        return np.sum(counts, axis=0).tolist()

    found = f1_difference(summed(ours), summed(theirs)) if seeds else None
    if found is None:
        return None
    return dict(zip(("difference", "low", "high"), (100 * value for value in found), strict=True))


def spread(metrics: Mapping[int, Metrics], title: str, metric: str) -> Spread:
    """One metric of one block over the seeds for which it is defined."""
    values = {seed: parts.get(title, {}).get(metric) for seed, parts in metrics.items()}
    return Spread({seed: v for seed, v in values.items() if v is not None and math.isfinite(v)})


def _percents(part: Mapping[str, Any]) -> dict[str, float | None]:
    found = {metric: (part["coco"] or {}).get(metric) for metric in COCO}
    for rule, counted in part["rules"].items():
        found |= {f"{rule}/{name}": counted[name] for name in PER_RULE}
    return {name: None if value is None else 100 * value for name, value in found.items()}
