"""Decoding, prediction and writing at the same time, with a fixed number of frames in memory.

source -> [queue] -> process -> [queue] -> write
thread               this thread           thread
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")

FRAMES_WAITING = 4  # in each queue
POLL_S = 0.1
_END = object()


def run_pipeline(
    frames: Generator[T, None, None],
    process: Callable[[T], P],
    write: Callable[[P], object],
    *,
    stop: threading.Event,
    on_drop: Callable[[], object] | None = None,
) -> None:
    """Process and write frames in their order, until they end or `stop` is set.

    After an error of `frames`, those before it are still processed and written. After an error of
    `process` or `write`, everything stops. All threads have ended when this returns or raises.

    Args:
        frames: frames, generated in a thread.
        process: called here, in the caller's thread.
        write: called in a thread.
        stop: ends the work at the next frame.
        on_drop: called for every frame that comes while the queue is full and is dropped; None:
            `frames` waits.

    Raises:
        BaseException: the error of `write`, `process` or `frames`, looked for in this order.
    """
    decoded: _Line[T] = _Line()
    processed: _Line[P] = _Line()
    errors: dict[str, BaseException] = {}

    def decode() -> None:
        with _reporting(errors, "frames", decoded.end), contextlib.closing(frames):
            for frame in frames:
                if stop.is_set() or decoded.closed:
                    return
                if on_drop is not None and decoded.full:
                    on_drop()
                elif not decoded.put(frame):
                    return

    def encode() -> None:
        with _reporting(errors, "write", processed.close):
            for prediction in processed:
                write(prediction)

    threads = [threading.Thread(target=work, daemon=True) for work in (decode, encode)]
    for thread in threads:
        thread.start()
    with _reporting(errors, "process", decoded.close):
        for frame in decoded:
            if stop.is_set() or not processed.put(process(frame)):
                break
    processed.end()
    for thread in threads:
        thread.join()
    for stage in ("write", "process", "frames"):
        if stage in errors:
            raise errors[stage]


class _Line(Generic[T]):
    """A queue of limited length between two threads, either of which may leave."""

    def __init__(self) -> None:
        self._queue: queue.Queue[object] = queue.Queue(FRAMES_WAITING)
        self._closed = threading.Event()

    @property
    def full(self) -> bool:
        return self._queue.full()

    @property
    def closed(self) -> bool:
        """Whether the reader has left."""
        return self._closed.is_set()

    def put(self, item: object) -> bool:
        """Add an item; False if the reader has left."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=POLL_S)
                return True
        return False

    def end(self) -> None:
        """The writer leaves: nothing more comes."""
        self.put(_END)

    def close(self) -> None:
        """The reader leaves: nothing more is taken."""
        self._closed.set()

    def __iter__(self) -> Iterator[T]:
        while (item := self._queue.get()) is not _END:
            yield item  # type: ignore[misc]


@contextlib.contextmanager
def _reporting(
    errors: dict[str, BaseException], stage: str, leave: Callable[[], None]
) -> Iterator[None]:
    """Note the error of a stage and let it leave."""
    try:
        yield
    except BaseException as error:
        errors[stage] = error
    finally:
        leave()
