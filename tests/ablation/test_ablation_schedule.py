"""Jobs run when they can, fail alone, and stop together."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from v2idetr.ablation.schedule import Failure, Job, last_error, run_jobs, slots_of
from v2idetr.child_processes import Interrupted

WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('done')"


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Makes a job: a program that gets the path of its result."""

    def make(name: str, program: str = WRITE, needs: tuple[str, ...] = ()) -> Job:
        file, result = tmp_path / f"{name}.py", tmp_path / f"{name}.result"
        file.write_text(textwrap.dedent(program))
        log = tmp_path / f"{name}.log"
        return Job(name, lambda: (str(file), str(result)), log, result, needs)

    return make


class Ended:
    """Notes the ends of jobs."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, job: Job, failure: Failure | None, seconds: float) -> None:
        self.names.append(job.name if failure is None else f"{job.name} failed")


def test_a_job_waits_for_the_one_that_it_needs(job) -> None:
    read = "import sys, pathlib; p = pathlib.Path(sys.argv[1])\n"
    read += "p.write_text((p.parent / 'teacher.result').read_text())"
    ended = Ended()
    jobs = [job("teacher"), job("student", read, ("teacher",))]
    assert not run_jobs(jobs, [{}, {}], ended=ended)
    assert ended.names == ["teacher", "student"]


def test_a_job_of_two_needs_is_not_run_when_one_fails(job) -> None:
    jobs = [job("one"), job("two", "raise SystemExit(3)"), job("both", needs=("one", "two"))]
    failures = run_jobs(jobs, [{}, {}])
    assert [failure.job.name for failure in failures] == ["two", "both"]
    assert failures[1].reason == "not run, because two failed"


def test_what_has_a_result_is_not_run(job) -> None:
    done = job("done", "raise SystemExit(1)")
    done.result.touch()
    ended = Ended()
    assert not run_jobs([done, job("student", needs=("done",))], [{}], ended=ended)
    assert ended.names == ["student"]


def test_as_many_run_at_a_time_as_there_are_slots(job) -> None:
    """Each of the first two ends only when it sees the other at work."""
    meet = """
    import sys, pathlib, time
    path = pathlib.Path(sys.argv[1])
    path.with_suffix(".here").touch()
    other = path.with_name({"one.result": "two.here", "two.result": "one.here"}[path.name])
    while not other.exists(): time.sleep(0.01)
    path.touch()
    """
    most = []

    def tick(running: Sequence[Job]) -> None:
        most.append(len(running))

    jobs = [job("one", meet), job("two", meet), job("three")]
    assert not run_jobs(jobs, [{}, {}], tick=tick)
    assert max(most) == 2


def test_each_slot_has_its_environment(job) -> None:
    say = "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(os.environ['PLACE'])"
    jobs = [job("one", say), job("two", say)]
    run_jobs(jobs, [{"PLACE": "a"}, {"PLACE": "b"}])
    assert {one.result.read_text() for one in jobs} == {"a", "b"}


def test_one_that_fails_stops_only_those_that_need_it(job) -> None:
    ended = Ended()
    broken = job("broken", "raise ValueError('no such level')")
    failures = run_jobs([broken, job("taught", needs=("broken",)), job("other")], [{}], ended=ended)
    assert ended.names == ["broken failed", "taught failed", "other"]
    assert [failure.reason for failure in failures] == [
        "ValueError: no such level (code 1)",
        "not run, because broken failed",
    ]


def test_a_program_without_a_result_has_failed(job) -> None:
    (failure,) = run_jobs([job("lazy", "print('nothing to do')")], [{}])
    assert failure.reason == "nothing to do (code 0)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_and_starts_no_more(job, number: signal.Signals, tmp_path: Path) -> None:
    """The programs take a while after the signal, as train_net.py does for its checkpoint."""
    wait = """
    import signal, sys, time, pathlib
    def stop(number, frame):
        time.sleep(0.2); pathlib.Path(sys.argv[1] + ".saved").touch(); sys.exit(9)
    signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)
    pathlib.Path(sys.argv[1] + ".ready").touch()
    time.sleep(60)
    """
    jobs = [job("one", wait), job("two", wait), job("three")]
    sent = []

    def tick(running: Sequence[Job]) -> None:
        if len(list(tmp_path.glob("*.ready"))) == 2 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    ended = Ended()
    with pytest.raises(Interrupted) as stop:
        run_jobs(jobs, [{}, {}], tick=tick, ended=ended)
    assert stop.value.exit_code == 128 + number
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == [
        "one.result.saved",
        "two.result.saved",
    ]
    assert not ended.names and not jobs[2].log.exists()


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        (
            "error: 2 errors:\n  - a: wrong\n  - b: wrong\n",
            2,
            "error: 2 errors: - a: wrong - b: wrong",
        ),
        ("Traceback:\n  x\nRuntimeError: boom\n", 1, "RuntimeError: boom"),
        ("an earlier error: x\nlast line\n", 3, "last line"),
        ("", 1, "no output"),
    ],
)
def test_the_reason_is_what_was_said_last(tmp_path: Path, log: str, code: int, reason: str) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    assert last_error(path, code) == f"{reason} (code {code})"


def test_a_killed_program_is_said_to_be_killed(tmp_path: Path) -> None:
    assert last_error(tmp_path / "log", -9) == "killed by SIGKILL; out of memory?"


def test_gpus_are_shared_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("v2idetr.ablation.schedule.cores", lambda: 8)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots_of(["2", "3"], 3)] == ["2", "3", "2"]
    assert slots_of([], 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert slots_of([], 1) == [{"OMP_NUM_THREADS": "5"}]
