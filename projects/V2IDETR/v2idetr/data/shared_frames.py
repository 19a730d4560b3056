"""Decoded frames of small splits in memory shared by all data workers of a process.

    SharedFrames       record -> RGB array; the first worker to read a frame decodes it for all
    SharedFrameStore   shared frames of the splits of a run, within one memory limit

Samples do not depend on it. The memory is freed when the process ends or is killed.
"""

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

logger = logging.getLogger(__name__)

Record = dict[str, Any]
MIB = 2**20


class SharedFrames:
    """All frames of a split, each decoded at its first read.

    Args:
        records: dicts with `file_name`, `height` and `width`.
        read: decoder of a record's frame.

    Raises RuntimeError if the system has too little shared memory.
    """

    def __init__(
        self, records: Sequence[Record], read: Callable[[Record], UInt8[np.ndarray, "H W 3"]]
    ) -> None:
        self._read = read
        self._places = {name: place for place, name in enumerate(_frame_bytes(records))}
        self._ends = np.cumsum(list(_frame_bytes(records).values()))
        # Allocated at once: running out of shared memory later would kill the process.
        self._pixels = torch.empty(int(self._ends[-1]), dtype=torch.uint8).share_memory_()
        self._is_there = torch.zeros(len(self._places), dtype=torch.bool).share_memory_()
        # Also a memory barrier, for writes of other workers.
        self._lock = multiprocessing.Lock()

    def read(self, record: Record) -> UInt8[np.ndarray, "H W 3"]:
        """The frame of `record`; the array must not be written to."""
        place = self._places[record["file_name"]]
        shape = (record["height"], record["width"], 3)
        end = int(self._ends[place])
        pixels = self._pixels.numpy()[end - shape[0] * shape[1] * 3 : end].reshape(shape)
        with self._lock:
            is_there = bool(self._is_there[place])
        if not is_there:
            # Two workers may do this at once: both write the same bytes.
            pixels[:] = self._read(record)
            with self._lock:
                self._is_there[place] = True
        pixels.flags.writeable = False
        return pixels

    def __len__(self) -> int:
        """Number of decoded frames."""
        return int(self._is_there.sum())


class SharedFrameStore:
    """The shared frames of a run's splits, as far as they fit.

    Args:
        limit_mib: limit for all splits together, MiB; 0 disables sharing.
    """

    def __init__(self, limit_mib: int) -> None:
        if limit_mib < 0:
            raise ValueError(f"data.cache_mib={limit_mib} must be 0 (none) or more")
        self._limit_mib, self._used = limit_mib, 0
        self._frames: dict[str, SharedFrames | None] = {}

    def of(
        self,
        split: str,
        records: Sequence[Record],
        read: Callable[[Record], UInt8[np.ndarray, "H W 3"]],
    ) -> SharedFrames | None:
        """The frames of a split, the same at every call; None if they are not kept.

        Args:
            split: what tells it from others, for messages, too: its file and image root.
            records: all its frames.
            read: decoder of a record's frame.
        """
        if not self._limit_mib:
            return None
        if split not in self._frames:
            self._frames[split] = self._reserve(split, records, read)
        return self._frames[split]

    def _reserve(
        self,
        split: str,
        records: Sequence[Record],
        read: Callable[[Record], UInt8[np.ndarray, "H W 3"]],
    ) -> SharedFrames | None:
        needed = sum(_frame_bytes(records).values())
        left = self._limit_mib * MIB - self._used
        if needed > left:
            logger.info(
                "%s: decoded frames need %.0f MiB, but of data.cache_mib=%d %.0f MiB are left; "
                "they are read from disk each time",
                split,
                needed / MIB,
                self._limit_mib,
                left / MIB,
            )
            return None
        try:
            frames = SharedFrames(records, read)
        except RuntimeError as error:
            logger.warning(
                "%s: no shared memory for %.0f MiB of decoded frames (%s); they are read from disk "
                "each time; data.cache_mib=0 disables the cache",
                split,
                needed / MIB,
                str(error).splitlines()[0],
            )
            return None
        self._used += needed
        logger.info("%s: decoded frames stay in %.0f MiB of shared memory", split, needed / MIB)
        return frames


def _frame_bytes(records: Sequence[Record]) -> dict[str, int]:
    """Bytes of each decoded frame, by file name."""
    return {r["file_name"]: r["height"] * r["width"] * 3 for r in records}
