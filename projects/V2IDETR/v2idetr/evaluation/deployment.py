"""What a detector is worth on live video: metrics, false alarms over time, the TRUE-Colon protocol.

read     files -> `Detector`s on one `Pool` of ground truths
assess   -> one dict for a JSON file, with a paired comparison of the first detector with the others
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from v2idetr.evaluation.bootstrap import draw_videos, percentiles
from v2idetr.evaluation.coco_ap import ResampledAP
from v2idetr.evaluation.comparison import compare_ratios
from v2idetr.evaluation.deployment_tables import (
    alert_ratios,
    by_size,
    by_video,
    lesion_intervals,
    rule_ratios,
    videos_of,
    with_interval,
)
from v2idetr.evaluation.evaluator import metrics_at
from v2idetr.evaluation.frames import LabelledFrame
from v2idetr.evaluation.lesion_metrics import judge, sweep
from v2idetr.evaluation.operating_point import Choice, OperatingPoint, choose
from v2idetr.evaluation.pool import Pool
from v2idetr.evaluation.rule_names import RULE_NAMES
from v2idetr.evaluation.true_colon_protocol import (
    POINT_TIERS,
    TARGET_ALERT_RATE,
    apply_protocol,
    match_alert_rate,
)

MOST_AP_RESAMPLES = 200  # an AP of all frames takes as long as a thousand ratios
AP_KEYS = ("AP", "AP50", "AP75")
MOST_POINTS = 400  # of a curve in the JSON

Wrap = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Settings:
    """How detectors are assessed.

    Attributes:
        choice: what thresholds are chosen by, on validation data.
        rule: rule of ``lesion_metrics`` whose threshold is the operating point of all that is no
            rule's own.
        alert_rate: share of the lesion-free frames at which TRUE-Colon compares detectors.
        resamples: of the bootstrap; AP has at most ``MOST_AP_RESAMPLES``.
    """

    choice: Choice = field(default_factory=Choice)
    rule: str = RULE_NAMES[0]
    alert_rate: float = TARGET_ALERT_RATE
    resamples: int = 1000


@dataclass(frozen=True)
class Detector:
    """A detector's predictions, joined with the ground truth.

    Attributes:
        files: its files, for the record.
        tests: labelled frames by split of the pool.
        val: all labelled frames of the validation pool; None without.
        threshold: fixed by the user; None to choose one.
    """

    name: str
    files: Sequence[str]
    tests: Mapping[str, list[LabelledFrame]]
    val: Sequence[LabelledFrame] | None = None
    threshold: float | None = None

    @property
    def frames(self) -> list[LabelledFrame]:
        """All frames of the tests, in the order of the pool's records."""
        return [frame for frames in self.tests.values() for frame in frames]


def assess(
    detectors: Sequence[Detector],
    pool: Pool,
    val_pool: Pool | None,
    settings: Settings,
    wrap: Wrap = lambda items, title: items,
) -> dict[str, Any]:
    """Assess detectors on the same ground truth; compare the first one with each of the others.

    Args:
        detectors: at least one, with different names.
        pool, val_pool: ground truths of their ``tests`` and ``val``.
        settings: see :class:`Settings`.
        wrap: shows the progress over an iterable with a title.

    Returns:
        a JSON-able dict; undefined values are None.
    """
    results = {
        detector.name: _assess_one(detector, pool, val_pool, settings, wrap)
        for detector in detectors
    }
    first, *others = detectors
    return {
        "class_names": pool.class_names,
        "rule": settings.rule,
        "choice": {"by": settings.choice.by, "target": settings.choice.target},
        "chosen_on": _chosen_on(detectors, val_pool),
        "remarks": pool_remarks(pool, val_pool),
        "ground_truth": [_truth_row(pool, name) for name in pool.truths],
        "validation": None
        if val_pool is None
        else [_truth_row(val_pool, n) for n in val_pool.truths],
        "detectors": results,
        "comparison": [
            {
                "ours": first.name,
                "theirs": other.name,
                "metrics": _compare(first, other, pool, results, settings),
            }
            for other in others
        ],
    }


def _chosen_on(detectors: Sequence[Detector], val_pool: Pool | None) -> str:
    if all(detector.threshold is not None for detector in detectors):
        return "fixed"
    return "test" if val_pool is None else "validation"


