"""How a process is set up before torch works in it: memory of the C library, warnings."""

from __future__ import annotations

import ctypes
import os
import warnings

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def ignore_torch_jit() -> None:
    """No warning of torch.jit.script, which Detectron2 calls when it is imported."""
    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)


def keep_freed_memory() -> None:
    """Let the C library keep memory that tensors free, instead of returning it to the system.

    A page that comes back is cleared and mapped anew: up to a fifth of a training step on a CPU
    (RESULTS.md). Only GNU's library is told, and not where MALLOC_* or GLIBC_TUNABLES decides.
    """
    decided = any(name.startswith("MALLOC_") for name in os.environ)
    if decided or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        _call_libc("mallopt", threshold, 2**30)


def give_memory_back() -> None:
    """Let the C library return the freed memory that it still has, where it is GNU's."""
    _call_libc("malloc_trim", 0)


def _call_libc(name: str, *arguments: int) -> None:
    """Call a function of the C library if it has that one."""
    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    if function is not None:
        function(*arguments)
