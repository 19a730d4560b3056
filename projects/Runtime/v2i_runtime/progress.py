"""Progress and remaining time: a bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm import tqdm

LINE_PERIOD_S = 30.0
COUNT = "{desc}: {unit} {n_fmt}{postfix}"
LINE = "{desc}: {unit} {n_fmt} of {total_fmt}{postfix}, about {remaining} left"

print_now = partial(print, flush=True)


class _Lines(tqdm):
    """A tqdm that passes a line to `say` where it would redraw its bar."""

    monitor_interval = 0  # no thread: lines may be late

    def __init__(self, *args: Any, say: Callable[[str], object], **settings: Any) -> None:
        self.say = say
        super().__init__(*args, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Report the progress; nothing where a bar would be cleared."""
        if msg is None:
            self.say(str(self))


def progress_bar(
    *args: Any, line: str = LINE, say: Callable[[str], object] = print_now, **settings: Any
) -> tqdm:
    """A `tqdm` that estimates the remaining time from the average speed.

    Args:
        args, settings: arguments of `tqdm`; with `total=None` items are counted, and no time is
            estimated. The bar is cleared at the end unless `leave` is set.
        line: format of the lines where stderr is no terminal, see `bar_format` of `tqdm`.
        say: function that prints such a line, called every `LINE_PERIOD_S` seconds.
    """
    if settings.get("total", 0) is None:
        line = COUNT
    settings = {"leave": False, "smoothing": 0, "miniters": 0, **settings}
    if sys.stderr.isatty():
        return tqdm(*args, **settings)
    period = {"mininterval": LINE_PERIOD_S, "delay": LINE_PERIOD_S}
    return _Lines(*args, say=say, **{**settings, **period, "bar_format": line}, file=io.StringIO())
