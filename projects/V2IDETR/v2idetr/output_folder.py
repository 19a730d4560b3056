"""Folders that programs write to: checked before long work, used by one program at a time."""

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
