"""Compilation and execution of numba kernels on CPUs.

Threads are Python's: kernels release the GIL and divide the items among as many threads as torch
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

# Numbers read per thread, below which a second thread costs more than it saves.
MIN_WORK_PER_THREAD = 200_000


def compiled(signatures: dict[Kernel, tuple[Any, ...]], **options: Any) -> list[Kernel]:
    """Kernels compiled for numba types of their arguments, or loaded from numba's cache.

    Args:
        signatures: argument types by kernel.
        options: options of `numba.njit`.
    """

    from numba import njit

    def all_of(**more: Any) -> list[Kernel]:
        return [njit(types, **options, **more)(k) for k, types in signatures.items()]

    try:
        return all_of(cache=True)
    except (RuntimeError, OSError) as error:  # no writable folder, or a full disk
        logger.warning("numba kernels are compiled at every start: %s", error)
        return all_of()


def numba_works(check: Callable[[], bool], otherwise: str) -> bool:
    """Whether numba is installed and a kernel gives correct results.

    Args:
        check: test of the kernel. Any exception means no, because runs do not depend on numba.
        otherwise: consequence of a failure, for the log.
    """
    try:
        return check()
    except Exception as error:
        logger.warning("%s: numba fails (%s)", otherwise, error)
        return False


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="numba-kernel")


if hasattr(os, "register_at_fork"):  # a child process does not have the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def share_out(kernel: Kernel, count: int, work: int, *arguments: Any) -> None:
    """Call a kernel for items 0..count, in as many threads as torch uses if the work suffices.

    Args:
        kernel: (first item, item after the last, *arguments).
        count: number of items.
        work: numbers read for all items.
        arguments: numpy arrays and numbers.
    """
    threads = min(torch.get_num_threads(), count, 1 + work // MIN_WORK_PER_THREAD)
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
