"""Run programs: output into a log, signals passed on, nothing left behind."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

POLL_S = 0.5
LINES_SHOWN = 15  # of the log, when a program fails
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from file systems without locks
LOCK = ".lock"  # of a folder with one user, see `sole_user`
PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

Child = subprocess.Popen[bytes]


class Interrupted(BaseException):
    """We were asked to stop, and our programs have stopped; no error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class ProgramError(Exception):
    """A program ended with an error; the message has the end of its log."""


def ignore_torch_jit() -> None:
    """No warning of torch.jit.script, which Detectron2 calls when it is imported."""
    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)


def keep_freed_memory() -> None:
    """Let the C library keep memory that tensors free, instead of returning it to the system.

    A page that comes back is cleared and mapped anew: up to a fifth of a training step on a CPU
    (RESULTS.md). Only GNU's library is told, and not where MALLOC_* or GLIBC_TUNABLES decides.
    """
    decided = any(name.startswith("MALLOC_") for name in os.environ)
    if decided or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        _call_libc("mallopt", threshold, 2**30)


def give_memory_back() -> None:
    """Let the C library return the freed memory that it still has, where it is GNU's."""
    _call_libc("malloc_trim", 0)


def _call_libc(name: str, *arguments: int) -> None:
    """Call a function of the C library if it has that one."""
    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    if function is not None:
        function(*arguments)


def check_folder(folder: Path, record: str, what: str, first: Sequence[str] = ()) -> None:
    """Make sure that a folder is ours, or empty but for what we leave when we are killed early.

    Args:
        folder: it may not exist.
        record: file that says that it is ours.
        what: that it should hold, for the message: "demo".
        first: files that are written before the record.

    Raises:
        ValueError: it holds other files.
    """
    if not folder.exists() or (folder / record).exists():
        return
    early = (LOCK, *first)
    halves = tuple(f".{name}." for name in (record, *first))  # see `write_atomically`
    if any(p.name not in early and not p.name.startswith(halves) for p in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no {what}: choose another --output.")


def check_writable(path: Path, option: str = "--output", *, is_file: bool = False) -> None:
    """Make sure, before long work, that its output can be written; leaves nothing behind.

    Args:
        path: a folder, or with ``is_file`` a file; it and the folders above it may not exist yet.
        option: what the user gave it with, for the message.

    Raises:
        ValueError: it cannot be written; one sentence with the reason and the remedy.
    """
    remedy = f"choose another {option}"
    if is_file and os.path.isdir(path):
        raise ValueError(f"{option} {path}: is a folder, not a file; {remedy}.")
    folder = path.parent if is_file else path
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        raise ValueError(f"{option} {path}: {folder} is no folder; {remedy}.")
    try:
        # Tried, as permissions tell nothing about read-only disks, and nothing to root.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"{option} {path}: nothing can be written to {folder} ({error.strerror}); {remedy}."
        ) from error


def explain_os_error(error: OSError) -> str:
    """The file, what is wrong with it and where to look, for a message."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error} (make doctor shows free disk and memory)"


@contextmanager
def sole_user(
    lock: Path, what: str, remedy: str = "use another --output", patience_s: float = 20.0
) -> Iterator[int]:
    """Hold a lock file in this block; its descriptor is handed on to programs that write beside it.

    It lasts until the last program that inherited it has ended, also one that outlives us. Where
    the file system has no locks, it holds off nobody.

    Args:
        lock: the file.
        what: who holds it, for the message: "A demo".
        remedy: what to do instead of waiting.
        patience_s: how long to wait for another one.

    Raises:
        ValueError: another one holds it, also after some seconds of waiting.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"{what} is running in {lock.parent}: wait for it, or {remedy}."
                    ) from None
                time.sleep(POLL_S)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                break
        yield file.fileno()


def start_logged(
    command: Sequence[str],
    log: Path,
    keep_open: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Start Python with these arguments.

    It gets a process group of its own, so that Ctrl-C reaches it once, through us, and it can
    write a checkpoint before it ends. If we are killed, it is told to stop as well.

    Args:
        command: program and arguments.
        log: file that its output is added to.
        keep_open: file descriptors that the program inherits.
        environment: variables that differ from ours.
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
        ProgramError: it ended with another code than 0.
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


def stop_signals() -> list[int]:
    """Signals that ask a program to stop: without SIGHUP where it is ignored, as below nohup."""
    hangs_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


@contextmanager
def forwarded(children: Callable[[], Sequence[Child]]) -> Iterator[list[int]]:
    """Signals that arrive in this block, each passed on to the programs that run then."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGHUP:  # of which a terminal that closes sends several
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
    """In the child, before the program: SIGTERM when the parent dies, whatever it dies of.

    In a container the parent itself may be process 1, so that its number says nothing alone.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
