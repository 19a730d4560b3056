"""Lines, axes and legend of the page's charts, and the SVG that becomes part of the page."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from v2idetr.plot_style import COLOURS
from v2idetr.report import charts
from v2idetr.report.charts import Chart, Line, Point
from v2idetr.report.curves import distillation_losses


def chart_of(points: list[Point], *, log: bool = False, ring: Point | None = None) -> Chart:
    return Chart("Chart", "", [Line("Plain student", COLOURS["plain"], points, ring)], log=log)


def points_of(chart: Chart) -> np.ndarray:
    ((_, points),) = chart.drawable()
    return points


def test_a_chart_that_is_alone_is_no_wider_than_one_of_several() -> None:
    """auto-fit would give it the columns of those that an unfinished run does not have."""
    css = (Path(charts.__file__).parent / "report.css").read_text()
    (rule,) = re.findall(r"^\.charts \{.*$", css, re.MULTILINE)
    assert "auto-fill" in rule


def test_a_metric_is_drawn_from_zero_and_its_best_has_a_ring() -> None:
    points = [(50.0, 0.4), (100.0, 0.9)]
    (axes,) = chart_of(points, ring=points[1]).draw().axes
    line, ring = axes.lines
    assert line.get_xydata() == pytest.approx(np.array(points))
    assert ring.get_xydata() == pytest.approx(np.array(points[1:]))
    assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 0.9


def test_values_that_cannot_be_drawn_are_left_out() -> None:
    points = [(1.0, float("nan")), (2.0, 0.0), (3.0, 2.0), (4.0, 3.0)]
    assert points_of(chart_of(points, log=True)).tolist() == [[3.0, 2.0], [4.0, 3.0]]
    assert chart_of(points[:2], log=True).drawable() == []


def test_long_lines_are_thinned_by_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(24 * charts.MOST_POINTS)]
    thinned = points_of(chart_of(points))
    assert len(thinned) == charts.MOST_POINTS
    assert set(thinned[:, 1]) == {0.5}  # each the mean of as many zeros as ones


@pytest.mark.parametrize(
    "limits", [(0.5, 0.9), (9.0, 18.0), (1.0, 1.3), (0.7, 40.0), (0.01, 300.0), (1e-9, 5.0)]
)
def test_a_logarithmic_axis_has_a_few_ticks_inside(limits: tuple[float, float]) -> None:
    figure = chart_of([(0.0, limits[0]), (1.0, limits[1])], log=True).draw()
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    inside = [tick for tick in figure.axes[0].get_yticks() if low <= tick <= high]
    assert 2 <= len(inside) <= 8


def test_labels_are_inside_the_drawing_and_do_not_overlap() -> None:
    points = [(1000.0, 0.3), (90_000.0, 0.9)]
    lines = [Line(f"embeddings ({n})", COLOURS["plain"], points) for n in range(5)]
    figure = Chart("Chart", "", lines).draw()
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    shown = [tick.label1 for tick in axes.xaxis.get_major_ticks() if tick.get_loc() <= 95_000]
    labels = [text.get_window_extent() for text in [*shown, axes.xaxis.label]]
    assert len(legend) == 5
    assert all(one.x0 >= 0 and one.x1 <= figure.bbox.x1 for one in [*legend, *labels])
    assert not any(a.overlaps(b) for a, b in itertools.combinations([*legend, *labels], 2))


def test_charts_of_a_page_share_no_ids_and_have_its_colours() -> None:
    chart = chart_of([(1.0, 0.5), (2.0, 0.6)])
    other = Chart("Other", "", chart.lines)
    assert chart.svg() == chart.svg()
    ids = re.findall(r' id="([^"]+)"', chart.svg() + other.svg())
    assert len(ids) == len(set(ids)) > 0
    assert "var(--plain)" in chart.svg()
    assert not any(colour in chart.svg() for colour in charts.VARIABLES)


def test_losses_of_the_users_own_have_a_line() -> None:
    section = {"frames": "all", "mine": {"weight": 1}, "cqd": {"weight": 1}, "tfd": None}
    losses = distillation_losses({"distillation": section})
    assert list(losses) == ["loss_cqd", "loss_mine"] and losses["loss_mine"][0] == "mine"
    assert distillation_losses({}) == {}
