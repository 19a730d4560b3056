"""Charts of the deployment report: FROC, AFROC, latency, F1 over the threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from v2idetr.plot_style import ACCENT, COLOURS
from v2idetr.report.charts import FURTHER, Chart, Line, Point

# By position of the detector on the page; `deployment.css` has the same order.
DETECTOR_COLOURS = (COLOURS["student"], COLOURS["plain"], COLOURS["teacher"], ACCENT, *FURTHER)
MOST_FALSE_A_FRAME = 2.0  # of FROC: beyond, a detector is of no use
LONGEST_LABEL = 28

Results = Mapping[str, Mapping[str, Any]]


def short(name: str, most: int = LONGEST_LABEL) -> str:
    """A name with its middle left out where it is long."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def charts(results: Results, rule: str, alert_rate: float) -> list[Chart]:
    """All charts that have lines."""
    drawn = [_froc(results), _afroc(results, alert_rate), _latency(results), _f1(results, rule)]
    return [chart for chart in drawn if chart is not None and chart.drawable()]


def _lines(results: Results, points: Sequence[tuple[list[Point], Point | None]]) -> list[Line]:
    return [
        Line(short(name), colour, line, ring)
        for name, colour, (line, ring) in zip(results, DETECTOR_COLOURS, points, strict=False)
    ]


def _froc(results: Results) -> Chart | None:
    curves = [result["true_colon"]["froc"] for result in results.values()]
    if any(curve["tpr_loc"] is None for curve in curves):
        return None
    points = [_ascending(curve["fp_per_image"], curve["tpr_loc"]) for curve in curves]
    return Chart(
        "FROC",
        "Share of the lesions on frames that are marked (any overlap), over false marks a frame.",
        _lines(results, [(line, None) for line in points]),
        x_label="false marks a frame",
        x_max=min(MOST_FALSE_A_FRAME, max(x for line in points for x, _ in line) or 1.0),
    )


def _afroc(results: Results, alert_rate: float) -> Chart | None:
    curves = [result["true_colon"]["afroc"] for result in results.values()]
    if any(curve["tpr_loc"] is None or curve["fpf"] is None for curve in curves):
        return None
    points = [(_ascending(curve["fpf"], curve["tpr_loc"]), None) for curve in curves]
    return Chart(
        "AFROC",
        "The same over the share of lesion-free frames with an alert; detectors are matched at "
        f"{100 * alert_rate:g} %.",
        _lines(results, points),
        x_label="lesion-free frames with an alert",
        x_max=1.0,
    )


def _latency(results: Results) -> Chart | None:
    """Share of all lesions that are marked by a number of frames after they appear."""
    lines = []
    longest = 1
    for result in results.values():
        lesion = result["true_colon"]["lesion"]
        if lesion is None:
            return None
        records = lesion["records"]
        times = sorted(r["latency_frames"] for r in records if r["latency_frames"] is not None)
        longest = max([longest, *times])
        line: list[Point] = [(0.0, 0.0)]
        for count, frames in enumerate(times, start=1):
            line += [(float(frames), line[-1][1]), (float(frames), count / len(records))]
        lines.append(line)
    for line in lines:
        line.append((float(longest), line[-1][1]))
    return Chart(
        "Time to the first detection",
        "Share of all lesions that are marked, over the frames since they came into view.",
        _lines(results, [(line, None) for line in lines]),
        x_label="frames since the lesion is visible",
        markers=False,
        whole=True,
    )


def _f1(results: Results, rule: str) -> Chart:
    points: list[tuple[list[Point], Point | None]] = []
    for result in results.values():
        curve = result["f1_curves"][rule]
        chosen = result["operating_points"][rule]["threshold"]
        value = result["rules"][rule]["f1"]["value"]
        ring = None if value is None or not math.isfinite(chosen) else (min(chosen, 1.0), value)
        points.append((_ascending(curve["thresholds"], curve["f1"]), ring))
    return Chart(
        "F1 over the score threshold",
        f"On the evaluated frames, rule {rule}; the ring is the operating point.",
        _lines(results, points),
        x_label="score threshold",
        x_max=1.0,
        markers=False,
    )


def _ascending(x: Sequence[float], y: Sequence[float]) -> list[Point]:
    return sorted(zip(x, y, strict=True))
