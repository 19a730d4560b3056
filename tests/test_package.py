"""What importing the package does, before torch starts its threads."""

from __future__ import annotations

import os
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
