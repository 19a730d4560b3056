"""Training until validation has stopped rising, then down to a rate of zero."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.test_hooks import Stage
from tests.engine.test_resume import assert_equal_runs, before_step, run, send
from v2idetr.engine.early_stopping import EarlyStopping
from v2idetr.engine.signals import StopRequested
from v2idetr.engine.trainer import TrainerHook
from v2idetr.runs.checkpoint import load_checkpoint

# Best after 2 steps; a weight of 1 a step would read further ones as the rate falls.
RISING_UNTIL_2 = {1: 0.1, 2: 0.5} | dict.fromkeys(range(3, 40), 0.3)


def stopping(patience: int = 3, cooldown: float = 0.4, most: int = 20) -> EarlyStopping:
    return EarlyStopping(patience=patience, cooldown=cooldown, most_steps=most)


def rates(stage: Stage) -> list[float]:
    found: list[float] = []
    before = stage.trainer.before_step

    def note() -> None:
        before()
        found.append(stage.trainer.optimizer.param_groups[0]["lr"])

    stage.trainer.before_step = note  # type: ignore[method-assign]
    stage.trainer.train(0, 20)
    return found


def test_after_patience_evaluations_without_a_better_one_the_rate_falls_to_zero(tmp_path) -> None:
    found = rates(Stage(tmp_path, RISING_UNTIL_2, early_stopping=stopping()))
    assert found[:6] == [1.0] * 6  # evaluations 3, 4 and 5 are no better; the fall begins there
    assert len(found) == 5 + 2 and found[6] == pytest.approx(0.5)
    assert load_checkpoint(tmp_path / "final.pth").iteration == 7


def test_an_equal_evaluation_is_no_better_one(tmp_path) -> None:
    Stage(tmp_path, dict.fromkeys(range(40), 1.0), early_stopping=stopping()).trainer.train(0, 20)
    assert load_checkpoint(tmp_path / "final.pth").iteration == 4 + 2  # 1, then 2, 3 and 4


def test_while_validation_rises_the_fall_begins_in_time_to_end_with_the_last_step(
    tmp_path, caplog
) -> None:
    stage = Stage(tmp_path, {n: n / 100 for n in range(40)}, early_stopping=stopping(most=14))
    with caplog.at_level("INFO"):
        stage.trainer.train(0, 14)
    assert load_checkpoint(tmp_path / "final.pth").iteration == 14
    assert "step 10: the learning rate falls to zero until step 14, because the last of 14" in (
        caplog.text
    )


@given(
    most=st.integers(1, 10_000),
    cooldown=st.floats(0, 2),
    begins=st.integers(1, 10_000),
)
def test_training_never_takes_more_than_the_most_steps_and_the_rate_only_falls(
    most: int, cooldown: float, begins: int
) -> None:
    hook = stopping(cooldown=cooldown, most=most)
    assert 1 <= hook.latest <= most
    hook.begins = min(begins, hook.latest)
    assert hook.begins <= hook.ends <= most
    factors = [hook.factor(i) for i in range(max(0, hook.begins - 2), hook.ends)]
    assert all(0 < b <= a <= 1 for a, b in pairwise(factors))


def test_a_resumed_stage_ends_where_it_would_have_ended(tmp_path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    Stage(whole, RISING_UNTIL_2, early_stopping=stopping()).trainer.train(0, 20)
    for stop in (4, 6):  # before the fall, and in it
        stage = Stage(cut, RISING_UNTIL_2, early_stopping=stopping())
        start = stage.resume() if (cut / "last.pth").exists() else 0
        stage.trainer.register_hooks([_StopAt(stop)])
        with pytest.raises(KeyboardInterrupt):
            stage.trainer.train(start, 20)
        assert (stage.early_stopping.begins is None) == (stop < 5)
    stage = Stage(cut, RISING_UNTIL_2, early_stopping=stopping())
    stage.trainer.train(stage.resume(), 20)
    assert load_checkpoint(cut / "final.pth").iteration == 7
    lines = [
        [{k: v for k, v in json.loads(line).items() if "time" not in k} for line in file]
        for file in ((whole / "metrics.jsonl").open(), (cut / "metrics.jsonl").open())
    ]
    assert lines[0] == lines[1]


def test_the_last_evaluation_is_made_up_for_where_the_fall_ends_between_two(tmp_path) -> None:
    """The fall begins after step 6 (of 2, 4 and 6) and ends with step 9, at a weight of 8."""
    metrics = {2: 0.5, 4: 0.3, 6: 0.3, 8: 0.9}
    settings = {"eval_period": 2, "early_stopping": stopping(patience=2, cooldown=0.5)}
    stage = Stage(tmp_path, metrics, **settings)
    stage.validation._evaluate = _interrupted_at(9, stage.validation._evaluate)
    with pytest.raises(StopRequested):
        stage.trainer.train(0, 20)
    assert load_checkpoint(tmp_path / "last.pth").iteration == 9
    later = Stage(
        tmp_path, metrics, eval_period=2, early_stopping=stopping(patience=2, cooldown=0.5)
    )
    later.trainer.train(later.resume(), 20)
    assert load_checkpoint(tmp_path / "best.pth").iteration == 9
    assert load_checkpoint(tmp_path / "final.pth").iteration == 9


def _interrupted_at(step: int, evaluate: Callable[[int], None]) -> Callable[[int], None]:
    def patched(done: int) -> None:
        if done == step:
            raise StopRequested(signal.SIGTERM)
        evaluate(done)

    return patched


def test_a_run_that_is_killed_in_its_fall_ends_as_an_uninterrupted_one(
    tiny_config: Path, tmp_path, in_child
) -> None:
    overrides = ["train.patience=1", "train.cooldown=1.0", "train.max_iter=12"]
    overrides += [f"train.{key}_period=1" for key in ("eval", "checkpoint")]

    def killed() -> int:
        before_step(4, send(signal.SIGKILL))
        return run(tiny_config, tmp_path / "killed", overrides=overrides)

    assert in_child(lambda: run(tiny_config, tmp_path / "whole", overrides=overrides)) == 0
    assert in_child(killed) == -signal.SIGKILL
    again = lambda: run(tiny_config, tmp_path / "killed", resume=True, overrides=overrides)  # noqa: E731
    assert in_child(again) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert load_checkpoint(tmp_path / "whole" / "plain" / "final.pth").iteration < 12


class _StopAt(TrainerHook):
    """Stops a training after a number of steps."""

    def __init__(self, done: int) -> None:
        self.done = done

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.done:
            raise KeyboardInterrupt
