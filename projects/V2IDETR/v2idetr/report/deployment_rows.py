"""Rows of the deployment report's tables, from the dict of ``evaluation.deployment.assess``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from v2idetr.evaluation.rule_names import RULE_TITLES

Content = Mapping[str, Any]

RULE_HEADINGS = {rule: f"{title} ({rule})" for rule, title in RULE_TITLES.items()}
METRIC_TITLES = {
    "f1": "F1",
    "recall": "Recall",
    "precision": "Precision",
    "false_alarms_a_minute": "False alarms a minute",
    "false_alarms_a_frame": "False alarms a frame",
    "frame_sensitivity": "Sensitivity by frame",
    "alert_rate": "False-alert rate",
}
NOTHING = "–"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Cell:
    """A value as text, and its interval or another remark below it."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Row:
    """One metric of all detectors."""

    name: str
    note: str
    cells: list[Cell]


@dataclass(frozen=True)
class Section:
    """Rows of one kind."""

    title: str
    rows: list[Row]


def percent(value: float | None) -> str:
    """A share in percent, without the sign."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """A rate or duration with three digits or so."""
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


Form = Callable[[float | None], str]


def cell_of(metric: Mapping[str, Any] | None, form: Form) -> Cell:
    if metric is None or metric["value"] is None:
        return Cell(NOTHING)
    low_high = metric.get("interval")
    small = f"{form(low_high[0])} to {form(low_high[1])}" if low_high else ""
    return Cell(form(metric["value"]), small)


def threshold_of(result: Mapping[str, Any], rule: str) -> float:
    """A detector's threshold by a rule."""
    return result["operating_points"][rule]["threshold"]


def overview(content: Content) -> list[Section]:
    """The table of all detectors."""
    results = list(content["detectors"].values())

    def row(name: str, note: str, pick: Callable[[Any], Cell]) -> Row:
        return Row(name, note, [pick(result) for result in results])

    def metric(name: str, note: str, pick: Callable[[Any], Any], form: Form = percent) -> Row:
        return row(name, note, lambda result: cell_of(pick(result), form))

    sections = [
        Section(
            "Average precision, without a threshold",
            [
                metric(key, note, lambda r, key=key: r["ap"][key])
                for key, note in (
                    ("AP50", "at IoU 0.5"),
                    ("AP75", "at IoU 0.75"),
                    ("AP", "mean over IoU 0.5 to 0.95"),
                )
            ],
        )
    ]
    for rule, title in RULE_HEADINGS.items():
        sections.append(Section(title, _rule_rows(rule, content, row, metric)))
    sections.append(
        Section(
            f"TRUE-Colon, at the threshold of {content['rule']}",
            _protocol_rows(row, metric, lambda r: r),
        )
    )
    if all(result["matched"]["threshold"] is not None for result in results):
        target = results[0]["matched"]["target"]
        head = row("Threshold", "", lambda r: Cell(f"{r['matched']['threshold']:.3f}"))
        title = f"TRUE-Colon, matched at a false-alert rate of {100 * target:g}\u00a0%"
        sections.append(
            Section(title, [head, *_protocol_rows(row, metric, lambda r: r["matched"])])
        )
    return sections


def _rule_rows(rule: str, content: Content, row: Any, metric: Any) -> list[Row]:
    results = list(content["detectors"].values())
    rows = [row("Threshold", "", lambda r: Cell(f"{threshold_of(r, rule):.3f}"))]
    rows += [
        metric(METRIC_TITLES[key], note, lambda r, key=key: r["rules"][rule][key])
        for key, note in (
            ("f1", ""),
            ("precision", "share of detections that are right"),
            ("recall", "share of lesions that are found, frame by frame"),
        )
    ]
    minute = "false_alarms_a_minute" in results[0]["rules"][rule]
    unit = "minute" if minute else "frame"
    for key, title, note in (
        ("false_alarms", "False alarms", "runs of frames with a wrong box"),
        ("false_boxes", "Wrong boxes", "each on each frame"),
    ):
        name = f"{key}_a_{unit}"
        rows.append(
            metric(f"{title} a {unit}", note, lambda r, name=name: r["rules"][rule][name], number)
        )
    return rows


def _protocol_rows(row: Any, metric: Any, part: Callable[[Any], Any]) -> list[Row]:
    """Rows of the frame and lesion tiers; ``part`` is the result or its matched operating point."""
    rows = [
        metric(
            "Sensitivity by frame",
            "frames with a lesion that a detection overlaps",
            lambda r: part(r)["alerts"]["frame_sensitivity"],
        ),
        metric(
            "False-alert rate",
            "lesion-free frames with any detection",
            lambda r: part(r)["alerts"]["alert_rate"],
        ),
    ]

    def summary_of(result: Any) -> Any:
        lesion = part(result)["true_colon"]["lesion"]
        return None if lesion is None else lesion["summary"]

    def share(result: Any, key: str) -> Cell:
        whole = summary_of(result)
        if whole is None:
            return Cell(NOTHING)
        cell = cell_of(part(result)["lesions"][key], percent)
        counts = f"{whole[key]} of {whole['n_lesions']}"
        return Cell(cell.text, f"{counts}; {cell.small}" if cell.small else counts)

    def latency(result: Any) -> Cell:
        whole = summary_of(result)
        if whole is None or whole["mean_latency_frames"] is None:
            return Cell(NOTHING)
        cell = cell_of(part(result)["lesions"]["latency_frames"], number)
        seconds = whole["mean_latency_seconds"]
        small = [cell.small] if cell.small else []
        small += [] if seconds is None else [f"{number(seconds)} s"]
        small.append(f"of {whole['n_latency_lesions']} lesions")
        return Cell(cell.text, "; ".join(small))

    def within(result: Any, seconds: int) -> Cell:
        whole = summary_of(result)
        count = None if whole is None else whole[f"detected_within_{seconds}s"]
        return Cell(NOTHING if count is None else f"{count} of {(whole or {})['n_lesions']}")

    for key, title, note in (
        ("detected_any", "Lesions marked", "on at least one frame"),
        ("detected_25pct", "Lesions marked on 25 %", "of the frames that show them"),
        ("detected_50pct", "Lesions marked on 50 %", "of the frames that show them"),
    ):
        rows.append(row(title, note, lambda r, key=key: share(r, key)))
    persistence = "mean share of a lesion's frames that are marked"
    rows.append(
        metric("Persistence", persistence, lambda r: (part(r)["lesions"] or {}).get("det_fraction"))
    )
    rows.append(row("Latency, frames", "mean until the first mark, of lesions marked", latency))
    for seconds in (1, 3, 5):
        note = "on at least 15 frames in that time"
        rows.append(row(f"Marked within {seconds} s", note, lambda r, s=seconds: within(r, s)))
    return rows


