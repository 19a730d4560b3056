"""Child processes with output to a log file and forwarded signals, ended with their parent."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from v2i_runtime.stop_signals import stop_signals

POLL_S = 0.5
LINES_SHOWN = 15  # of the log, when a program fails
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Child = subprocess.Popen[bytes]


class Interrupted(BaseException):
    """This program and its children were stopped by a signal.

    No error, so `except Exception` lets it pass.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number  # 143 for SIGTERM, 130 for Ctrl-C, 129 for SIGHUP


class ProgramError(Exception):
    """A child process failed; the message has the end of its log."""


def start_logged(
    command: Sequence[str],
    log: Path,
    keep_open: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start a Python program with its output in a log file.

    It has its own process group, so that Ctrl-C reaches it once, forwarded by this process, and it
    can write a checkpoint before it ends. On Linux it gets SIGTERM when this process dies.

    Args:
        command: program and arguments.
        log: file to which its output is appended.
        keep_open: file descriptors that the program inherits.
        environment: environment variables that differ from this process's.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=keep_open,
            env={**os.environ, **(environment or {})},
            preexec_fn=(
                functools.partial(_stop_with_parent, os.getpid())
                if sys.platform == "linux"
                else None
            ),
        )


def run_logged(
    command: Sequence[str], log: Path, tick: Callable[[], None], keep_open: Sequence[int] = ()
) -> None:
    """Start a program as `start_logged` does, and wait for it.

    Args:
        command, log, keep_open: see `start_logged`.
        tick: called about twice a second.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP came; the program has ended.
        ProgramError: its exit code is not 0.
    """
    child = start_logged(command, log, keep_open)
    with forwarded(lambda: [child]) as received:
        while True:
            try:
                code = child.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                tick()
    if received:
        raise Interrupted(received[0])
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(f"  {line}" for line in lines[-LINES_SHOWN:])
        raise ProgramError(f"{Path(command[0]).name} ended with code {code}:\n{tail}\n({log})")


@contextmanager
def forwarded(children: Callable[[], Sequence[Child]]) -> Iterator[list[int]]:
    """Forward stop signals to the running children in this block; yields those received."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGHUP:  # a terminal that closes sends several
            signal.signal(number, signal.SIG_IGN)
        for child in children():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    previous = {number: signal.signal(number, forward) for number in stop_signals()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop_with_parent(parent: int) -> None:
    """In the child, before the program starts: ask for SIGTERM when the parent dies.

    `parent` is compared with getppid(): in a container the parent may itself be process 1.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
