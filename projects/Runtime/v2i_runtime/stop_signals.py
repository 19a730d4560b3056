"""Asked to stop: finish the frame, complete the files, leave with the usual exit code."""

from __future__ import annotations

import signal
import threading
from types import FrameType


def stop_signals() -> list[int]:
    """Signals that ask a program to stop; not SIGHUP where it is ignored, as under nohup."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:
        numbers.append(hang_up)
    return numbers


class StopSignals:
    """Within this context, SIGINT, SIGTERM and SIGHUP set `event`; a second one acts at once.

    Attributes:
        event: set by a signal.
        received: number of the signal; None before.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.received: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopSignals:
        # Python allows handlers in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in stop_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.event.set()
        # A terminal that closes sends several SIGHUP.
        hangs_up = number == getattr(signal, "SIGHUP", None)
        signal.signal(number, signal.SIG_IGN if hangs_up else signal.SIG_DFL)
