"""Evaluation of a trained detector.

``predict`` runs the model; ``evaluate_predictions`` needs only its output, so every metric can be
computed again from the predictions files; ``evaluate`` does both and measures the cost.

The score threshold of each rule is chosen on the validation split and applied unchanged to the
test splits.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar, cast

from detectron2.utils import comm
from torch import nn

from v2idetr.atomic_file import write_text_atomically
from v2idetr.data.audit import Findings
from v2idetr.data.coco_vid import SplitData
from v2idetr.data.split_set import check_shared_files
from v2idetr.evaluation.bootstrap import f1_interval
from v2idetr.evaluation.coco_ap import coco_ap as average_precision
from v2idetr.evaluation.cost import measure_cost
from v2idetr.evaluation.frames import LabelledFrame, label_frames
from v2idetr.evaluation.lesion_metrics import (
    VideoCounts,
    choose_threshold,
    get_rule,
    judge,
    summarize,
)
from v2idetr.evaluation.predictions import FramePrediction, predict, write_predictions
from v2idetr.evaluation.table import ALL_TESTS, RESERVED
from v2idetr.wording import counted

logger = logging.getLogger(__name__)

Loader = Iterable[list[dict[str, Any]]]
Result = TypeVar("Result")


def validate(
    model: nn.Module,
    split: SplitData,
    loader: Loader,
    *,
    rules: Sequence[str],
    coco_ap: bool,
    watch: Callable[[Sequence[FramePrediction]], None] | None = None,
) -> dict[str, float]:
    """Metrics of one split during training, as a flat dict for the log and ``best_metric``.

    Each rule uses the threshold with the best F1 on this same split. All ranks must call this and
    get the same metrics. ``watch`` gets the predictions of all frames.

    Returns:
        ``AP, AP50, AP75`` and ``<rule>/f1, /precision, /recall, /threshold``; an undefined metric
        is NaN, which is never better than a number.
    """
    for rule in rules:
        get_rule(rule)
    predictions = predict(model, loader)
    if watch is not None:
        watch(predictions)
    return _on_main_rank(
        lambda: validation_metrics(split, predictions, rules=rules, coco_ap=coco_ap)
    )


def validation_metrics(
    split: SplitData,
    predictions: Iterable[FramePrediction],
    *,
    rules: Sequence[str],
    coco_ap: bool,
) -> dict[str, float]:
    """The metrics of :func:`validate` from predictions."""
    frames = label_frames(split, predictions, name="val")
    flat: dict[str, float | None] = {}
    if coco_ap:
        coco = average_precision(frames, split.class_names)
        flat.update({key: coco[key] for key in ("AP", "AP50", "AP75")})
    for rule in rules:
        outcomes = judge(frames, rule)
        threshold = choose_threshold(outcomes)
        pooled = summarize(outcomes.at(threshold))
        flat.update({f"{rule}/{key}": pooled[key] for key in ("f1", "precision", "recall")})
        flat[f"{rule}/threshold"] = threshold
    return {key: math.nan if value is None else value for key, value in flat.items()}


def evaluate(
    model: nn.Module,
    *,
    val: tuple[SplitData, Loader],
    tests: Mapping[str, tuple[SplitData, Loader]],
    rules: Sequence[str],
    coco_ap: bool,
    progress: bool = False,
    predictions_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Run a detector on validation and test splits; see :func:`evaluate_predictions`.

    All ranks must call this and get the same result.

    Args:
        model: the detector.
        val, tests: each split with a loader of this rank's share of it.
        rules: names in ``lesion_metrics.RULES``.
        coco_ap: whether to compute COCO AP.
        progress: whether to report the progress.
        predictions_dir: folder for ``predictions_<split>.json.gz``; None to write none.

    Returns:
        The result of :func:`evaluate_predictions`, and ``cost`` (see ``cost.measure_cost``) of the
        first validation sample.
    """
    for rule in rules:
        get_rule(rule)
    _check_names(tests)
    predicted = {}
    for name, (split, loader) in {"val": val, **tests}.items():
        if progress:
            logger.info("evaluating %s: %s", name, counted(len(split.records), "frame"))
        predicted[name] = predict(model, loader, progress=progress)
        if predictions_dir is not None and comm.is_main_process():
            path = Path(predictions_dir) / f"predictions_{name}.json.gz"
            write_predictions(path, split, predicted[name])

    # From any rank: with few frames the share of the first one may be empty.
    firsts = comm.all_gather(next(iter(val[1]), [None])[0])
    sample = next(first for first in firsts if first is not None)

    def result() -> dict[str, Any]:
        metrics = evaluate_predictions(
            val=(val[0], predicted["val"]),
            tests={name: (split, predicted[name]) for name, (split, _) in tests.items()},
            rules=rules,
            coco_ap=coco_ap,
        )
        return {**metrics, "cost": measure_cost(model, sample)}

    return _on_main_rank(result)


