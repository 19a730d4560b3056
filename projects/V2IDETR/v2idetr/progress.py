"""How far something is and how long it will still take: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm import tqdm

LINE_PERIOD_S = 30.0
LINE = "{desc}: {unit} {n_fmt} of {total_fmt}{postfix}, about {remaining} left"

print_now = partial(print, flush=True)


class _Lines(tqdm):
    """Says a line where tqdm would draw its bar again."""

    monitor_interval = 0  # no thread: lines may be late

    def __init__(self, *args: Any, say: Callable[[str], object], **settings: Any) -> None:
        self.say = say
        super().__init__(*args, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Say how far it is; nothing where a bar would be wiped out."""
        if msg is None:
            self.say(str(self))


def progress_bar(
    *args: Any, line: str = LINE, say: Callable[[str], object] = print_now, **settings: Any
) -> tqdm:
    """A `tqdm` of these arguments, which estimates by the average speed.

    Args:
        args, settings: see `tqdm`; the total must be known, and the bar vanishes at the end unless
            `leave` is set.
        line: format of the lines where stderr is no terminal, see `bar_format` of `tqdm`.
        say: takes such a line, every `LINE_PERIOD_S` seconds.
    """
    settings = {"leave": False, "smoothing": 0, "miniters": 0, **settings}
    if sys.stderr.isatty():
        return tqdm(*args, **settings)
    period = {"mininterval": LINE_PERIOD_S, "delay": LINE_PERIOD_S}
    return _Lines(*args, say=say, **{**settings, **period, "bar_format": line}, file=io.StringIO())
