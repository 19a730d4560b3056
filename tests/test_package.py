"""What importing the package does, before torch starts its threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest


def spins(**environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    program = "import os, v2idetr; print(os.environ.get('GOMP_SPINCOUNT'))"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def test_threads_that_wait_spin_for_a_short_time() -> None:
    assert spins() == "100"


@pytest.mark.parametrize(
    ("environment", "want"),
    [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_the_users_own_choice_of_how_threads_wait_is_kept(
    environment: dict[str, str], want: str
) -> None:
    assert spins(**environment) == want


# 64 MiB that are written, freed and written again: how many pages are new the second time.
FAULTS = """
import numpy, resource
from v2idetr.process_setup import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**26, numpy.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs GNU's C library")
@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, False),
    ],
)
def test_freed_memory_is_kept_unless_the_user_has_decided(
    environment: dict[str, str], kept: bool
) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert (int(done.stdout) < 30) == kept  # of 16384 small pages or 32 huge ones
