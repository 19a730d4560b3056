"""Plots of a table: mean, standard deviation and seeds of each row; learning curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from v2idetr import plot_style
from v2idetr.ablation.markdown import metric_title
from v2idetr.plot_style import COLOURS, INK, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WARNING = "#b3382c"
LETTER, PANEL, ROW, AROUND = 0.085, 3.6, 0.3, 1.4  # inches
SMOKE = "smoke test: these numbers mean nothing"
LEAST_SPAN = 2.5  # of an axis, in percent, so that nearly equal values look nearly equal

Metrics = Mapping[str, Mapping[str, Any]]  # by metric


def to_svg(content: Mapping[str, Any]) -> str:
    """The plot as SVG text, reproducible."""
    return plot_style.to_svg(lambda: draw(content), content["heading"])


def curves_to_svg(content: Mapping[str, Any]) -> str:
    """The learning curves as SVG text, see `draw_curves`."""
    return plot_style.to_svg(lambda: draw_curves(content), content["heading"])


def draw_curves(content: Mapping[str, Any]) -> Figure:
    """Validation metric over steps: one panel per row and teacher, one line per seed."""
    from matplotlib.figure import Figure

    lines = [*content["rows"], *content["teachers"]]
    across = min(3, len(lines))
    down = -(-len(lines) // across)
    figure = Figure(figsize=(PANEL * across, AROUND + 2.0 * down), layout="constrained")
    figure.suptitle(f"{content['heading']}\n{content['dataset']}, validation", fontsize="medium")
    figure.supxlabel("steps; one line per seed", color=SOFT, fontsize="small")
    if content["smoke"]:
        figure.supxlabel(SMOKE, color=WARNING)
    figure.supylabel(f"{metric_title(content['best_metric'])}, %", color=SOFT, fontsize="small")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, line in zip(panels.flat, lines, strict=False):
        for curve in line["curve"].values():
            steps, values = zip(*curve, strict=True) if curve else ((), ())
            axes.plot(steps, values, color=COLOURS[_kind(line)], linewidth=1)
        words = f"{line.get('number', '')}  {line['title']}".strip()
        axes.set_title("\n".join(textwrap.wrap(words, 40)), fontsize="small", loc="left")
    for axes in panels.flat[len(lines) :]:
        axes.set_visible(False)
    for axes in panels.flat[max(0, len(lines) - across) : len(lines)]:  # the lowest of a column
        axes.tick_params(labelbottom=True)
    return figure


def draw(content: Mapping[str, Any]) -> Figure:
    """The plot of the first block, one panel per headline metric.

    The dashed line is the mean of the baseline, if all rows have the same one.
    """
    from matplotlib.figure import Figure

    lines, metrics = _lines(content), content["headline"]
    titles = [title for title, *_ in lines]
    width = LETTER * max(map(len, titles), default=0) + PANEL * len(metrics)
    figure = Figure(figsize=(width, AROUND + ROW * len(lines)), layout="constrained")
    has_line = len({row["reference"] for row in content["rows"]}) == 1
    block = content["blocks"][0]["title"] if content["blocks"] else "no result yet"
    legend = "small dots: seeds; bars: mean ± sd" + "; dashed: the baseline's mean" * has_line
    figure.suptitle(f"{content['heading']}\n{content['dataset']}, {block}", fontsize="medium")
    figure.supxlabel(legend, color=SOFT, fontsize="small")
    if content["smoke"]:
        figure.supxlabel(SMOKE, color=WARNING)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for y, (_, kind, spreads, is_reference) in enumerate(lines):
            _draw_row(axes, y, COLOURS[kind], spreads[metric])
            mean = spreads[metric]["mean"]
            if has_line and is_reference and mean is not None:
                axes.axvline(mean, color=COLOURS[kind], linestyle="--", zorder=1)
        low, high = axes.get_xlim()
        wider = max(0.0, LEAST_SPAN - (high - low)) / 2
        axes.set_xlim(max(low - wider, 0), min(high + wider, 100))
        axes.set_xlabel(f"{metric_title(metric)}, %")
        axes.set_yticks(range(len(lines)), titles)
        axes.set_ylim(max(len(lines), 1) - 0.5, -0.5)
        axes.tick_params(axis="y", left=False, labelcolor=INK)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
    return figure


def _lines(content: Mapping[str, Any]) -> list[tuple[str, str, Metrics, bool]]:
    """(title, kind, metrics, whether it is the baseline) of each row and teacher."""
    if not content["blocks"]:
        return []
    title = content["blocks"][0]["title"]
    lines = []
    for row in content["rows"]:
        words = f"{row['number']}  {row['title']}".strip()
        lines.append((words, _kind(row), row["metrics"][title], row["name"] == row["reference"]))
    for teacher in content["teachers"]:
        lines.append((teacher["title"], "teacher", teacher["metrics"][title], False))
    return lines


def _kind(line: Mapping[str, Any]) -> str:
    """Kind of a row, teacher or other video detector, a key of `COLOURS`."""
    if "teaches" in line or line["detection"].get("frames_per_detection", 1) > 1:
        return "teacher"
    return "student" if any(line["switches"].values()) or line["teacher"] else "plain"


def _draw_row(axes: Axes, y: int, colour: str, spread: Mapping[str, Any]) -> None:
    """Mean and standard deviation of one row; several seeds are drawn below it."""
    if spread["mean"] is None:
        return
    axes.errorbar(spread["mean"], y, xerr=spread["sd"], fmt="o", color=colour)
    if spread["n"] > 1:
        seeds = list(spread["seeds"].values())
        axes.plot(seeds, [y + 0.27] * len(seeds), ".", color=SOFT, markersize=4)
