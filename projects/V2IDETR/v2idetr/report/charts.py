"""Line charts over training steps, drawn by matplotlib, as inline SVG."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from v2idetr import plot_style
from v2idetr.plot_style import ACCENT, COLOURS, GRID, INK, SOFT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 440, 270  # units of the drawing, which the page scales
MOST_POINTS = 400  # of a line

FURTHER = {"#b3382c": "bad", "#6d7a12": "olive"}  # colours of charts with more lines than stages

# CSS variables of the colours, which differ in dark mode.
VARIABLES = {
    **{colour: f"var(--{stage})" for stage, colour in COLOURS.items()},
    **{colour: f"var(--{name})" for colour, name in FURTHER.items()},
    **{INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)", ACCENT: "var(--accent)"},
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: label in the legend.
        colour: one of `VARIABLES`.
        points: (step, value) in ascending order of steps.
        ring: point marked with a ring.
    """

    label: str
    colour: str
    points: list[Point]
    ring: Point | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over training steps.

    Attributes:
        title, note: texts above the chart.
        log: whether the axis is logarithmic; else it includes 0, and points have markers.
        x_label: title of the horizontal axis.
        x_max: its end; None for the last point.
        markers: whether points have markers, where the axis is not logarithmic.
        whole: whether the ticks of the horizontal axis are whole numbers.
    """

    title: str
    note: str
    lines: list[Line]
    log: bool = False
    x_label: str = "training step"
    x_max: float | None = None
    markers: bool = True
    whole: bool = False

    def drawable(self) -> list[tuple[Line, np.ndarray]]:
        """Non-empty lines, each with at most `MOST_POINTS` averaged points (step, value)."""
        lines = []
        for line in self.lines:
            points = [p for p in line.points if math.isfinite(p[1]) and (p[1] > 0 or not self.log)]
            if points:
                runs = np.array_split(points, min(len(points), MOST_POINTS))
                lines.append((line, np.array([run.mean(axis=0) for run in runs])))
        return lines

    def draw(self) -> Figure:
        """The chart as a figure; its axes have one line per drawable line and one per ring."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots(subplot_kw={"facecolor": "none", "xlabel": self.x_label})
        lines = self.drawable()
        for line, points in lines:
            alone = len(points) == 1
            style = {"color": line.colour, "clip_on": self.x_max is not None, "markersize": 4}
            style["zorder"] = 3
            axes.plot(
                *points.T, marker="o" if alone or (self.markers and not self.log) else "", **style
            )
            if line.ring:
                style |= {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.5}
                axes.plot(*line.ring, "o", **style)
        values = np.concatenate([points[:, 1] for _, points in lines])
        if self.log:
            axes.set_yscale("log")
            decades = math.log10(values.max() / values.min())
            if decades < 1:
                axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            else:
                axes.yaxis.set_major_locator(LogLocator(subs=(1,) if decades > 3 else (1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.minorticks_off()
        else:
            axes.set_ylim(min(0, 1.05 * values.min()), max(0.1, 1.05 * values.max()))
        axes.set_xlim(left=0, right=self.x_max)
        if self.whole:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        handles = [handle for handle in axes.lines if handle.get_linestyle() != "None"]
        # Names of files are no formulas, and a legend leaves out labels with a leading underscore.
        labels = [line.label.replace("$", r"\$").lstrip("_") or "?" for line, _ in lines]
        figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
        return figure

    def svg(self) -> str:
        """The chart as an SVG element in the colours of the page's style sheet."""
        _, _, body = plot_style.to_svg(self.draw, self.title).partition("</defs>")
        body = re.sub(r' id="[\w.]+_\d+"', "", body)  # ids of groups, equal in all charts
        for colour, variable in VARIABLES.items():
            body = body.replace(colour, variable)
        label = f"{self.title}: {', '.join(line.label for line, _ in self.drawable())}"
        start = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        return start + body
