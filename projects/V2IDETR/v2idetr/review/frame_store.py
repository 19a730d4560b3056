"""JPEGs of a video in one file, appended while others are read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from threading import Lock

FREE_BYTES = 2**30  # kept free on the disk
CHECKED_EVERY = 32  # frames


def check_space(folder: Path, size: int) -> None:
    """Check that a disk has room for more bytes, and keeps FREE_BYTES.

    Raises:
        ValueError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES + size:
        raise ValueError(
            f"{folder}: only {free / 2**20:.0f} MiB of disk are free, so that no more is kept "
            "there; free some space, or set TMPDIR to another disk."
        )


class FrameStore:
    """Frames by number, in one file.

    Args:
        path: new file; removed by `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("xb+")
        self._ends, self._lock = [0], Lock()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, jpeg: bytes) -> None:
        """Store the next frame.

        Raises:
            ValueError: the disk is nearly full.
        """
        if len(self) % CHECKED_EVERY == 0:
            check_space(self._path.parent, len(jpeg) * CHECKED_EVERY)
        with self._lock:
            os.pwrite(self._file.fileno(), jpeg, self._ends[-1])
            self._ends.append(self._ends[-1] + len(jpeg))

    def read(self, frame: int) -> bytes:
        """A frame that has been stored."""
        with self._lock:
            start, end = self._ends[frame : frame + 2]
            return os.pread(self._file.fileno(), end - start, start)

    def close(self) -> None:
        """Remove the file."""
        with self._lock:
            self._file.close()
        self._path.unlink(missing_ok=True)
