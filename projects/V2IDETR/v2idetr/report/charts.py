"""Line charts as inline SVG: no library, no script, colours from the page's style sheet.

A chart is drawn in a coordinate system of fixed size and scaled by the page. Colours are classes
(``s-<name>``), so that light and dark mode need one drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 34  # margins for the numbers on the axes
LOG_FACTORS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
MAX_POINTS = 400  # a line longer than this is thinned by means: a screen shows no more


Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: CSS class suffix, such as a stage's name.
        title: what a reader calls it.
        points: (x, y), x ascending.
        mark: one of the points, drawn as a ring; its words.
    """

    name: str
    title: str
    points: Sequence[Point]
    mark: tuple[float, float, str] | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over training steps; ``log`` for a logarithmic vertical axis."""

    title: str
    note: str
    series: list[Series] = field(default_factory=list)
    log: bool = False
    y_range: tuple[float, float] | None = None
    dots: bool = False

    def svg(self) -> str:
        """The drawing; "" when there is nothing to draw."""
        lines = [(s, _thinned(_drawable(s.points, self.log))) for s in self.series]
        lines = [(series, points) for series, points in lines if points]
        if not lines:
            return ""
        values = [y for _, points in lines for _, y in points]
        x_end = max(x for _, points in lines for x, _ in points)
        axis = _Axis.around(values, self.y_range, log=self.log)
        parts = [*_grid(axis, x_end), *(_line(s, p, axis, x_end, self.dots) for s, p in lines)]
        label = f"{self.title}: {', '.join(series.title for series, _ in lines)}"
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
        )


@dataclass(frozen=True)
class _Axis:
    """The vertical axis: value -> y, with its ticks."""

    low: float
    high: float
    log: bool
    ticks: list[float]

    @classmethod
    def around(
        cls, values: Sequence[float], limits: tuple[float, float] | None, *, log: bool
    ) -> _Axis:
        if log:
            low, high = math.log10(min(values)), math.log10(max(values))
            if high - low < 0.2:
                low, high = low - 0.1, high + 0.1
            return cls(low, high, True, _log_ticks(low, high))
        low, high = limits or (min(0.0, *values), max(values))
        step = nice_step((high - low) or 1.0, 5)
        high = low + step * math.ceil(((high - low) or 1.0) / step - 1e-9)
        count = round((high - low) / step)
        return cls(low, high, False, [low + step * k for k in range(count + 1)])

    def y(self, value: float) -> float:
        place = (math.log10(value) if self.log else value) - self.low
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * place / (self.high - self.low)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10**low and 10**high: as few as possible, but at least three."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for factors in LOG_FACTORS:
        ticks = [f * 10.0**e for e in decades for f in factors if low <= math.log10(f) + e <= high]
        if len(ticks) >= 3:
            return ticks
    step = nice_step(10**high - 10**low, 4)
    first, last = math.ceil(10**low / step), math.floor(10**high / step)
    return [step * k for k in range(first, last + 1)]


def nice_step(span: float, most: int) -> float:
    """The smallest round number that cuts ``span`` into at most ``most`` parts."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if span / (f * power) <= most + 1e-9)


def _x(step: float, x_end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / (x_end or 1)


def _grid(axis: _Axis, x_end: float) -> list[str]:
    parts = []
    for tick in axis.ticks:
        y = axis.y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    step = nice_step(x_end or 1, 5)
    for k in range(int((x_end or 1) / step + 1e-9) + 1):
        x = _x(k * step, x_end)
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">'
            f"{k * step:g}</text>"
        )
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" '
        'text-anchor="middle">training step</text>'
    )
    return parts


def _line(series: Series, points: Sequence[Point], axis: _Axis, x_end: float, dots: bool) -> str:
    places = [(_x(x, x_end), axis.y(y)) for x, y in points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    drawn = f'<path class="line s-{series.name}" d="{path}"/>'
    if dots or len(points) == 1:
        for (x, y), (step, value) in zip(places, points, strict=True):
            title = escape(f"{series.title}, step {step:g}: {value:.3g}")
            drawn += (
                f'<circle class="dot s-{series.name}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">'
                f"<title>{title}</title></circle>"
            )
    if series.mark is not None:
        step, value, words = series.mark
        drawn += (
            f'<circle class="ring s-{series.name}" cx="{_x(step, x_end):.1f}" '
            f'cy="{axis.y(value):.1f}" r="6"><title>{escape(words)}</title></circle>'
        )
    return drawn


def _drawable(points: Sequence[Point], log: bool) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]


def _thinned(points: list[Point]) -> list[Point]:
    """At most ``MAX_POINTS`` points, each the mean of a run of them."""
    size = -(-len(points) // MAX_POINTS)
    if size <= 1:
        return points
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
