"""Parallel execution of programs with dependencies; a failure stops only its dependents."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from v2idetr.child_processes import Child, Interrupted, forwarded, start_logged

POLL_S = 0.2
MOST_SHOWN = 400  # characters of an error
_ERROR = re.compile(r"^(\w*Error\b|error:)", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """One program.

    Attributes:
        name: unique name.
        command: function that returns program and arguments, called when the job starts.
        log: file to which its output is appended.
        result: file that it writes last; a job whose result exists is not run.
        needs: names of the jobs that must succeed before.
    """

    name: str
    command: Callable[[], Sequence[str]]
    log: Path
    result: Path
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
        job: the failed job.
        reason: its last error message.
        log: its log; None for a job that was not run.
    """

    job: Job
    reason: str
    log: Path | None


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[Mapping[str, str]],
    *,
    keep_open: Sequence[int] = (),
    tick: Callable[[Sequence[Job]], None] = lambda running: None,
    ended: Callable[[Job, Failure | None, float], None] = lambda job, failure, seconds: None,
) -> list[Failure]:
    """Run all jobs without a result, in order, in parallel in the given slots.

    Args:
        jobs: jobs, each after those that it needs.
        slots: environment variables of the programs of each slot.
        keep_open: file descriptors that the programs inherit.
        tick: called several times a second with the running jobs.
        ended: called after each job with its failure or None, and its duration in seconds.

    Returns:
        Failures, including jobs that were not run because a job that they need failed.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP was received and forwarded; all programs have ended.
    """
    return _Schedule(jobs, slots, keep_open, tick, ended).run()


class _Schedule:
    def __init__(
        self,
        jobs: Sequence[Job],
        slots: Sequence[Mapping[str, str]],
        keep_open: Sequence[int],
        tick: Callable[[Sequence[Job]], None],
        ended: Callable[[Job, Failure | None, float], None],
    ) -> None:
        self.waiting = [job for job in jobs if not job.result.exists()]
        self.free = list(slots)
        self.keep_open, self.tick, self.ended = keep_open, tick, ended
        self.running: dict[str, _Running] = {}
        self.failures: dict[str, Failure] = {}

    def run(self) -> list[Failure]:
        with forwarded(lambda: [r.child for r in self.running.values()]) as received:
            try:
                while self.waiting or self.running:
                    if received:
                        self.waiting.clear()
                    self._start_ready(received)
                    self._collect(received)
                    self.tick([r.job for r in self.running.values()])
                    if self.running:
                        time.sleep(POLL_S)
            finally:  # also after an error in this process
                for one in self.running.values():
                    one.child.terminate()
        if received:
            raise Interrupted(received[0])
        return list(self.failures.values())

    def _start_ready(self, received: Sequence[int]) -> None:
        for job in list(self.waiting):
            failed = [name for name in job.needs if name in self.failures]
            if failed:
                self.waiting.remove(job)
                self._fail(Failure(job, f"not run, because {failed[0]} failed", None), 0.0)
            elif self.free and not received and not any(map(self._is_pending, job.needs)):
                self.waiting.remove(job)
                slot = self.free.pop(0)
                child = start_logged(job.command(), job.log, self.keep_open, slot)
                self.running[job.name] = _Running(job, child, slot, time.monotonic())
                if received:  # between the check and the start: not forwarded to this one
                    child.send_signal(signal.SIGTERM)

    def _is_pending(self, name: str) -> bool:
        return name in self.running or any(job.name == name for job in self.waiting)

    def _collect(self, received: Sequence[int]) -> None:
        for name, one in list(self.running.items()):
            code = one.child.poll()
            if code is None:
                continue
            del self.running[name]
            self.free.append(one.slot)
            seconds = time.monotonic() - one.start_s
            if one.job.result.exists() and not code:
                self.ended(one.job, None, seconds)
            elif not received:  # else it was stopped
                reason = last_error(one.job.log, code)
                self._fail(Failure(one.job, reason, one.job.log), seconds)

    def _fail(self, failure: Failure, seconds: float) -> None:
        self.failures[failure.job.name] = failure
        self.ended(failure.job, failure, seconds)


@dataclass(frozen=True)
class _Running:
    job: Job
    child: Child
    slot: Mapping[str, str]
    start_s: float


def last_error(log: Path, code: int) -> str:
    """Last error message of a program with an exit code other than 0.

    It is the end of its log from the last line that names an error, else the last line.
    """
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory?" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [k for k, line in enumerate(lines) if _ERROR.match(line)]
    text = " ".join(lines[errors[-1] if errors else -1 :]) or "no output"
    return f"{text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + '…'} (code {code})"


def cores() -> int:
    """Number of physical cores that this process may use."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    siblings = set()
    for number in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        siblings.add(path.read_text() if path.exists() else str(number))
    return len(siblings) or os.cpu_count() or 1


def slots_of(gpus: Sequence[str], jobs: int) -> list[dict[str, str]]:
    """Environment variables of parallel programs that share GPUs and cores equally.

    A value of OMP_NUM_THREADS that the user has set is kept.

    Args:
        gpus: names in CUDA_VISIBLE_DEVICES; [] for a machine without GPUs.
        jobs: number of parallel programs.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    slot = {"OMP_NUM_THREADS": given or str(max(1, cores() // jobs))}
    if not gpus:
        return [dict(slot) for _ in range(jobs)]
    return [{**slot, "CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]} for k in range(jobs)]
