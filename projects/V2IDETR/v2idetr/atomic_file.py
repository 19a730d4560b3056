"""Files that are the old one or the new one, never a half: write beside, sync, rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it to `path`.

    Raises:
        OSError: the disk is full or the folder cannot be written, with `path` as its filename; the
            temporary file is removed and what `path` held before is untouched. Other errors of
            `write` pass through, likewise.
    """
    path = Path(path)
    try:
        _write_atomically(path, write)
    except OSError as error:
        if error.errno is None:
            raise
        # A full disk is reported without a name, and other errors with the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error
    _sync_folder(path.parent)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """`write_atomically` for UTF-8 text."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
