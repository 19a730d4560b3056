"""Process settings: memory of the C library, warnings."""

from __future__ import annotations

import ctypes
import os
import warnings

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def ignore_torch_jit() -> None:
    """Ignore the warning of torch.jit.script, which Detectron2 calls on import."""
    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors instead of returning it to the system.

    Clearing and mapping returned pages again takes up to a fifth of a training step on a CPU
    (RESULTS.md). No effect with other C libraries, or where MALLOC_* or GLIBC_TUNABLES is set.
    """
    decided = any(name.startswith("MALLOC_") for name in os.environ)
    if decided or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        _call_libc("mallopt", threshold, 2**30)


def give_memory_back() -> None:
    """Let glibc return the freed memory that it has kept."""
    _call_libc("malloc_trim", 0)


def _call_libc(name: str, *arguments: int) -> None:
    """Call a function of the C library if it exists."""
    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    if function is not None:
        function(*arguments)
