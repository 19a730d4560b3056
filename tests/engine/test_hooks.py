"""Around the steps: the best weights, the log, the teacher."""

from __future__ import annotations

import json
import logging
import math
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn

from v2idetr.engine import hooks
from v2idetr.engine.early_stopping import EarlyStopping
from v2idetr.engine.signals import StopRequested, StopSignals
from v2idetr.engine.trainer import Trainer
from v2idetr.runs.checkpoint import Checkpoint, load_checkpoint


class Counter(nn.Module):
    """One weight that grows by one a step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def count_boxes(self, batch: list) -> int:
        return 1

    def count_frames(self, batch: list) -> int:
        return len(batch)

    def forward(self, batch: list, num_boxes: float) -> dict[str, torch.Tensor]:
        return {"loss_count": -self.weight.sum()}


class Stage:
    """A trainer with the hooks of a stage, whose validation reads its metrics from a list."""

    def __init__(
        self,
        folder: Path,
        metrics: dict[int, float],
        period: int = 1,
        *,
        eval_period: int = 1,
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        self.model, self.folder, self.signals = Counter(), folder, StopSignals()
        self.early_stopping = early_stopping
        optimizer = torch.optim.SGD([{"params": list(self.model.parameters()), "initial_lr": 1.0}])
        self.trainer = Trainer(self.model, self._batches(), optimizer, stage="plain", seed=0)
        rate = hooks.LearningRate(LinearParamScheduler(1.0, 1.0), 100, early_stopping)
        log = hooks.MetricsLog(folder / "metrics.jsonl", 2, rate)
        writer = hooks.CheckpointWriter(folder, period, self.snapshot)
        self.validation = hooks.Validation(
            lambda: {"AP": metrics[round(float(self.model.weight.detach()))]},
            period=eval_period,
            metric="AP",
            writer=writer,
            log=log,
            signals=self.signals,
            early_stopping=early_stopping,
        )
        stop = hooks.Interruption(self.signals, writer)
        self.trainer.register_hooks([rate, log, self.validation, early_stopping, writer, stop])

    def _batches(self) -> Iterator[list]:
        while True:
            yield [{"file_name": "a.png"}]

    def snapshot(self, iteration: int, resumable: bool) -> Checkpoint:
        state = {"weight": self.model.weight.detach().clone()}
        progress = self.trainer.state_dict() if resumable else {}
        return Checkpoint("plain", iteration, state, best=self.validation.best, progress=progress)

    def resume(self) -> int:
        last = load_checkpoint(self.folder / "last.pth")
        self.model.load_state_dict(last.model)
        self.trainer.load_state_dict(last.progress)
        return last.iteration

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]


def test_the_best_weights_are_those_of_the_best_evaluation(tmp_path) -> None:
    stage = Stage(tmp_path, {1: 0.2, 2: 0.5, 3: 0.4})
    stage.trainer.train(0, 3)
    best = load_checkpoint(tmp_path / "best.pth")
    assert best.iteration == 2 and best.model["weight"] == 2
    assert best.best == {"metric": "AP", "value": 0.5, "iteration": 2}
    assert load_checkpoint(tmp_path / "final.pth").model["weight"] == 3


def test_the_best_evaluation_is_remembered_after_a_resume(tmp_path) -> None:
    Stage(tmp_path, {1: 0.2, 2: 0.5}).trainer.train(0, 2)
    later = Stage(tmp_path, {3: 0.4, 4: 0.3})
    later.trainer.train(later.resume(), 4)
    assert load_checkpoint(tmp_path / "best.pth").model["weight"] == 2
    assert load_checkpoint(tmp_path / "last.pth").best["value"] == 0.5


def test_a_training_goes_on_from_its_best_weights_or_from_later_ones(tmp_path) -> None:
    stage = Stage(tmp_path, {3: 0.5}, period=10, eval_period=3)
    stage.trainer.batches = [[{"file_name": "a.png"}]] * 4
    with pytest.raises(StopIteration):  # cut off after step 4
        stage.trainer.train(0, 6)
    assert load_checkpoint(tmp_path / "best.pth").iteration == 3
    assert load_checkpoint(tmp_path / "last.pth").iteration == 3
    other = Stage(tmp_path, {6: 0.4}, period=10, eval_period=3)
    other.trainer.train(other.resume(), 6)
    assert (
        load_checkpoint(tmp_path / "best.pth").best == load_checkpoint(tmp_path / "final.pth").best
    )
    assert [line["iteration"] for line in other.lines() if "val/AP" in line] == [3, 6]


def test_a_kill_before_the_best_weights_are_written_loses_nothing(tmp_path, monkeypatch) -> None:
    stage = Stage(tmp_path, {1: 0.5}, period=10)
    monkeypatch.setattr(stage.validation.writer, "write_best", lambda done: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage.trainer.train(0, 2)
    later = Stage(tmp_path, {2: 0.4}, period=10)
    later.trainer.train(later.resume(), 2)
    best = load_checkpoint(tmp_path / "best.pth")
    assert (best.iteration, best.model["weight"]) == (1, 1)


def test_of_equal_evaluations_the_later_is_the_best(tmp_path) -> None:
    Stage(tmp_path, {1: 0.0, 2: 0.0, 3: 0.0}).trainer.train(0, 3)
    assert load_checkpoint(tmp_path / "best.pth").iteration == 3


def test_an_undefined_metric_is_never_better_than_a_number(tmp_path) -> None:
    stage = Stage(tmp_path, {1: math.nan, 2: 0.0, 3: math.nan})
    stage.trainer.train(0, 3)
    assert load_checkpoint(tmp_path / "best.pth").iteration == 2
    assert [line["val/AP"] for line in stage.lines() if "val/AP" in line] == [None, 0.0, None]


def test_a_metric_that_the_evaluation_lacks_is_an_error(tmp_path) -> None:
    stage = Stage(tmp_path, {1: 0.0})
    stage.validation.metric = "AP60"
    with pytest.raises(ValueError, match=r"AP60.*computes AP"):
        stage.trainer.train(0, 1)


def test_an_error_writes_neither_final_nor_last(tmp_path) -> None:
    stage = Stage(tmp_path, {1: 0.1, 2: 0.2})
    stage.trainer.batches = [[{"file_name": "a.png"}]] * 2
    with pytest.raises(StopIteration):
        stage.trainer.train(0, 3)
    assert load_checkpoint(tmp_path / "last.pth").iteration == 2
    assert not (tmp_path / "final.pth").exists()


def test_the_log_has_means_and_forgets_what_a_resumed_run_does_again(tmp_path) -> None:
    falling = {step: 1 / step for step in range(1, 9)}  # the best ones write last.pth as well
    stage = Stage(tmp_path, falling, period=3)
    stage.trainer.batches = [[{"file_name": "a.png"}]] * 4
    with pytest.raises(StopIteration):  # cut off after step 4, last.pth is of step 3
        stage.trainer.train(0, 5)
    assert stage.lines()[-1]["iteration"] == 4
    (tmp_path / "metrics.jsonl").open("a").write('{"iteration": 6, "total_')

    later = Stage(tmp_path, falling, period=3)
    later.trainer.train(later.resume(), 5)
    losses = {line["iteration"]: line["total_loss"] for line in later.lines() if "lr" in line}
    # Losses are 0, -1, -2 ... The mean at step 4 holds step 3, which an earlier process took.
    assert losses == {2: -0.5, 4: -2.5, 5: -4.0}
    assert [line["iteration"] for line in later.lines() if "val/AP" in line] == [1, 2, 3, 4, 5]


def test_without_a_terminal_training_is_followed_in_the_log(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("v2i_runtime.progress.LINE_PERIOD_S", 0.0)
    stage = Stage(tmp_path, dict.fromkeys(range(1, 5), 0.1), period=1)
    with caplog.at_level(logging.INFO):
        stage.trainer.train(0, 4)
    lines = [record.message for record in caplog.records if "left" in record.message]
    assert re.fullmatch(
        r"plain: step 4 of 4, loss .*, lr .*, .* s a step, .* 00:00 left", lines[-1]
    )


def test_after_a_signal_no_evaluation_begins_and_a_resumed_run_makes_up_for_it(tmp_path) -> None:
    stage = Stage(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3})
    step = stage.trainer.run_step

    def signalled_at_the_second() -> None:
        step()
        if stage.trainer.iter == 1:
            stage.signals.received = signal.SIGTERM

    stage.trainer.run_step = signalled_at_the_second
    with pytest.raises(StopRequested):
        stage.trainer.train(0, 3)
    assert [line["iteration"] for line in stage.lines() if "val/AP" in line] == [1]
    later = Stage(tmp_path, {2: 0.2, 3: 0.3})
    later.trainer.train(later.resume(), 3)
    assert [line["iteration"] for line in later.lines() if "val/AP" in line] == [1, 2, 3]
