"""A run that is cut off anywhere and resumed ends with the bits of an uninterrupted one."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import dataloader

from tests.tiny_runs import before_step, run, same, send
from v2idetr.engine import stage as stage_module
from v2idetr.runs.checkpoint import load_checkpoint

STAGES = ("teacher", "plain", "student")


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uninterrupted")


@pytest.fixture
def uninterrupted(module_folder: Path, tiny_config: Path, in_child) -> Path:
    output = module_folder / "run"
    if not (output / "results.json").exists():
        assert in_child(lambda: run(tiny_config, output, stages=STAGES)) == 0
    return output


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if "time" not in k} for line in lines]


def assert_equal_runs(one: Path, other: Path, stages: tuple[str, ...] = ("plain",)) -> None:
    for stage in stages:
        for name in ("best.pth", "final.pth", "last.pth"):
            a, b = (load_checkpoint(folder / stage / name) for folder in (one, other))
            for part in ("model", "adapters", "best", "iteration", "optimizer"):
                assert same(getattr(a, part), getattr(b, part)), f"{stage}/{name}: {part}"
        assert metrics(one / stage) == metrics(other / stage)
        a, b = (json.loads((f / stage / "evaluation.json").read_text()) for f in (one, other))
        assert (a["tests"], a["thresholds"]) == (b["tests"], b["thresholds"])


def test_a_run_that_is_killed_in_every_stage_ends_as_an_uninterrupted_one(
    tiny_config, tmp_path, in_child, uninterrupted
) -> None:
    output = tmp_path / "killed"

    def killed(step: int, resume: bool) -> int:
        def work() -> int:
            before_step(step, send(signal.SIGKILL))
            return run(tiny_config, output, resume=resume, stages=STAGES)

        return in_child(work)

    assert killed(5, resume=False) == -signal.SIGKILL  # teacher, last.pth at 4
    assert killed(2 + 4, resume=True) == -signal.SIGKILL  # plain, last.pth at 3, with best.pth
    assert killed(3 + 2, resume=True) == -signal.SIGKILL  # student, before its first last.pth
    assert not (output / "student" / "last.pth").exists()
    assert killed(6, resume=True) == -signal.SIGKILL  # student, last.pth at 4
    assert in_child(lambda: run(tiny_config, output, resume=True, stages=STAGES)) == 0
    assert_equal_runs(uninterrupted, output, STAGES)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_finishes_the_step_and_writes_a_checkpoint(
    tiny_config, tmp_path, in_child, uninterrupted, number, code, capfd
) -> None:
    output = tmp_path / "stopped"

    def stopped() -> int:
        before_step(5, send(number))
        return run(tiny_config, output)

    assert in_child(stopped) == code
    assert load_checkpoint(output / "plain" / "last.pth").iteration == 5
    assert "--resume" in capfd.readouterr().out
    if number == signal.SIGTERM:
        assert in_child(lambda: run(tiny_config, output, resume=True)) == 0
        assert_equal_runs(uninterrupted, output)


@pytest.mark.parametrize("waiting", [False, True], ids=["computing", "waiting for data"])
def test_a_signal_to_all_processes_of_a_run_leaves_a_checkpoint_and_no_error(
    tiny_config, tmp_path, in_child, waiting, capfd
) -> None:
    """As `timeout` sends it: to the program, then to its group with the data workers."""

    def signal_all() -> None:
        workers, me = multiprocessing.active_children(), os.getpid()
        assert len(workers) == 2
        subprocess.Popen(["sh", "-c", f"trap '' TERM; kill {me}; kill -TERM -{me}"])
        for worker in workers:
            worker.join()

    def stopped() -> int:
        os.setpgid(0, 0)
        if waiting:
            before_batch(6, signal_all)
        else:
            before_step(5, signal_all)
        late = ["train.num_workers=2", "train.eval_period=6", "train.checkpoint_period=6"]
        return run(tiny_config, tmp_path / "run", overrides=late)

    assert in_child(stopped) == 143
    said = capfd.readouterr()
    assert "--resume" in said.out and "Traceback" not in said.out + said.err
    assert load_checkpoint(tmp_path / "run" / "plain" / "last.pth").iteration == 5


def before_batch(number: int, act: Callable[[], None]) -> None:
    """Here, call `act` before the n-th batch of workers; what they have ready is lost."""
    iterator = dataloader._MultiProcessingDataLoaderIter
    original, count = iterator.__next__, iter(range(1, 10))

    def patched(batches):
        if next(count) == number:
            act()
            batches._data_queue = queue.Queue()
            batches._task_info = {i: info[:1] for i, info in batches._task_info.items()}
        return original(batches)

    iterator.__next__ = patched
    iterator._try_get_data.__defaults__ = (0.1,)  # s until dead workers are noticed; else 5


def test_a_terminal_that_closes_leaves_time_for_the_checkpoint(
    tiny_config, tmp_path, in_child
) -> None:
    def hung_up() -> int:
        def act() -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)

        before_step(5, act)
        return run(tiny_config, tmp_path / "hung_up")

    assert in_child(hung_up) == 129
    assert load_checkpoint(tmp_path / "hung_up" / "plain" / "last.pth").iteration == 5


def test_below_nohup_a_run_outlives_its_terminal(tiny_config, tmp_path, in_child) -> None:
    def hung_up() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        before_step(5, send(signal.SIGHUP))
        return run(tiny_config, tmp_path / "run")

    assert in_child(hung_up) == 0


def test_a_signal_in_an_evaluation_stops_it_and_the_resumed_run_repeats_it(
    tiny_config, tmp_path, in_child, uninterrupted
) -> None:
    output = tmp_path / "stopped"

    def stopped() -> int:
        def validate(*arguments, **named):
            threading.Timer(0.0, send(signal.SIGTERM)).start()
            signal.pause()

        stage_module.validate = validate
        return run(tiny_config, output)

    assert in_child(stopped) == 143
    assert load_checkpoint(output / "plain" / "last.pth").iteration == 3
    assert not (output / "plain" / "best.pth").exists()
    assert in_child(lambda: run(tiny_config, output, resume=True)) == 0
    assert_equal_runs(uninterrupted, output)


def test_a_signal_in_the_last_evaluation_costs_only_that_evaluation(
    tiny_config, tmp_path, in_child, uninterrupted
) -> None:
    output = tmp_path / "stopped"

    def stopped() -> int:
        def evaluate(*arguments, **named):
            os.kill(os.getpid(), signal.SIGINT)

        stage_module.evaluate = evaluate
        return run(tiny_config, output)

    def resumed() -> int:
        before_step(1, lambda: os._exit(99))
        return run(tiny_config, output, resume=True)

    assert in_child(stopped) == 130
    assert (output / "plain" / "final.pth").exists()
    assert in_child(resumed) == 0
    assert_equal_runs(uninterrupted, output)


def test_a_finished_run_is_not_trained_again(tiny_config, in_child, uninterrupted) -> None:
    written = (uninterrupted / "student" / "final.pth").stat().st_mtime_ns

    def resumed() -> int:
        before_step(1, lambda: os._exit(99))
        return run(tiny_config, uninterrupted, resume=True, stages=STAGES)

    assert in_child(resumed) == 0
    assert (uninterrupted / "student" / "final.pth").stat().st_mtime_ns == written


def test_plain_and_distilled_student_have_the_same_parameters(uninterrupted) -> None:
    plain, student = (load_checkpoint(uninterrupted / s / "final.pth") for s in STAGES[1:])
    assert {n: t.shape for n, t in plain.model.items()} == {
        n: t.shape for n, t in student.model.items()
    }
    assert not same(plain.model, student.model)


def test_the_run_writes_one_table_of_all_stages(uninterrupted) -> None:
    results = json.loads((uninterrupted / "results.json").read_text())
    assert tuple(results["stages"]) == STAGES
    assert all(stage in results["table"] for stage in STAGES)
    record = json.loads((uninterrupted / "run.json").read_text())
    assert record["starts"][0]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert set(record["starts"][0]["data"]) == {"train", "val", "test/held_out"}
