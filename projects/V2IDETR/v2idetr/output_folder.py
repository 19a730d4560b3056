"""Output folders: checks before long work, and a lock for one program at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.5
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # from file systems without locks
LOCK = ".lock"  # of a folder with one user, see `sole_user`


def check_folder(folder: Path, record: str, what: str, first: Sequence[str] = ()) -> None:
    """Check that a folder belongs to this kind of program, is empty, or does not exist.

    Args:
        folder: output folder.
        record: name of the file that marks such a folder.
        what: kind of its content, for the message: "demo".
        first: files that are written before `record`, left there by a killed program.

    Raises:
        ValueError: the folder holds other files.
    """
    if not folder.exists() or (folder / record).exists():
        return
    early = (LOCK, *first)
    halves = tuple(f".{name}." for name in (record, *first))  # see `write_atomically`
    if any(p.name not in early and not p.name.startswith(halves) for p in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no {what}: choose another --output.")


def check_writable(path: Path, option: str = "--output", *, is_file: bool = False) -> None:
    """Check, before long work, that its output can be written; leaves nothing behind.

    Args:
        path: output folder, or with ``is_file`` file; it and its parents need not exist yet.
        option: command-line option of the path, for the message.

    Raises:
        ValueError: it is not writable; one sentence with the reason and the remedy.
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
        # Permission bits do not show read-only disks, and do not apply to root.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"{option} {path}: nothing can be written to {folder} ({error.strerror}); {remedy}."
        ) from error


def explain_os_error(error: OSError) -> str:
    """Message with the file, the reason and a hint."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error} (make doctor shows free disk and memory)"


@contextmanager
def sole_user(
    lock: Path, what: str, remedy: str = "use another --output", patience_s: float = 20.0
) -> Iterator[int]:
    """Hold a lock file in this block; yields its descriptor, for child processes to inherit.

    The lock is held until the last process that inherited the descriptor has ended. On file systems
    without locks it has no effect.

    Args:
        lock: lock file.
        what: holder of the lock, for the message: "A demo".
        remedy: alternative to waiting, for the message.
        patience_s: time to wait for another holder.

    Raises:
        ValueError: another program still holds it after `patience_s`.
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