def pool_remarks(pool: Pool, val_pool: Pool | None) -> list[str]:
    """Doubts about the data, in sentences."""
    remarks = []
    if val_pool is not None:
        mine, other = ({r["file_name"] for r in p.records} for p in (pool, val_pool))
        if shared := len(mine & other):
            remarks.append(
                f"{shared} of {len(other)} validation frames are test frames, too: the choice of "
                "the threshold has seen test data."
            )
    files = {n: {r["file_name"] for r in t.split.records} for n, t in pool.truths.items()}
    for one, other in combinations(files, 2):
        if shared := len(files[one] & files[other]):
            remarks.append(f"{shared} frames of {one} are frames of {other}, too, and count twice.")
    for truth in pool.truths.values():
        remarks += [f"{truth.split.json_path.name}: {note}" for note in truth.notes]
    if len({(s, r["video_id"]) for s, r in zip(pool.splits, pool.records, strict=True)}) < 2:
        remarks.append("There is one video: intervals and tests over videos are not possible.")
    return remarks


def _truth_row(pool: Pool, name: str) -> dict[str, Any]:
    truth = pool.truths[name]
    records = truth.split.records
    used = {record["video_id"] for record in records}
    lengths = [length for length in truth.minutes().values() if length is not None]
    return {
        "name": name,
        "json": str(truth.split.json_path),
        "videos": len(used),
        "frames": len(records),
        "lesion_free_frames": sum(not record["annotations"] for record in records),
        "boxes": sum(len(record["annotations"]) for record in records),
        "frame_rates_hz": sorted({r for i in used if (r := truth.frame_rates_hz[i]) is not None}),
        "minutes": sum(lengths) if len(lengths) == len(used) else None,
    }


def _assess_one(
    detector: Detector, pool: Pool, val_pool: Pool | None, settings: Settings, wrap: Wrap
) -> dict[str, Any]:
    frames = detector.frames
    on_pool, on_frames = (pool, frames) if val_pool is None else (val_pool, detector.val)
    assert on_frames is not None
    points = {
        rule: _operating_point(detector, rule, on_pool, on_frames, settings) for rule in RULE_NAMES
    }
    thresholds = {rule: point.threshold for rule, point in points.items()}
    val = {} if val_pool is None else {"val": on_frames}
    threshold = thresholds[settings.rule]
    protocol = apply_protocol(pool, frames, threshold)
    records = protocol["lesion"]["records"] if protocol["lesion"] else []
    return {
        "files": list(detector.files),
        "operating_points": {rule: point.as_dict() for rule, point in points.items()},
        "metrics": metrics_at(
            thresholds, {**val, **detector.tests}, pool.class_names, coco_ap=True
        ),
        "ap": _ap_with_intervals(frames, pool.class_names, settings, wrap, detector.name),
        "rules": {
            rule: {
                key: with_interval(metric, settings.resamples)
                for key, metric in rule_ratios(pool, frames, rule, thresholds[rule]).items()
            }
            for rule in RULE_NAMES
        },
        "alerts": {
            key: with_interval(metric, settings.resamples)
            for key, metric in alert_ratios(pool, frames, threshold).items()
        },
        "true_colon": protocol,
        "lesions": lesion_intervals(frames, records, settings.resamples) if records else None,
        "matched": _matched(on_pool, on_frames, pool, frames, settings),
        "by_size": by_size(pool, frames, thresholds, settings.resamples),
        "by_video": by_video(pool, frames, thresholds, settings.rule),
        "f1_curves": {rule: _f1_curve(frames, rule) for rule in RULE_NAMES},
    }


def _operating_point(
    detector: Detector, rule: str, pool: Pool, frames: Sequence[LabelledFrame], settings: Settings
) -> OperatingPoint:
    if detector.threshold is not None:
        return OperatingPoint(detector.threshold, None, True)
    return choose(settings.choice, rule, pool, frames)


