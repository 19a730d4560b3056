"""Several programs at a time, each when what it needs is there; one that fails stops no other."""

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
MOST_SAID = 400  # letters of an error that are shown
_ERROR = re.compile(r"^(\w*Error\b|error:)", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """One program.

    Attributes:
        name: unique.
        command: gives program and arguments, when the job starts.
        log: file that its output is added to.
        result: what it makes last; a job whose result is there is not run.
        needs: names of the jobs that have to succeed before.
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
        job: which.
        reason: what it said last.
        log: where the rest of that stands; None for a job that was not run.
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
    """Run all jobs that have no result yet, in order, as many at a time as there are slots.

    Args:
        jobs: each after those that it needs.
        slots: environment variables of the programs that run in each of them.
        keep_open: file descriptors that the programs inherit.
        tick: called several times a second with the jobs that are running.
        ended: called after each job with its failure, if it is one, and its seconds.

    Returns:
        What failed, jobs included whose need failed.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP came; it was passed on, and all programs have ended.
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
                    self._start_what_can(received)
                    self._collect(received)
                    self.tick([r.job for r in self.running.values()])
                    if self.running:
                        time.sleep(POLL_S)
            finally:  # an error of ours: nothing may go on without us
                for one in self.running.values():
                    one.child.terminate()
        if received:
            raise Interrupted(received[0])
        return list(self.failures.values())

    def _start_what_can(self, received: Sequence[int]) -> None:
        for job in list(self.waiting):
            failed = [name for name in job.needs if name in self.failures]
            if failed:
                self.waiting.remove(job)
                self._fail(Failure(job, f"not run, because {failed[0]} failed", None), 0.0)
            elif self.free and not received and not any(map(self._is_to_come, job.needs)):
                self.waiting.remove(job)
                slot = self.free.pop(0)
                child = start_logged(job.command(), job.log, self.keep_open, slot)
                self.running[job.name] = _Running(job, child, slot, time.monotonic())
                if received:  # between the check and the start: nobody has told this one
                    child.send_signal(signal.SIGTERM)

    def _is_to_come(self, name: str) -> bool:
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
            elif not received:  # else it stopped because it was told to
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
    """What a program that ended with a code other than 0 said about it last.

    That is its log from the last line that names an error, or else the last line.
    """
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; was memory short?" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [k for k, line in enumerate(lines) if _ERROR.match(line)]
    said = " ".join(lines[errors[-1] if errors else -1 :]) or "it said nothing"
    return f"{said if len(said) <= MOST_SAID else said[: MOST_SAID - 1] + '…'} (code {code})"


def cores() -> int:
    """Physical cores that this process may use: hyper-threads of a core count once."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    siblings = set()
    for number in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        siblings.add(path.read_text() if path.exists() else str(number))
    return len(siblings) or os.cpu_count() or 1


def slots_of(gpus: Sequence[str], jobs: int) -> list[dict[str, str]]:
    """Environments of programs that run at the same time and share GPUs and cores equally.

    A number of threads that the user has set stays.

    Args:
        gpus: their names in CUDA_VISIBLE_DEVICES; none for a machine without.
        jobs: programs at a time.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    slot = {"OMP_NUM_THREADS": given or str(max(1, cores() // jobs))}
    if not gpus:
        return [dict(slot) for _ in range(jobs)]
    return [{**slot, "CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]} for k in range(jobs)]
