"""Compiling and running numba kernels on CPUs.

Threads are Python's: kernels release the GIL and share items out over as many threads as torch
uses. numba's own thread pools abort when two threads enter them, or after a fork.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch

logger = logging.getLogger(__name__)

Kernel = Callable[..., None]

# Below so many numbers read, a second thread costs more than it saves.
MIN_WORK_A_THREAD = 200_000


def compiled(signatures: dict[Kernel, tuple[Any, ...]], **options: Any) -> list[Kernel]:
    """Kernels compiled for numba's types of their arguments; from numba's cache on disk if there.

    Args:
        signatures: types of the arguments, by kernel.
        options: of `numba.njit`.
    """

    from numba import njit

    def all_of(**more: Any) -> list[Kernel]:
        return [njit(types, **options, **more)(k) for k, types in signatures.items()]

    try:
        return all_of(cache=True)
    except (RuntimeError, OSError) as error:  # no folder that can be written to, or a full disk
        logger.warning("kernels are compiled at each start: %s", error)
        return all_of()


def numba_works(check: Callable[[], bool], otherwise: str) -> bool:
    """Whether numba is here and a kernel computes what it should.

    Args:
        check: runs the kernel. A broken install must not stop a run that can do without it, so
            whatever it raises means no.
        otherwise: what that costs, for the log.
    """
    try:
        return check()
    except Exception as error:
        logger.warning("%s: numba fails (%s)", otherwise, error)
        return False


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="numba-kernel")


if hasattr(os, "register_at_fork"):  # a child has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def share_out(kernel: Kernel, count: int, work: int, *arguments: Any) -> None:
    """Call a kernel for 0..count, in as many parts as torch has threads if the work is worth it.

    Args:
        kernel: takes the first item, the one behind the last, and the arguments.
        count: items.
        work: numbers that are read for all items.
        arguments: numpy arrays and numbers.
    """
    threads = min(torch.get_num_threads(), count, 1 + work // MIN_WORK_A_THREAD)
    if threads <= 1:
        kernel(0, count, *arguments)
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    others = [
        _pool(threads - 1).submit(kernel, first, last, *arguments)
        for first, last in pairwise(bounds[1:])
    ]
    kernel(0, bounds[1], *arguments)
    for other in others:
        other.result()