def _matched(
    on_pool: Pool,
    on_frames: Sequence[LabelledFrame],
    pool: Pool,
    frames: Sequence[LabelledFrame],
    settings: Settings,
) -> dict[str, Any]:
    """TRUE-Colon at its matched false-alert rate; the threshold is from ``on_pool``."""
    result: dict[str, Any] = {"target": settings.alert_rate, "threshold": None, "why_not": None}
    if not on_pool.lesion_free_frames:
        where = "data" if on_pool is pool else "validation data"
        return result | {"why_not": f"the {where} have no lesion-free frames to match on"}
    found = match_alert_rate(on_pool, on_frames, settings.alert_rate)
    result |= {"threshold": found.threshold, "achieved_where_matched": found.achieved_fpr}
    result |= {"feasible": found.feasible, "lesion_free_frames": found.n_neg_frames}
    result["alerts"] = {
        key: with_interval(metric, settings.resamples)
        for key, metric in alert_ratios(pool, frames, found.threshold).items()
    }
    protocol = apply_protocol(pool, frames, found.threshold, POINT_TIERS)
    records = protocol["lesion"]["records"] if protocol["lesion"] else []
    lesions = lesion_intervals(frames, records, settings.resamples) if records else None
    return result | {"true_colon": protocol, "lesions": lesions}


def _ap_with_intervals(
    frames: Sequence[LabelledFrame],
    class_names: list[str],
    settings: Settings,
    wrap: Wrap,
    name: str,
) -> dict[str, Any]:
    """AP of all frames with intervals over videos, and the resampled values, for comparisons."""
    ap = ResampledAP(frames, class_names)
    whole = ap(range(len(frames)))
    resampled: list[list[float]] = []
    videos = videos_of(frames)
    if len(videos) > 1 and whole["AP"] is not None:
        members = {video: [i for i, f in enumerate(frames) if f.video == video] for video in videos}
        lists = [members[video] for video in videos]
        drawn = draw_videos(len(videos), min(settings.resamples, MOST_AP_RESAMPLES))
        for choice in wrap(drawn, f"{name}: intervals of AP"):
            values = ap([i for video in choice for i in lists[video]])
            resampled.append([np.nan if (v := values[key]) is None else v for key in AP_KEYS])
    columns = np.array(resampled).reshape(-1, len(AP_KEYS)).T
    return {
        key: {
            "value": whole[key],
            "interval": percentiles(column) if column.size else None,
            "resampled": [None if np.isnan(v) else float(v) for v in column],
        }
        for key, column in zip(AP_KEYS, columns, strict=True)
    }


def _f1_curve(frames: Sequence[LabelledFrame], rule: str) -> dict[str, list[float]]:
    curve = sweep(judge(frames, rule))
    some = np.unique(np.linspace(0, len(curve.thresholds) - 1, MOST_POINTS).round().astype(int))
    some = some if len(curve.thresholds) else np.zeros(0, dtype=int)
    return {"thresholds": curve.thresholds[some].tolist(), "f1": curve.f1[some].tolist()}


def _compare(
    ours: Detector,
    theirs: Detector,
    pool: Pool,
    results: Mapping[str, Mapping[str, Any]],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Rows of metric, values, difference, interval, p-value; each detector at its own threshold."""
    pair = [(detector.frames, results[detector.name]) for detector in (ours, theirs)]
    rows = []
    for rule in RULE_NAMES:
        both = [
            rule_ratios(pool, frames, rule, result["operating_points"][rule]["threshold"])
            for frames, result in pair
        ]
        alarms = "false_alarms_a_minute"
        alarms = alarms if alarms in both[0] else "false_alarms_a_frame"
        for key in ("f1", "recall", "precision", alarms):
            compared = compare_ratios(both[0][key], both[1][key], resamples=settings.resamples)
            rows.append({"metric": key, "rule": rule, "at": "own threshold", **compared})
    if all(result["matched"]["threshold"] is not None for _, result in pair):
        both = [alert_ratios(pool, f, result["matched"]["threshold"]) for f, result in pair]
        for key in ("frame_sensitivity", "alert_rate"):
            compared = compare_ratios(both[0][key], both[1][key], resamples=settings.resamples)
            rows.append({"metric": key, "rule": None, "at": "matched alert rate", **compared})
    return rows + [_compare_ap(key, *(result["ap"][key] for _, result in pair)) for key in AP_KEYS]


def _compare_ap(key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    row = {"metric": key, "rule": None, "at": "all thresholds"}
    row |= {"ours": ours["value"], "theirs": theirs["value"]}
    row |= dict.fromkeys(("difference", "interval", "p_value", "exact", "differing_videos"))
    if ours["value"] is not None and theirs["value"] is not None:
        row["difference"] = ours["value"] - theirs["value"]
        drawn = [np.array(ap["resampled"], dtype=float) for ap in (ours, theirs)]
        row["interval"] = percentiles(drawn[0] - drawn[1]) if drawn[0].size else None
    return row
