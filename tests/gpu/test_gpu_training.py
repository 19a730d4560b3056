"""Training on a GPU: mixed precision, repeatability, resuming after a kill, NCCL."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.conftest import make_sample
from tests.gpu.conftest import FAMILIES, demo_detector
from v2idetr.config.load import load_config
from v2idetr.engine.process import run_process
from v2idetr.engine.trainer import Trainer
from v2idetr.runs.checkpoint import load_checkpoint

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
AMP_BOUND = 0.1  # of the first loss, relative


def batches(steps: int) -> list[list[dict]]:
    return [[make_sample(2 * step + i, size=(96, 128)) for i in range(2)] for step in range(steps)]


def train(model: torch.nn.Module, steps: int, *, amp: str = "off") -> Trainer:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    trainer = Trainer(model, batches(steps), optimizer, stage="plain", seed=0, amp=amp)
    trainer.train(0, steps)
    return trainer


def first_loss(model: torch.nn.Module, amp: str) -> float:
    return train(deepcopy(model), 1, amp=amp).step_metrics["total_loss"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_and_stays_near_single(family: str, amp: str, device) -> None:
    model = demo_detector(family, "model").to(device)
    assert first_loss(model, amp) == pytest.approx(first_loss(model, "off"), rel=AMP_BOUND)
    before = deepcopy(model.state_dict())
    train(model, 10, amp=amp)  # the first steps of fp16 are skipped until the scale fits
    after = model.state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def run(config_path: Path, output: Path, device, *, resume: bool = False) -> None:
    config = load_config(config_path, changes(output, device))
    options = argparse.Namespace(resume=resume, eval_only=False)
    assert run_process(options, config, device.type) == 0


def changes(output: Path, device) -> list[str]:
    return [
        f"train.output_dir={output}",
        f"train.device={device.type}",
        "train.stages=[teacher, student]",
        f"train.max_iter={STEPS}",
        f"train.eval_period={STEPS}",
        "train.num_workers=2",
    ]


def assert_same_weights(one: Path, other: Path) -> None:
    for stage in ("teacher", "student"):
        first, second = (load_checkpoint(run / stage / "final.pth").model for run in (one, other))
        assert first.keys() == second.keys()
        assert not [name for name in first if not torch.equal(first[name], second[name])]


@pytest.fixture(params=["tiny_config"])
def whole(request, tmp_path: Path, device) -> tuple[Path, Path]:
    """Config, and an uninterrupted run of it."""
    config = request.getfixturevalue(request.param)
    run(config, tmp_path / "whole", device)
    return config, tmp_path / "whole"


def test_a_deterministic_run_is_repeatable(whole, tmp_path: Path, device) -> None:
    config, first = whole
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(config, tmp_path / "again", device)
    without = {str(w.message) for w in said if "deterministic" in str(w.message)}
    assert not without, "operations without a repeatable implementation"
    assert_same_weights(first, tmp_path / "again")


def test_a_killed_run_that_is_resumed_ends_with_the_same_weights(
    whole, tmp_path: Path, device
) -> None:
    config, uninterrupted = whole
    output = tmp_path / "killed"
    path = os.pathsep.join([str(ROOT / "tests" / "engine"), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "train_net.py", "--config-file", str(config), *changes(output, device)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last, end = output / "teacher" / "last.pth", time.monotonic() + 90
    while not last.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    assert process.wait() < 0, "it was to be killed before it ended"
    assert 0 < load_checkpoint(last).iteration < STEPS
    run(config, output, device, resume=True)
    assert_same_weights(uninterrupted, output)


def test_one_process_with_nccl_takes_the_steps_of_one_without(tmp_path: Path, device) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    alone, wrapped = (demo_detector("deformable_detr_small", "model").to(device) for _ in range(2))
    train(alone, 3)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{tmp_path / 'meeting_point'}",
        rank=0,
        world_size=1,
    )
    try:
        ids = [device.index] if device.type == "cuda" else None
        train(DistributedDataParallel(wrapped, device_ids=ids, find_unused_parameters=True), 3)
    finally:
        dist.destroy_process_group()
    for (name, ours), theirs in zip(
        alone.state_dict().items(), wrapped.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5, msg=name)
