"""Runs of tiny models, and weights as if they had been trained."""

from __future__ import annotations

from pathlib import Path

import torch

from v2idetr.config.load import load_config
from v2idetr.engine.run_context import RunContext, load_splits
from v2idetr.engine.signals import StopSignals
from v2idetr.engine.stage import build_stage, split_state
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
