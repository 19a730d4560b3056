"""Sentences of the deployment report, from the dict of ``evaluation.deployment.assess``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from v2idetr.evaluation.operating_point import Choice
from v2idetr.report.deployment_rows import (
    NOTHING,
    Cell,
    Content,
    cell_of,
    number,
    percent,
    threshold_of,
)
from v2idetr.wording import counted


def choice_words(content: Content) -> str:
    """How thresholds were chosen, as a sentence."""
    if content["chosen_on"] == "fixed":
        return "Thresholds were given by the user."
    words = Choice(content["choice"]["by"], content["choice"]["target"]).words
    where = "the same data" if content["chosen_on"] == "test" else "validation data"
    return f"Thresholds were chosen on {where}: {words}."


def warnings(content: Content) -> list[str]:
    """What makes the metrics doubtful, in sentences; the gravest first."""
    said = []
    if content["chosen_on"] == "test":
        said.append(
            "The thresholds were chosen on the data that is evaluated here. All metrics at a "
            "threshold are too good: give --validation, or --threshold."
        )
    for name, result in content["detectors"].items():
        for rule, point in result["operating_points"].items():
            missed = not point["met"] and not point["remarks"]
            remarks = [*point["remarks"], *(["The target is not met."] if missed else [])]
            said += [f"{name}, {rule}: {remark}" for remark in remarks]
    return said + _matching_remarks(content) + list(content["remarks"])


def _matching_remarks(content: Content) -> list[str]:
    result = next(iter(content["detectors"].values()))["matched"]
    free, target = result.get("lesion_free_frames"), result["target"]
    if free is None or free * target >= 1:
        return []
    return [
        f"There are {free} lesion-free frames to match the false-alert rate on: {100 * target:g} % "
        "of them is less than one, so the matched threshold allows no alert there at all."
    ]


def summary(content: Content) -> list[str]:
    """The first detector in sentences."""
    name, result = next(iter(content["detectors"].items()))
    rule = content["rule"]
    metrics = result["rules"][rule]
    said = []
    recall, precision = (cell_of(metrics[key], percent) for key in ("recall", "precision"))
    if recall.text != NOTHING:
        right = f"; {precision.text} % of its detections are right" * (precision.text != NOTHING)
        said.append(
            f"At score {threshold_of(result, rule):.3f}, {name} finds {recall.text} % of the "
            f"lesions, frame by frame{_between(recall)}{right}."
        )
    alarms = metrics.get("false_alarms_a_minute")
    if alarms is None:
        rate = cell_of(metrics["false_alarms_a_frame"], number)
        said.append(
            f"It raises {rate.text} false alarms a frame. How many a minute is unknown without the "
            "frame rate (--fps)."
        )
    else:
        cell = cell_of(alarms, number)
        said.append(f"It raises {cell.text} false alarms a minute{_between(cell)}.")
    alert = cell_of(result["alerts"]["alert_rate"], percent)
    if alert.text != NOTHING:
        said.append(f"On {alert.text} % of the lesion-free frames it alerts{_between(alert)}.")
    return said + _lesion_words(result)


def _between(cell: Cell) -> str:
    return f" (95 % interval {cell.small})" if cell.small else ""


def _lesion_words(result: Mapping[str, Any]) -> list[str]:
    lesion = result["true_colon"]["lesion"]
    if lesion is None:
        return []
    whole = lesion["summary"]
    said = [
        f"{whole['detected_any']} of {counted(whole['n_lesions'], 'lesion')} are marked at least "
        f"once, {whole['detected_50pct']} on half of their frames or more."
    ]
    if whole["mean_latency_frames"] is not None:
        seconds = whole["mean_latency_seconds"]
        time = "" if seconds is None else f" ({number(seconds)} s)"
        never = whole["n_lesions"] - whole["n_latency_lesions"]
        said.append(
            f"The first mark comes after {number(whole['mean_latency_frames'])} frames{time} on "
            "average"
            + (f", the {counted(never, 'lesion')} never marked left aside." if never else ".")
        )
    return said


def undefined(content: Content) -> list[str]:
    """What could not be computed and why, in sentences, once each."""
    said = []
    for result in content["detectors"].values():
        parts = [result["true_colon"], result["matched"].get("true_colon") or {"undefined": []}]
        said += [f"{u['what']}: {u['why']}." for part in parts for u in part["undefined"]]
        if result["matched"]["why_not"]:
            said.append(f"Matched false-alert rate: {result['matched']['why_not']}.")
    return list(dict.fromkeys(said))