def comparison_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Texts of a comparison's metrics."""
    rows = []
    for metric in comparison["metrics"]:
        key = metric["metric"]
        form = number if key.startswith("false_alarms") else percent
        title = METRIC_TITLES.get(key, key)
        place = f"{metric['rule']}, {metric['at']}" if metric["rule"] else metric["at"]
        low_high = metric["interval"]
        p_value, exact = metric["p_value"], metric["exact"]
        rows.append(
            {
                "title": title,
                "place": place,
                "ours": form(metric["ours"]),
                "theirs": form(metric["theirs"]),
                "difference": _signed(metric["difference"], form),
                "interval": " to ".join(_signed(v, form) for v in low_high) if low_high else "",
                "p": NOTHING if p_value is None else ("" if exact else "≈ ") + f"{p_value:.2g}",
                "significant": p_value is not None and p_value < SIGNIFICANT,
                "videos": metric["differing_videos"],
            }
        )
    return rows


def _signed(value: float | None, form: Form) -> str:
    if value is None:
        return NOTHING
    text = form(abs(value))
    return text if not text.strip("0.") else f"{'+' if value > 0 else '−'}{text}"


def size_rows(content: Content) -> list[dict[str, Any]]:
    """Recall by lesion size and rule: one row a size, one cell a detector."""
    results = list(content["detectors"].values())
    rows = []
    for index, size in enumerate(results[0]["by_size"]):
        for rule in RULE_TITLES:
            cells = [
                cell_of(r["by_size"][index]["rules"][rule]["recall"], percent) for r in results
            ]
            limits = f"{percent(size['from'])} to {percent(size['to'])} %"
            row = {"size": size["size"], "limits": limits, "lesions": size["lesions"]}
            rows.append(row | {"rule": rule, "cells": cells})
    return rows


def video_rows(content: Content) -> list[dict[str, Any]]:
    """One row a video, with recall and false alarms of each detector; the lowest recall first."""
    results, rule = list(content["detectors"].values()), content["rule"]
    rows = []
    for index, video in enumerate(results[0]["by_video"]):
        counts = [result["by_video"][index]["rules"][rule] for result in results]
        rows.append(
            {
                "video": f"{video['split']}: {video['name']}",
                "frames": video["frames"],
                "minutes": number(video["minutes"]),
                "lesions": counts[0]["tp"] + counts[0]["fn"],
                "cells": [(percent(c["recall"]), c["false_alarms"]) for c in counts],
                "order": (1.0 if counts[0]["recall"] is None else counts[0]["recall"]),
                "alarms": counts[0]["false_alarms"],
            }
        )
    return sorted(rows, key=lambda row: (row["order"], -row["alarms"]))


def lesion_rows(content: Content) -> list[dict[str, Any]]:
    """One row a lesion, with the frames marked and the latency of each detector; worst first."""
    lesions = [result["true_colon"]["lesion"] for result in content["detectors"].values()]
    if not lesions or lesions[0] is None:
        return []
    rows = []
    for records in zip(*(lesion["records"] for lesion in lesions), strict=True):
        first = records[0]
        cells = []
        for record in records:
            frames, seconds = record["latency_frames"], record["latency_seconds"]
            time = "never" if frames is None else f"{frames}"
            time += "" if seconds is None else f" ({number(seconds)} s)"
            cells.append((f"{record['n_frames_detected']}", percent(record["det_fraction"]), time))
        rows.append(
            {
                "lesion": first["lesion"],
                "video": f"{first['split']}: {first['video']}",
                "frames": first["n_frames_visible"],
                "cells": cells,
                "order": first["det_fraction"],
            }
        )
    return sorted(rows, key=lambda row: row["order"])


def truth_rows(content: Content) -> list[dict[str, Any]]:
    """The ground truth files, with what they hold; of the tests, then of the validation data."""
    parts: Sequence[tuple[str, Any]] = (
        ("evaluated", content["ground_truth"]),
        ("validation", content["validation"] or []),
    )
    return [
        {
            **row,
            "use": use,
            "minutes": number(row["minutes"]),
            "rates": ", ".join(f"{rate:g}" for rate in row["frame_rates_hz"]) or "unknown",
        }
        for use, rows in parts
        for row in rows
    ]