def evaluate_predictions(
    *,
    val: tuple[SplitData, list[FramePrediction]],
    tests: Mapping[str, tuple[SplitData, list[FramePrediction]]],
    rules: Sequence[str],
    coco_ap: bool,
) -> dict[str, Any]:
    """All metrics of predictions, JSON-able; undefined metrics are None.

    Returns:
        ``class_names``;
        ``thresholds``: {rule: score threshold chosen on ``val``};
        ``val``, ``tests`` {name: metrics}, and ``all_tests``, the test splits pooled (None with
        fewer than two, or where two share a frame). Metrics of a split:
        ``videos, frames, lesions, lesion_free_frames``, ``coco`` (see ``coco_ap``; None if not
        requested), ``rules`` {rule: threshold, counts,
        precision, recall, f1, ``f1_interval`` (bootstrap over videos)}, ``per_video`` (counts and
        metrics by rule), ``groups`` {group of videos: metrics} if videos have groups.

    Raises:
        ValueError: a split is empty, predictions do not fit it, classes differ between splits, a
            rule is unknown.
    """
    _check_names(tests)
    splits = {"val": val, **tests}
    class_names = list(val[0].class_names)
    for name, (split, _) in splits.items():
        if list(split.class_names) != class_names:
            raise ValueError(
                f"{split.json_path}: split {name!r} has classes {split.class_names}, but the "
                f"validation split {val[0].json_path} has {class_names}; make them equal."
            )
        if name != "val" and split.json_path == val[0].json_path:
            logger.warning(
                "Test split %r is the validation split, on which the thresholds are chosen.", name
            )
    frames = {
        name: label_frames(split, predictions, name=name)
        for name, (split, predictions) in splits.items()
    }
    thresholds = {rule: choose_threshold(judge(frames["val"], rule)) for rule in rules}
    overlapping = _overlapping({name: split for name, (split, _) in tests.items()})
    if overlapping is not None:
        logger.warning(
            "Test splits %r and %r share frames, which %r would count twice: it is left out.",
            *overlapping,
            ALL_TESTS,
        )
    pool = overlapping is None
    return metrics_at(thresholds, frames, class_names, coco_ap=coco_ap, pool_tests=pool)


def metrics_at(
    thresholds: Mapping[str, float],
    frames: Mapping[str, Sequence[LabelledFrame]],
    class_names: list[str],
    *,
    coco_ap: bool,
    pool_tests: bool = True,
) -> dict[str, Any]:
    """All metrics at given score thresholds; see :func:`evaluate_predictions`.

    Args:
        thresholds: score threshold of each rule.
        frames: labelled frames of each split; those of "val" are no test split, and may be missing.
        class_names: classes of all splits.
        coco_ap: whether to compute COCO AP.
        pool_tests: whether several test splits are also evaluated as one, ``all_tests``.

    Returns:
        The result of :func:`evaluate_predictions`; ``val`` is None without such frames.
    """
    ap_classes = class_names if coco_ap else None
    metrics = {name: _metrics(part, thresholds, ap_classes) for name, part in frames.items()}
    tests = [name for name in frames if name != "val"]
    pooled = None
    if pool_tests and len(tests) > 1:
        everything = [frame for name in tests for frame in frames[name]]
        pooled = _metrics(everything, thresholds, ap_classes)
    return {
        "class_names": class_names,
        "thresholds": dict(thresholds),
        "val": metrics.get("val"),
        "tests": {name: metrics[name] for name in tests},
        "all_tests": pooled,
    }


def write_evaluation(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all.

    Raises:
        ValueError: ``result`` holds NaN or infinity, which JSON does not know.
    """
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_text_atomically(path, text)


def _check_names(tests: Mapping[str, Any]) -> None:
    for taken in RESERVED:
        if taken in tests:
            raise ValueError(f"data.test: {taken!r} is a reserved name; rename the test split.")


def _overlapping(tests: Mapping[str, SplitData]) -> tuple[str, str] | None:
    """The first two test splits that share a file; None if no file is in two of them."""
    for one, other in combinations(tests, 2):
        shared = Findings()
        check_shared_files({name: tests[name] for name in (one, other)}, shared)
        if len(shared):
            return one, other
    return None


def _on_main_rank(compute: Callable[[], Result]) -> Result:
    """Compute on the main rank and broadcast the result to all ranks."""
    mine = compute() if comm.is_main_process() else None
    return cast(Result, comm.all_gather(mine)[0])


def _metrics(
    frames: Sequence[LabelledFrame], thresholds: Mapping[str, float], ap_classes: list[str] | None
) -> dict[str, Any]:
    """Metrics of frames, and of each group of videos among them."""
    counts = {rule: judge(frames, rule).at(threshold) for rule, threshold in thresholds.items()}
    groups = sorted({frame.video.group for frame in frames if frame.video.group is not None})
    by_group = {
        group: _summary(
            [frame for frame in frames if frame.video.group == group],
            {rule: [c for c in rows if c.video.group == group] for rule, rows in counts.items()},
            thresholds,
            ap_classes,
        )
        for group in groups
    }
    return {
        **_summary(frames, counts, thresholds, ap_classes),
        "per_video": _per_video(counts),
        "groups": by_group,
    }


def _summary(
    frames: Sequence[LabelledFrame],
    counts: Mapping[str, list[VideoCounts]],
    thresholds: Mapping[str, float],
    ap_classes: list[str] | None,
) -> dict[str, Any]:
    lesions = [len(frame.lesions_xyxy_px) for frame in frames]
    return {
        "videos": len({frame.video for frame in frames}),
        "frames": len(frames),
        "lesions": sum(lesions),
        "lesion_free_frames": lesions.count(0),
        "coco": None if ap_classes is None else average_precision(frames, ap_classes),
        "rules": {
            rule: {
                "threshold": thresholds[rule],
                **summarize(rows),
                "f1_interval": f1_interval([(row.tp, row.fp, row.fn) for row in rows]),
            }
            for rule, rows in counts.items()
        },
    }


def _per_video(counts: Mapping[str, list[VideoCounts]]) -> list[dict[str, Any]]:
    """One row per video, with counts and metrics by rule."""
    rows: dict[Any, dict[str, Any]] = {}
    for rule, videos in counts.items():
        for video in videos:
            row = rows.setdefault(
                video.video, {**asdict(video.video), "frames": video.frames, "rules": {}}
            )
            row["rules"][rule] = summarize([video])
    return list(rows.values())
