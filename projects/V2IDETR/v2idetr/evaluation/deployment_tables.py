"""Metrics of a detector by video and by lesion size, and with intervals over videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from v2idetr.evaluation.bootstrap import ratio_interval
from v2idetr.evaluation.comparison import VideoRatio
from v2idetr.evaluation.false_alarms import alarms_by_video
from v2idetr.evaluation.frames import LabelledFrame, Video
from v2idetr.evaluation.lesion_groups import found_lesions
from v2idetr.evaluation.lesion_metrics import judge, summarize
from v2idetr.evaluation.pool import Pool
from v2idetr.evaluation.true_colon_protocol import frame_alerts

SIZES = ("smallest third", "middle third", "largest third")


def videos_of(frames: Sequence[LabelledFrame]) -> list[Video]:
    """The videos, in the order of `frames` and of all rows here."""
    return list(dict.fromkeys(frame.video for frame in frames))


def rule_ratios(
    pool: Pool, frames: Sequence[LabelledFrame], rule: str, threshold: float
) -> dict[str, VideoRatio]:
    """Precision, recall, F1 and false alarms of a rule as ratios of sums over videos.

    Keys: ``precision, recall, f1, false_boxes_a_frame, false_alarms_a_frame``, and, where the frame
    rate is known, ``false_boxes_a_minute, false_alarms_a_minute``.
    """
    rows = judge(frames, rule).at(threshold)
    tp, fp, fn, total = (
        np.array([getattr(row, key) for row in rows], dtype=float)
        for key in ("tp", "fp", "fn", "frames")
    )
    by_video = alarms_by_video(pool, frames, rule, threshold)
    alarms = np.array([by_video[row.video.split, row.video.video_id] for row in rows], dtype=float)
    ratios = {
        "precision": VideoRatio(tp, tp + fp),
        "recall": VideoRatio(tp, tp + fn),
        "f1": VideoRatio(2 * tp, 2 * tp + fp + fn),
        "false_boxes_a_frame": VideoRatio(fp, total),
        "false_alarms_a_frame": VideoRatio(alarms, total),
    }
    minutes = pool.minutes_of([row.video for row in rows])
    if minutes is not None:
        ratios["false_boxes_a_minute"] = VideoRatio(fp, np.array(minutes))
        ratios["false_alarms_a_minute"] = VideoRatio(alarms, np.array(minutes))
    return ratios


def alert_ratios(
    pool: Pool, frames: Sequence[LabelledFrame], threshold: float
) -> dict[str, VideoRatio]:
    """TRUE-Colon's frame sensitivity and false-alert rate as ratios of sums over videos."""
    videos = videos_of(frames)
    counts = {video: [0, 0, 0, 0] for video in videos}
    for frame, alerts in frame_alerts(pool, frames, threshold):
        kind = 0 if len(frame.lesions_xyxy_px) else 2
        counts[frame.video][kind] += alerts
        counts[frame.video][kind + 1] += 1
    columns = np.array([counts[video] for video in videos], dtype=float).T
    return {
        "frame_sensitivity": VideoRatio(columns[0], columns[1]),
        "alert_rate": VideoRatio(columns[2], columns[3]),
    }


def with_interval(metric: VideoRatio, resamples: int) -> dict[str, Any]:
    """``value`` of all videos and its 95 % ``interval`` over videos; None where undefined."""
    parts, wholes = metric.parts.tolist(), metric.wholes.tolist()
    value = metric.value()
    interval = None if value is None else ratio_interval(parts, wholes, resamples=resamples)
    return {"value": value, "interval": interval}


