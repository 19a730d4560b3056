"""Cases of the benchmark that start processes: start-up time, and waiting threads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

from benchmark_cases import Call, Case, Setting
from benchmark_models import ROOT, build, noise_clip

from v2idetr.process_setup import keep_freed_memory

TORCH_SPINS = "300000"  # about the default of GNU OpenMP: some milliseconds


def startup_cases(setting: Setting) -> Iterator[Case]:
    """Start-up of a process: imports, kernels from numba's cache, compilation of kernels."""
    del setting
    torch = "import torch"
    detector = "import v2idetr; from v2idetr.modeling import deformable_detr"
    kernels = f"{detector}; from v2idetr.modeling.deformable_attention import implementation"
    with tempfile.TemporaryDirectory() as kept:
        variants: dict[str, Call] = {
            "import torch": partial(_process, torch),
            "import a detector": partial(_process, detector),
            "and its kernels": partial(_process, f"{kernels}; implementation()", kept),
            "and compile them": lambda: _compiling(f"{kernels}; implementation()"),
        }
        yield Case("start-up of a process", "import torch", variants)


def _compiling(program: str) -> None:
    with tempfile.TemporaryDirectory() as empty:
        _process(program, empty)


def waiting_cases(setting: Setting) -> Iterator[Case]:
    """Training steps alone and beside a busy process, by the waiting of threads."""
    del setting
    ways = {"ours": "", "torch's way": TORCH_SPINS}
    with contextlib.ExitStack() as until_end:
        steppers = {
            way: until_end.enter_context(_stepper(**({"GOMP_SPINCOUNT": spins} if spins else {})))
            for way, spins in ways.items()
        }
        variants: dict[str, Call] = {}
        for way, step in steppers.items():
            variants[f"{way}, alone"] = step
            variants[f"{way}, beside a busy process"] = partial(_beside_a_busy_process, step)
        yield Case("a training step of the demo's teacher", "ours, alone", variants)


@contextlib.contextmanager
def _stepper(**environment: str) -> Iterator[Call]:
    """A process that trains one step per call, with its own environment variables."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import benchmark_processes as b"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", f"{program}; b.demo_steps()"],
        env=_environment(**environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    )
    asked, answers = process.stdin, process.stdout
    assert asked and answers

    def step() -> None:
        with contextlib.suppress(BrokenPipeError):
            print(file=asked)
        if not answers.readline():
            raise OSError("the process that trains has ended")

    try:
        yield step
    finally:
        process.kill()
        process.wait()


def demo_steps() -> None:
    """Forward and backward of the demo's teacher, once per line of standard input.

    A step is 8 clips of 3 frames of 96 x 128 px.
    """
    import torch

    keep_freed_memory()
    teacher = build("deformable_detr_small", "teacher", "efficientnet_lite0").train()
    batch = [noise_clip((96, 128)) for _ in range(8)]
    for _ in sys.stdin:
        torch.stack(list(teacher(batch, num_boxes=24.0).values())).sum().backward()
        teacher.zero_grad()
        print("done", flush=True)


def _beside_a_busy_process(call: Call) -> None:
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        call()
    finally:
        neighbour.kill()
        neighbour.wait()


def _process(program: str, numba_cache: str = "") -> None:
    more = {"NUMBA_CACHE_DIR": numba_cache} if numba_cache else {}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=_environment(**more),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _environment(**more: str) -> dict[str, str]:
    """This environment without GOMP_SPINCOUNT and with the paths of its modules."""
    projects = [str(ROOT / "projects" / name) for name in ("V2IDETR", "Runtime")]
    paths = os.pathsep.join([*projects, *sys.path])
    clean = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    return {**clean, "PYTHONPATH": paths, **more}


PROCESS_CASES: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "startup": startup_cases,
    "waiting": waiting_cases,
}
