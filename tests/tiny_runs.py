"""Runs of tiny models, and weights as if they had been trained."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from v2idetr.config.load import load_config
from v2idetr.engine import process
from v2idetr.engine.run_context import RunContext, load_splits
from v2idetr.engine.signals import StopSignals
from v2idetr.engine.stage_graph import build_stage
from v2idetr.engine.stage_training import split_state
from v2idetr.engine.trainer import Trainer
from v2idetr.runs.checkpoint import (
    Checkpoint,
    save_checkpoint,
)


def make_run(path: Path, *overrides: str) -> RunContext:
    config = load_config(path, ["train.max_iter=2", "train.eval_period=2", *overrides])
    splits = load_splits(config, with_train=True)
    return RunContext(config, torch.device("cpu"), splits, StopSignals())


def write_weights(run: RunContext, stage: str, name: str = "best.pth") -> Path:
    """Freshly drawn weights of a stage, as if it had been trained."""
    models = build_stage(run.config, stage)
    path = run.stage_folder(stage) / name
    save_checkpoint(Checkpoint(stage, 2, split_state(models)[0], class_names=["polyp"]), path)
    return path


def run(
    config_path: Path,
    output: Path,
    *,
    resume: bool = False,
    stages: tuple[str, ...] = ("plain",),
    overrides: Sequence[str] = (),
) -> int:
    """Exit code of a run in this process."""
    own = [f"train.output_dir={output}", f"train.stages=[{', '.join(stages)}]"]
    config = load_config(config_path, [*own, *overrides])
    options = argparse.Namespace(resume=resume, eval_only=False)
    return process.run_process(options, config, "cpu")


def before_step(number: int, act: Callable[[], None]) -> None:
    """In this process, call `act` in the middle of the n-th step from now."""
    original, count = Trainer._losses, iter(range(1, 10_000))

    def patched(self: Trainer, *arguments):
        if next(count) == number:
            act()
        return original(self, *arguments)

    Trainer._losses = patched


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
