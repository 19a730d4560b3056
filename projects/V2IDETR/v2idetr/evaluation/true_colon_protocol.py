"""The TRUE-Colon protocol (arXiv 2608.13711), computed by the package ``true-colon``.

Its ids of frames come from file names, which repeat in clips (``000000.png``) and need not end in
the frame's number. It is given names of our own instead, ``split/video/frame_index``. Where its
result is undefined, as rates of false alerts without lesion-free frames, it returns 0: here it is
None, with the reason. Classes are not compared: any detection that overlaps a lesion marks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import true_colon
from true_colon import EvaluationConfig, LesionConfig, ThresholdSearchResult

from v2idetr.evaluation.frames import LabelledFrame
from v2idetr.evaluation.pool import Pool
from v2idetr.evaluation.predictions import SCORE_DECIMALS, coco_results

TARGET_ALERT_RATE = true_colon.create_config().threshold.target_fpr
LESION_KEY = "unique_id"
ALL_TIERS = ("frame", "frame_sweep", "lesion", "froc", "afroc")
POINT_TIERS = ("frame", "lesion")
LOWEST_THRESHOLD = 1e-9  # at 0 frames without a detection would count as detected
# Fields of a tier that need lesions, lesion-free frames, the frame rate.
NEED_LESIONS = {
    "frame": ("tp", "fn", "precision", "recall", "sensitivity", "tpr", "f1", "f2"),
    "frame_sweep": ("tp", "fn", "tpr", "precision", "f1", "f2", "selected"),
    "froc": ("tpr_loc",),
    "afroc": ("tpr_loc",),
}
NEED_LESION_FREE = {
    "frame": ("fp", "tn", "precision", "specificity", "fpr", "f1", "f2"),
    "frame_sweep": ("fp", "tn", "fpr", "precision", "specificity", "f1", "f2", "selected"),
    "afroc": ("fpf",),
}
SECONDS = ("latency_seconds", "mean_latency_seconds")


@dataclass(frozen=True)
class FrameNames:
    """Names of frames that are ids as they are, ``split/video/frame_index``."""

    name: str = "split/video/frame_index"

    def canonical(self, raw: str) -> str | None:
        """The id of a frame: its name."""
        return raw

    def frame_index(self, canonical: str) -> int | None:
        """The index of a frame."""
        return int(canonical.rpartition("/")[2])


def match_alert_rate(
    pool: Pool, frames: Sequence[LabelledFrame], target: float
) -> ThresholdSearchResult:
    """The package's matched threshold: at most ``target`` of the lesion-free frames alert at it.

    It is the lowest such among the scores of lesion-free frames, as the package searches only
    these; a threshold between two of them can be lower and keep to the target, too (see
    ``operating_point``). It is for comparisons with other work.

    Where no alert at all is allowed (fewer than 1 / ``target`` lesion-free frames), the package's
    search ends above all possible scores; here just above the highest score on these frames.

    Args:
        pool, frames: all frames of the pool, with predictions; some must be lesion-free.
        target: the share.
    """
    assert pool.lesion_free_frames
    evaluator = _evaluator(pool, 0.5, POINT_TIERS)
    found = evaluator.match_operating_point(
        coco_ground_truth(pool), detections(frames), target_fpr=target
    )
    if found.threshold <= 1.0:
        return found
    on_lesions, on_others = frame_scores(pool, frames)
    threshold = round(max(on_others) + 10.0**-SCORE_DECIMALS, SCORE_DECIMALS)
    sensitivity, alert_rate = true_colon.evaluate_at_threshold(on_lesions, on_others, threshold)
    return replace(found, threshold=threshold, achieved_tpr=sensitivity, achieved_fpr=alert_rate)


def apply_protocol(
    pool: Pool,
    frames: Sequence[LabelledFrame],
    threshold: float,
    tiers: Sequence[str] = ALL_TIERS,
) -> dict[str, Any]:
    """The protocol's tiers at a threshold.

    Args:
        pool, frames: all frames of the pool, with predictions.
        threshold: operating point of the tiers "frame" and "lesion".
        tiers: those of ``ALL_TIERS`` that are computed.

    Returns:
        the package's result as a dict, with None where a value is undefined, and ``undefined``:
        [{"what", "why"}]. The lesions of ``lesion.records`` have a ``video`` and ``lesion`` of the
        ground truth instead of the package's ids.
    """
    named = any(a["instance_id"] is not None for r in pool.records for a in r["annotations"])
    used = [tier for tier in tiers if tier != "lesion" or named]
    evaluator = _evaluator(pool, max(threshold, LOWEST_THRESHOLD), used)
    result = true_colon.result_to_dict(
        evaluator.evaluate(coco_ground_truth(pool), detections(frames))
    )
    result["undefined"] = _clear_undefined(result, pool, tiers, named)
    if result["lesion"] is not None:
        _name_lesions(result["lesion"]["records"], pool)
    return result


def frame_alerts(
    pool: Pool, frames: Sequence[LabelledFrame], threshold: float
) -> list[tuple[LabelledFrame, bool]]:
    """Each frame, and whether it alerts by the protocol's frame tier.

    A frame with a lesion alerts if a detection overlaps a lesion, a lesion-free one by any.
    """
    on_lesions, on_others = frame_scores(pool, frames)
    by_kind = {True: iter(on_lesions), False: iter(on_others)}  # each in the frames' order
    threshold = max(threshold, LOWEST_THRESHOLD)
    return [
        (frame, next(by_kind[bool(len(frame.lesions_xyxy_px))]) >= threshold) for frame in frames
    ]


def frame_scores(pool: Pool, frames: Sequence[LabelledFrame]) -> tuple[list[float], list[float]]:
    """Score up to which frames with a lesion, and those without one, alert; 0 for never."""
    config = true_colon.create_config()
    results = true_colon.filter_top_k_per_image(
        detections(frames), max_det_per_image=config.max_det_per_image
    )
    return true_colon.per_frame_max_scores(coco_ground_truth(pool), results, iou_thr=config.iou_thr)


def coco_ground_truth(pool: Pool) -> dict[str, Any]:
    """The pool as a COCO dict: images numbered from 1, file names as of :class:`FrameNames`."""
    images, annotations = [], []
    for number, (split, record) in enumerate(zip(pool.splits, pool.records, strict=True), start=1):
        video = f"{split}/{record['video_id']}"
        images.append(
            {
                "id": number,
                "file_name": f"{video}/{record['frame_index']}",
                "width": record["width"],
                "height": record["height"],
            }
        )
        for annotation in record["annotations"]:
            x, y, w, h = (float(value) for value in annotation["bbox"])
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": annotation["category_id"] + 1,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
            if annotation["instance_id"] is not None:
                entry[LESION_KEY] = f"{video}/{annotation['instance_id']}"
            annotations.append(entry)
    categories = [{"id": k, "name": name} for k, name in enumerate(pool.class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def detections(frames: Sequence[LabelledFrame]) -> list[dict[str, Any]]:
    """The predictions of all frames of a pool as COCO results for :func:`coco_ground_truth`."""
    return [
        {**entry, "image_id": number}
        for number, frame in enumerate(frames, start=1)
        for entry in coco_results(frame.prediction)
    ]


def _evaluator(pool: Pool, threshold: float, tiers: Sequence[str]) -> true_colon.Evaluator:
    lesion = LesionConfig(lesion_id_key=LESION_KEY, fps=pool.frame_rate_hz or LesionConfig().fps)
    config = EvaluationConfig(conf=threshold, tiers=frozenset(tiers), lesion=lesion)
    return true_colon.create_evaluator(
        canonicalizer=FrameNames(), id_source="gt_integer", config=config
    )


def _clear_undefined(
    result: dict[str, Any], pool: Pool, tiers: Sequence[str], named: bool
) -> list[dict[str, str]]:
    """Replace what is undefined by None; returns what and why."""
    undefined = []

    def clear(needs: dict[str, tuple[str, ...]], what: str, why: str) -> None:
        for tier in set(needs) & set(tiers):
            for key in needs[tier]:
                result[tier][key] = None
        undefined.append({"what": what, "why": why})

    lesion_frames = len(pool.records) - pool.lesion_free_frames
    if not lesion_frames:
        clear(NEED_LESIONS, "Sensitivity, precision, FROC and AFROC", "there are no lesions")
    if not pool.lesion_free_frames:
        what = "False-alert rate, specificity, frame precision and AFROC"
        clear(
            NEED_LESION_FREE,
            what,
            "there are no lesion-free frames: evaluate also videos without lesions",
        )
    if "lesion" in tiers and not named and lesion_frames:
        why = "the ground truth does not say which boxes are one lesion: add instance_id"
        undefined.append(
            {"what": "Latency, persistence and all about lesions over time", "why": why}
        )
    if lesion_frames and pool.lesion_free_frames:
        undefined += _clear_precision(result)
    if result["lesion"] is not None:
        undefined += _unnamed_boxes(pool) + _clear_times(result["lesion"], pool)
    return undefined


def _clear_precision(result: dict[str, Any]) -> list[dict[str, str]]:
    """Replace the precision by None where no frame alerts; a reason for the operating point."""
    tier, sweep = result["frame"], result["frame_sweep"]
    if sweep is not None:
        counts = zip(sweep["precision"], sweep["tp"], sweep["fp"], strict=True)
        sweep["precision"] = [value if tp + fp else None for value, tp, fp in counts]
    rows = [*(sweep["selected"] if sweep else ()), *([tier] if tier else ())]
    for row in rows:
        if not row["tp"] + row["fp"]:
            row["precision"] = None
    if tier is None or tier["precision"] is not None:
        return []
    return [{"what": "Frame precision", "why": "no frame alerts at the threshold"}]


def _unnamed_boxes(pool: Pool) -> list[dict[str, str]]:
    ids = [a["instance_id"] for record in pool.records for a in record["annotations"]]
    if not (missing := ids.count(None)):
        return []
    what = f"Latency and persistence for {missing} of {len(ids)} boxes"
    return [{"what": what, "why": "they have no instance_id and are not in the lesion tier"}]


def _clear_times(lesion: dict[str, Any], pool: Pool) -> list[dict[str, str]]:
    rows = [lesion["summary"], *lesion["records"]]
    settings = LesionConfig()
    windows, most = settings.latency_windows_seconds, settings.min_detected_frames_in_window
    longest = max(record["n_frames_visible"] for record in lesion["records"])

    def clear(keys: Sequence[str], what: str, why: str) -> list[dict[str, str]]:
        for row in rows:
            row |= dict.fromkeys(row.keys() & set(keys))
        return [{"what": what, "why": why}]

    def within(seconds: Sequence[int]) -> list[str]:
        return [f"detected_within_{s}s" for s in seconds]

    if (rate := pool.frame_rate_hz) is None:
        what = "Latency in seconds, lesions detected within seconds"
        why = "the frame rate is unknown, or differs between videos: give --fps"
        return clear([*SECONDS, *within(windows)], what, why)
    if longest < most:
        why = f"the protocol wants {most} frames with a detection, and no lesion is shown on more "
        why += f"than {longest}"
        return clear(within(windows), "Lesions detected within seconds", why)
    labelled_hz = rate / pool.step
    if short := [s for s in windows if int(s * labelled_hz) < most]:
        what = f"Lesions detected within {', '.join(map(str, short))} s"
        why = f"the protocol wants {most} frames with a detection, and {labelled_hz:g} labelled "
        return clear(within(short), what, why + "frames a second are fewer")
    return []


def _name_lesions(records: list[dict[str, Any]], pool: Pool) -> None:
    for record in records:
        split, video_id, instance = record.pop("lesion_id").rsplit("/", 2)
        del record["video_name"]
        truth, number = pool.truths[split], int(video_id)
        record |= {
            "split": split,
            "video_id": number,
            "video": str(truth.split.videos[number]["name"]),
            "lesion": truth.lesion_names[number, int(instance)],
        }
