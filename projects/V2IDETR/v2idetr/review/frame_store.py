"""JPEGs of a video in one file, appended while others are read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from threading import Lock

FREE_BYTES = 2**30  # kept free on the disk
CHECKED_EVERY = 32  # frames


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
            free = shutil.disk_usage(self._path.parent).free
            if free < FREE_BYTES + len(jpeg) * CHECKED_EVERY:
                raise ValueError(
                    f"{self._path.parent}: only {free / 2**20:.0f} MiB of disk are free, so no "
                    f"more frames are kept; free some space, or set TMPDIR to another disk."
                )
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
