"""`make setup` says what is in the way before it begins to download."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_full_disk_is_said_before_anything_is_installed(tmp_path: Path) -> None:
    df = tmp_path / "df"
    df.write_text("#!/bin/sh\necho Filesystem\necho /dev/disk 9000000 8500000 500000 95% /\n")
    df.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "tools/setup.sh"), str(tmp_path / "venv")],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "need 7 GB" in done.stderr
    assert "488 MB free" in done.stderr
    assert not (tmp_path / "venv").exists()
