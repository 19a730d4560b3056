"""A table's content as a plot: a line a row, the seeds as dots, mean and spread, the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from v2idetr.ablation.markdown import metric_title
from v2idetr.report.charts import nice_step

PANEL, ROW, TOP, BOTTOM, GAP = 330.0, 26.0, 66.0, 44.0, 36.0  # px
LETTER = 7.0  # px, more than it is wide on average
MOST_LETTERS = 60  # of a row's title
STYLE = """
text { font: 12px system-ui, "Segoe UI", Roboto, sans-serif; fill: #1a1d23; }
.head { font-size: 15px; font-weight: 600; } .soft { fill: #5b6370; } .warn { fill: #b3382c; }
.grid { stroke: #dfe3e8; } .axis { stroke: #5b6370; }
.base { stroke: #d98200; stroke-width: 1.5; stroke-dasharray: 5 3; }
.bar { stroke: #009d8c; stroke-width: 2; } .seed { fill: #5b6370; fill-opacity: .55; }
.mean { fill: #009d8c; } .plain .bar { stroke: #d98200; } .plain .mean { fill: #d98200; }
.teacher .bar { stroke: #7a5af0; } .teacher .mean { fill: #7a5af0; }
"""


@dataclass(frozen=True)
class _Line:
    """A row of the plot: title, kind ("plain", "student", "teacher") and figure by metric."""

    title: str
    kind: str
    figures: Mapping[str, Any]


def to_svg(content: Mapping[str, Any]) -> str:
    """The plot of the first block, one panel for each headline metric; it stands alone.

    The dashed line is the baseline's mean; where rows have several, each is a row of its own.
    """
    lines = _lines(content)
    metrics = content["headline"]
    references = {row["reference"] for row in content["rows"]}
    only = references.pop() if len(references) == 1 else None
    base = next((row for row in content["rows"] if row["name"] == only), None)
    height = TOP + ROW * len(lines) + BOTTOM
    left = 26 + LETTER * max([18, *(len(_short(line.title)) for line in lines)])
    width = left + (PANEL + GAP) * len(metrics)
    title = content["blocks"][0]["title"] if content["blocks"] else "no result yet"
    warning = "smoke test: these numbers mean nothing" if content["smoke"] else ""
    parts = [
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
        _text(12.0, 24.0, content["heading"], "head"),
        _text(12.0, 44.0, f"{content['dataset']}, {title}; {_legend(base)}", "soft"),
        _text(width - 12, 24.0, warning, "warn", "end"),
    ]
    for index, line in enumerate(lines):
        parts.append(_text(left - 14, _y(index) + 4, _short(line.title), anchor="end"))
    for index, metric in enumerate(metrics):
        parts += _panel(lines, metric, left + (PANEL + GAP) * index, height - BOTTOM, only, content)
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
        f'aria-label="{escape(content["heading"])}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _legend(base: Mapping[str, Any] | None) -> str:
    dashed = "" if base is None else f"; dashed: mean of {base['title']}"
    return f"small dots are seeds, bars mean ± sd{dashed}"


def _lines(content: Mapping[str, Any]) -> list[_Line]:
    if not content["blocks"]:
        return []
    title = content["blocks"][0]["title"]
    lines = []
    for row in content["rows"]:
        words = f"{row['number']}  {row['title']}".strip()
        kind = "plain" if row["name"] == row["reference"] else "student"
        lines.append(_Line(words, kind, row["figures"][title]))
    for teacher in content["teachers"]:
        lines.append(_Line(teacher["title"], "teacher", teacher["figures"][title]))
    return lines


def _panel(
    lines: Sequence[_Line],
    metric: str,
    left: float,
    bottom: float,
    reference: str | None,
    content: Mapping[str, Any],
) -> list[str]:
    values = [v for line in lines for v in line.figures[metric]["seeds"].values()]
    if not values:
        return [_text(left, TOP + 4, f"{metric_title(metric)}: nothing yet", "soft")]
    low, high, step = _limits(values)

    def x(value: float) -> float:
        return left + PANEL * (value - low) / (high - low)

    parts = [_text(left, TOP - 6, f"{metric_title(metric)}, %")]
    for k in range(round((high - low) / step) + 1):
        tick = low + k * step
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {TOP}V{bottom}"/>')
        parts.append(_text(x(tick), bottom + 17, f"{tick:g}", "soft", "middle"))
    parts.append(f'<path class="axis" d="M{left} {bottom}H{left + PANEL}"/>')
    for row in content["rows"]:
        mean = row["figures"][content["blocks"][0]["title"]][metric]["mean"]
        if row["name"] == reference and mean is not None:
            parts.append(f'<path class="base" d="M{x(mean):.1f} {TOP}V{bottom}"/>')
    for index, line in enumerate(lines):
        parts.append(_marks(line, line.figures[metric], x, _y(index)))
    return parts


def _marks(line: _Line, figure: Mapping[str, Any], x: Any, y: float) -> str:
    """Spread, seeds and mean of one row."""
    mean, sd = figure["mean"], figure["sd"]
    if mean is None:
        return ""
    drawn = ""
    if sd is not None:
        drawn += f'<path class="bar" d="M{x(mean - sd):.1f} {y:.1f}H{x(mean + sd):.1f}"/>'
    drawn += f'<circle class="mean" cx="{x(mean):.1f}" cy="{y:.1f}" r="5"/>'
    for seed, value in figure["seeds"].items():
        if figure["n"] > 1:
            said = f"<title>seed {escape(seed)}: {value:.1f}</title>"
            drawn += f'<circle class="seed" cx="{x(value):.1f}" cy="{y:.1f}" r="3">{said}</circle>'
    return f'<g class="{line.kind}">{drawn}</g>'


def _limits(values: Sequence[float]) -> tuple[float, float, float]:
    """Ends of the axis in round numbers, and the distance of its ticks."""
    span = max(max(values) - min(values), 2.0) * 1.3
    middle = (max(values) + min(values)) / 2
    step = nice_step(span, 6)
    low = max(0.0, step * math.floor((middle - span / 2) / step))
    return low, step * math.ceil((middle + span / 2) / step), step


def _y(index: int) -> float:
    return TOP + ROW * (index + 0.5)


def _short(words: str, most: int = MOST_LETTERS) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'
