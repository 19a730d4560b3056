"""The program itself, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from v2idetr.engine import launch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT / 'projects' / 'V2IDETR'}{os.pathsep}{HERE}",
    "OMP_NUM_THREADS": "1",
}


def train_net(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train_net.py"), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)


def test_help_needs_no_torch() -> None:
    before = os.times().children_user
    done = train_net("--help")
    assert done.returncode == 0 and "--eval-only" in done.stdout
    assert os.times().children_user - before < 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--config-file"),
        (["--config-file", "x", "--resume", "--eval-only"], "give one of them"),
        (["--config-file", "x", "--weights", "student.pth"], "are for --eval-only"),
        (["--config-file", "x", "--num-gpus", "0"], "must be 1 or more"),
        (["--config-file", "x", "--num-machines", "2"], "--dist-url"),
    ],
)
def test_wrong_usage_is_explained_at_once(arguments, expected) -> None:
    done = train_net(*arguments)
    assert done.returncode == 2 and expected in done.stderr


def test_mistyped_keys_before_and_after_options_fail_with_a_suggestion_and_no_traceback() -> None:
    keys = ("train.max_itr=5", "--resume", "train.sed=1")
    done = train_net("--config-file", "configs/v2i_synthetic.yaml", *keys)
    assert done.returncode == 2
    assert "Did you mean train.max_iter?" in done.stderr
    assert "Did you mean train.seed?" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
def test_two_processes_train_all_stages(tiny_config, tmp_path) -> None:
    done = train_net("--config-file", str(tiny_config), "--num-gpus", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").exists()
    again = train_net("--config-file", str(tiny_config), "--num-gpus", "2")
    assert again.returncode == 2 and "Add --resume" in again.stderr + again.stdout
    assert (again.stderr + again.stdout).count("Add --resume") == 1, "said by one of them"


def test_processes_that_do_not_listen_to_signals_are_killed_at_the_third(monkeypatch) -> None:
    deaf = subprocess.Popen(
        ["sh", "-c", "trap '' INT TERM HUP; echo ready; exec sleep 60"], stdout=subprocess.PIPE
    )
    assert deaf.stdout is not None and deaf.stdout.readline() == b"ready\n"
    child = SimpleNamespace(pid=deaf.pid)
    monkeypatch.setattr(launch.multiprocessing, "active_children", lambda: [child])
    with launch._signals_forwarded():
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert deaf.poll() is None
        os.kill(os.getpid(), signal.SIGINT)
    assert deaf.wait(10) == -signal.SIGKILL
