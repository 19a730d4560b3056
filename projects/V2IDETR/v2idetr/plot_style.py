"""Style of all plots, and their reproducible export as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib is imported where a plot is drawn, so that --help is quick
    from matplotlib.figure import Figure

COLOURS = {"plain": "#d98200", "student": "#009d8c", "teacher": "#7a5af0"}  # by stage
INK, SOFT, GRID, ACCENT = "#1a1d23", "#5b6370", "#dfe3e8", "#2456c8"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, which is searched and takes the page's font
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; browsers use theirs
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def to_svg(draw: Callable[[], Figure], title: str) -> str:
    """SVG text of a figure in our style, without date and random ids.

    Args:
        draw: function that makes the figure.
        title: title of the file, and salt of the ids of its shapes.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        draw().savefig(file, format="svg", metadata={"Date": None, "Title": title})
    return file.getvalue()
