"""numba's kernels of deformable attention: threads, forks, processes and folders around them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from benchmark_models import build, noise_clip
from torch import Tensor

from v2idetr.modeling import numba_kernels
from v2idetr.modeling.deformable_numba import read_numba

SHAPES = [(12, 16), (6, 8)]


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    S = sum(h * w for h, w in SHAPES)
    return (
        torch.randn(2, S, 4, 16, generator=generator),
        torch.rand(2, S, 4, 2, 4, 2, generator=generator) * 1.2 - 0.1,
        torch.rand(2, S, 4, 2, 4, generator=generator),
    )


def outputs_and_gradients(seed: int = 0) -> list[Tensor]:
    leaves = [x.requires_grad_() for x in inputs(seed)]
    out = read_numba(leaves[0], SHAPES, leaves[1], leaves[2])
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, torch_threads, threads: int
) -> None:
    torch_threads(1)
    alone = outputs_and_gradients()
    monkeypatch.setattr(numba_kernels, "MIN_WORK_PER_THREAD", 1)
    torch_threads(threads)
    for have, want in zip(outputs_and_gradients(), alone, strict=True):
        assert torch.equal(have, want)


def test_two_python_threads_read_at_once(monkeypatch: pytest.MonkeyPatch, torch_threads) -> None:
    monkeypatch.setattr(numba_kernels, "MIN_WORK_PER_THREAD", 1)
    torch_threads(2)
    want = [outputs_and_gradients(seed) for seed in range(2)]
    found: dict[int, list[list[Tensor]]] = {0: [], 1: []}

    def read(seed: int) -> None:
        found[seed] = [outputs_and_gradients(seed) for _ in range(10)]

    threads = [threading.Thread(target=read, args=(seed,)) for seed in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, results in found.items():
        assert len(results) == 10
        for result in results:
            assert all(torch.equal(have, w) for have, w in zip(result, want[seed], strict=True))


PROGRAM = """
import os, sys, torch
torch.set_num_threads(2)
from v2idetr.modeling import deformable_numba, numba_kernels
numba_kernels.MIN_WORK_PER_THREAD = 1
value = torch.ones(1, 12, 4, 8)
where = torch.full((1, 8, 4, 1, 1, 2), 0.5)
def read():
    out = deformable_numba.read_numba(value, [(3, 4)], where, torch.ones(1, 8, 4, 1, 1))
    return bool((out == 1).all())
assert read()
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_forked_child_reads_after_its_parent_has() -> None:
    fork = """
child = os.fork()
if child == 0:
    os._exit(0 if read() else 3)
assert os.waitpid(child, 0)[1] == 0
assert read()
"""
    result = run(PROGRAM + fork)
    assert result.returncode == 0, result.stderr


def test_the_second_process_finds_compiled_kernels_in_the_cache(tmp_path: Path) -> None:
    show = """
forward, backward = deformable_numba._kernels(torch.float32)
print("loaded", sum(forward.stats.cache_hits.values()), sum(backward.stats.cache_hits.values()))
"""
    first = run(PROGRAM + show, NUMBA_CACHE_DIR=str(tmp_path))
    second = run(PROGRAM + show, NUMBA_CACHE_DIR=str(tmp_path))
    assert "loaded 0 0" in first.stdout, first.stderr
    assert "loaded 1 1" in second.stdout, second.stderr


def test_without_a_folder_for_the_cache_kernels_are_compiled_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As root every folder can be written to: numba's answer for one that cannot stands for it.
    program = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
caching.CompileResultCacheImpl._locator_classes = []
import logging
logging.basicConfig(format="%(message)s")
"""
    result = run(program + PROGRAM)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("compiled at every start") == 1


def test_a_full_disk_does_not_stop_a_run(tmp_path: Path) -> None:
    program = """
import errno
from numba.core import caching
def save(*args):
    raise OSError(errno.ENOSPC, "No space left on device")
caching.IndexDataCacheFile.save = save
"""
    result = run(program + PROGRAM, NUMBA_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr


def test_a_trained_teacher_has_the_same_weights_for_any_number_of_kernel_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = [noise_clip((64, 96))]
    monkeypatch.setattr(numba_kernels, "MIN_WORK_PER_THREAD", 1)

    def trained(threads: int) -> list[Tensor]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        torch.manual_seed(0)
        teacher = build("deformable_detr_small", "teacher", "efficientnet_lite0").train()
        optimizer = torch.optim.AdamW(teacher.parameters(), 1e-3)
        for _ in range(3):
            torch.stack(list(teacher(batch, num_boxes=3.0).values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return list(teacher.state_dict().values())

    alone = trained(1)
    for threads in (2, 3):
        assert all(map(torch.equal, trained(threads), alone))
