"""The program itself, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train_net as train_net_module
from v2idetr.engine import launch
from v2idetr.runs.checkpoint import load_checkpoint

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(
        [str(ROOT / "projects" / project) for project in ("V2IDETR", "Runtime")]
        + [str(HERE.parent)]
    ),
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


# torchrun

AS_FROM_TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_torchrun_says_which_processes_there_are(monkeypatch, capsys) -> None:
    for name, value in AS_FROM_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    options = train_net_module.parse(["--config-file", "x"])
    assert (options.num_gpus, options.num_machines, options.machine_rank) == (4, 2, 1)
    with pytest.raises(SystemExit):
        train_net_module.parse(["--config-file", "x", "--num-gpus", "1", "--dist-url", "auto"])
    assert "drop --num-gpus, --dist-url;" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_trains_to_the_weights_of_num_gpus(tiny_config, tmp_path) -> None:
    outputs = [tmp_path / name for name in ("spawned", "torchrun")]
    given = [
        ["--config-file", str(tiny_config), "train.stages=[plain]", f"train.output_dir={output}"]
        for output in outputs
    ]
    done = train_net("--num-gpus", "2", *given[0])
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(ROOT / "train_net.py"), *given[1]]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((outputs[1] / "run.json").read_text())["starts"][0]["processes"] == 2
    one, other = (load_checkpoint(output / "plain" / "final.pth").model for output in outputs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def stopped_as_by_torchrun(folder: Path, *given: str) -> int:
    """Start two processes, pass SIGTERM on to both after some steps; the last step."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    log = folder / "plain" / "metrics.jsonl"
    before = log.stat().st_size if log.exists() else 0
    processes = []
    for rank in ("0", "1"):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment = ENVIRONMENT | AS_FROM_TORCHRUN | ranks | {"MASTER_PORT": port}
        command = [sys.executable, str(ROOT / "train_net.py"), *given]
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=-1, stderr=-1))
    end = time.monotonic() + 120
    while not log.exists() or log.stat().st_size <= before:
        assert time.monotonic() < end
        ended = [p.communicate() for p in processes if p.poll() is not None]
        assert not ended, ended
        time.sleep(0.1)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    said = [b"".join(process.communicate(timeout=120)).decode() for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    assert "torchrun --nproc_per_node 2 " in said[0] and "--resume" in said[0]
    return load_checkpoint(folder / "plain" / "last.pth").iteration


@pytest.mark.slow
def test_processes_that_torchrun_stops_leave_a_checkpoint_to_resume(tiny_config, tmp_path) -> None:
    given = ["--config-file", str(tiny_config), "train.stages=[plain]", "train.max_iter=5000"]
    given += ["train.eval_period=5000", "train.checkpoint_period=5000"]
    first = stopped_as_by_torchrun(tmp_path / "run", *given)
    second = stopped_as_by_torchrun(tmp_path / "run", "--resume", *given)
    assert 0 < first < second < 5000
