"""Atomic writes of files: write a temporary file beside, sync, rename."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it to `path`.

    Raises:
        OSError: the disk is full or the folder is not writable, with `path` as its filename. After
            this and any error of `write`, `path` is unchanged and no temporary file is left.
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


def read_record(path: Path) -> dict[str, Any]:
    """The object in a JSON file that one of our programs has written.

    Raises:
        ValueError: the file is damaged or holds something else; names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: is damaged ({error}): restore it, or use another folder."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is damaged: restore it, or use another folder.")
    return content


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
