"""Asked to stop: finish the step, write a checkpoint, leave with the usual exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.utils import comm

from v2i_runtime.stop_signals import stop_signals
from v2idetr.child_processes import Interrupted as StopRequested

SAME_REQUEST_S = 0.1


class StopSignals:
    """Within this context a signal raises `StopRequested`; while deferred, it is only noted.

    A second Ctrl-C or SIGTERM acts as if this were not here. One that follows within 0.1 s is still
    the first: `timeout` sends its signal to the program and then to the program's group.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False
        self._previous: dict[int, signal._HANDLER] = {}
        self._owner = os.getpid()

    def __enter__(self) -> StopSignals:
        # Python allows handlers in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in stop_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal in this block is only noted; see `requested`."""
        with self._deferring(True):
            yield

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """A signal in this block, which may lie inside a deferred one, stops it at once."""
        with self._deferring(False):
            if self.received is not None:
                raise StopRequested(self.received)
            yield

    def requested(self, device: torch.device) -> int | None:
        """The signal that any process of the run received, the same answer on all of them."""
        if comm.get_world_size() == 1:
            return self.received
        number = torch.tensor(self.received or 0, device=device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number) or None

    @contextlib.contextmanager
    def _deferring(self, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before

    def _second_time(self, number: int) -> signal._HANDLER:
        """A second signal acts at once. Not on one of several processes: when one of them is done,
        torch sends SIGTERM to the others, of which the first may still be writing its
        checkpoint. Nor a second SIGHUP: a terminal that closes sends several."""
        if comm.get_world_size() > 1 or number == signal.SIGHUP:
            return signal.SIG_IGN
        return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a data worker, which inherited this handler
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.received == number:  # during the sleep below
            return
        self.received = number
        # Who signals the group, or all processes of a job, has ended the data workers as well.
        # DataLoader would raise an error about them in the middle of whatever is done now.
        children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._previous.setdefault(signal.SIGCHLD, children)
        time.sleep(SAME_REQUEST_S)
        signal.signal(number, self._second_time(number))
        if not self._deferred:
            raise StopRequested(number)
