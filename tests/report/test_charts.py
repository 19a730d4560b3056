"""Lines, axes and ticks of the page's charts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from v2idetr.report import charts


def points_of(chart: charts.Chart) -> list[tuple[float, float]]:
    path = re.search(r'<path class="line[^"]*" d="M([^"]+)"', chart.svg())
    assert path is not None
    return [tuple(map(float, place.split())) for place in path[1].split("L")]  # type: ignore[misc]


def test_a_chart_that_is_alone_is_no_wider_than_one_of_several() -> None:
    """auto-fit would give it the columns of those that an unfinished run does not have."""
    css = (Path(charts.__file__).parent / "report.css").read_text()
    (rule,) = re.findall(r"^\.charts \{.*$", css, re.MULTILINE)
    assert "auto-fill" in rule


def test_a_line_ends_at_the_corners_of_its_chart() -> None:
    chart = charts.Chart("c", "", [charts.Series("plain", "Plain", [(0.0, 0.0), (100.0, 1.0)])])
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    assert points_of(chart) == [(charts.LEFT, bottom), (charts.WIDTH - charts.RIGHT, top)]


def test_equal_ratios_are_equal_heights_on_a_logarithmic_axis() -> None:
    points = [(0.0, 1.0), (1.0, 10.0), (2.0, 100.0)]
    chart = charts.Chart("c", "", [charts.Series("plain", "Plain", points)], log=True)
    (_, low), (_, middle), (_, high) = points_of(chart)
    assert low - middle == pytest.approx(middle - high)


def test_values_that_cannot_be_drawn_are_left_out() -> None:
    points = [(1.0, float("nan")), (2.0, 0.0), (3.0, 2.0), (4.0, 3.0)]
    chart = charts.Chart("c", "", [charts.Series("plain", "Plain", points)], log=True)
    assert len(points_of(chart)) == 2
    assert (
        charts.Chart("c", "", [charts.Series("plain", "Plain", points[:2])], log=True).svg() == ""
    )


def test_long_lines_are_thinned_by_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(24 * charts.MAX_POINTS)]
    drawn = points_of(charts.Chart("c", "", [charts.Series("plain", "Plain", points)], log=False))
    assert len(drawn) == charts.MAX_POINTS
    assert len({y for _, y in drawn[1:-1]}) == 1  # each the mean of as many zeros as ones


@pytest.mark.parametrize(
    ("span", "most", "step"),
    [(1.0, 5, 0.2), (500.0, 5, 100), (0.9, 5, 0.2), (7.0, 5, 2), (23.0, 5, 5)],
)
def test_steps_of_an_axis_are_round_numbers(span: float, most: int, step: float) -> None:
    assert charts.nice_step(span, most) == pytest.approx(step)


@pytest.mark.parametrize("limits", [(0.5, 0.9), (9.0, 18.0), (1.0, 1.3), (0.01, 300.0)])
def test_a_logarithmic_axis_has_a_few_ticks_inside(limits: tuple[float, float]) -> None:
    series = charts.Series("plain", "Plain", [(0.0, limits[0]), (1.0, limits[1])])
    svg = charts.Chart("c", "", [series], log=True).svg()
    ticks = [float(t) for t in re.findall(r'text-anchor="end">([^<]+)<', svg)]
    inside = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
    assert 2 <= len(inside) <= 8
