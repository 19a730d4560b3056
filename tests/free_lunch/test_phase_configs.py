"""The configs of Free Lunch: how often they validate, and their low-data regimes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_fixtures import ROOT
from v2idetr.config.load import load_run_config
from v2idetr.config.stage_settings import eval_period_of, steps_of

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("freelunch_*.yaml"))


def load(name: str, *overrides: str):
    path = Path(ROOT / "configs" / name)
    return load_run_config(path, list(overrides), world_size=1, has_gpu=False)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_best_step_is_one_of_five_at_least(name) -> None:
    config = load(name)
    for stage in config.stages:
        assert eval_period_of(config, stage) <= steps_of(config, stage) / 5, stage