def by_video(
    pool: Pool, frames: Sequence[LabelledFrame], thresholds: Mapping[str, float], main_rule: str
) -> list[dict[str, Any]]:
    """One row per video: size, counts and metrics by rule, false alarms, TRUE-Colon's alerts."""
    counts = {rule: judge(frames, rule).at(t) for rule, t in thresholds.items()}
    alarms = {
        rule: alarms_by_video(pool, frames, rule, threshold)
        for rule, threshold in thresholds.items()
    }
    alerts = alert_ratios(pool, frames, thresholds[main_rule])
    free, alerting = alerts["alert_rate"].wholes, alerts["alert_rate"].parts
    rows = []
    for index, video in enumerate(videos_of(frames)):
        key = video.split, video.video_id
        minutes = pool.minutes[key]
        rules = {}
        for rule, videos in counts.items():
            number = alarms[rule][key]
            rules[rule] = {
                **summarize([videos[index]]),
                "false_alarms": number,
                "false_alarms_a_minute": None if minutes is None else number / minutes,
            }
        rows.append(
            {
                **asdict(video),
                "frames": counts[main_rule][index].frames,
                "minutes": minutes,
                "lesion_free_frames": int(free[index]),
                "alerting_lesion_free_frames": int(alerting[index]),
                "rules": rules,
            }
        )
    return rows


def by_size(
    pool: Pool,
    frames: Sequence[LabelledFrame],
    thresholds: Mapping[str, float],
    resamples: int,
) -> list[dict[str, Any]]:
    """Recall of the thirds of all lesions by size, the square root of their share of the frame."""
    areas, owners = [], []
    video_index = {video: i for i, video in enumerate(videos_of(frames))}
    for record, frame in zip(pool.records, frames, strict=True):
        sides = frame.lesions_xyxy_px[:, 2:] - frame.lesions_xyxy_px[:, :2]
        areas += (sides.prod(axis=1) / (record["width"] * record["height"])).tolist()
        owners += [video_index[frame.video]] * len(sides)
    if not areas:
        return []
    sizes, owner = np.sqrt(np.array(areas)), np.array(owners)
    found = {rule: found_lesions(frames, rule, t) for rule, t in thresholds.items()}
    low, high = np.quantile(sizes, [1 / 3, 2 / 3])
    thirds = (sizes <= low, (sizes > low) & (sizes <= high), sizes > high)
    rows = []
    for title, members in zip(SIZES, thirds, strict=True):
        if not members.any():
            continue
        wholes = np.bincount(owner[members], minlength=len(video_index)).astype(float)
        row = {
            "size": title,
            "from": float(sizes[members].min()),
            "to": float(sizes[members].max()),
            "lesions": int(members.sum()),
            "rules": {},
        }
        for rule, hits in found.items():
            parts = np.bincount(owner[members & hits], minlength=len(video_index)).astype(float)
            recall = with_interval(VideoRatio(parts, wholes), resamples)
            row["rules"][rule] = {"found": int((members & hits).sum()), "recall": recall}
        rows.append(row)
    if len(rows) == 1:
        rows[0]["size"] = "all of one size"
    return rows


def lesion_intervals(
    frames: Sequence[LabelledFrame], records: Sequence[Mapping[str, Any]], resamples: int
) -> dict[str, Any]:
    """95 % intervals over videos of TRUE-Colon's lesion tier, from its records."""
    videos = [(video.split, video.video_id) for video in videos_of(frames)]
    index = {video: i for i, video in enumerate(videos)}
    owner = np.array([index[row["split"], row["video_id"]] for row in records])

    def interval(values: Sequence[float | int | None]) -> dict[str, Any]:
        known = np.array([value is not None for value in values])
        numbers = np.array([value or 0.0 for value in values], dtype=float)
        parts = np.bincount(owner, weights=numbers * known, minlength=len(videos))
        wholes = np.bincount(owner, weights=known, minlength=len(videos))
        return with_interval(VideoRatio(parts, wholes), resamples)

    return {
        "detected_any": interval([float(row["detected_any"]) for row in records]),
        "detected_25pct": interval([float(row["detected_25pct"]) for row in records]),
        "detected_50pct": interval([float(row["detected_50pct"]) for row in records]),
        "det_fraction": interval([row["det_fraction"] for row in records]),
        "latency_frames": interval([row["latency_frames"] for row in records]),
    }
