"""What happens around the steps: rates, log, evaluation, checkpoints, stopping, distillation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor

from v2i_runtime.progress import progress_bar
from v2idetr.distillation.student import DistilledStudent
from v2idetr.engine.early_stopping import EarlyStopping
from v2idetr.engine.loggers import Loggers
from v2idetr.engine.optimizer import set_learning_rates
from v2idetr.engine.signals import StopRequested, StopSignals
from v2idetr.engine.trainer import Sample, TrainerHook
from v2idetr.modeling.training import TransformerDetector
from v2idetr.runs.checkpoint import Checkpoint, save_checkpoint
from v2idetr.runs.stage_folder import BEST, FINAL, LAST, append_metrics, truncate_metrics

logger = logging.getLogger(__name__)


class LearningRate(TrainerHook):
    """Sets the learning rates of every step.

    Args:
        multiplier: of the initial rates, by the share of the steps that are done.
        steps: all of them.
        early_stopping: a further factor, or None.
    """

    def __init__(
        self, multiplier: ParamScheduler, steps: int, early_stopping: EarlyStopping | None
    ) -> None:
        self.multiplier, self.steps, self.early_stopping = multiplier, steps, early_stopping
        self.value = 0.0

    def before_step(self) -> None:
        trainer = self.trainer
        factor = self.multiplier(trainer.iter / self.steps)
        if self.early_stopping is not None:
            factor *= self.early_stopping.factor(trainer.iter)
        self.value = set_learning_rates(trainer.optimizer, factor)

    def by_group(self) -> dict[str, float]:
        """The rates of the last step: "lr" of the first group, "lr/<name>" of the others."""
        first, *others = self.trainer.optimizer.param_groups
        return {"lr": float(first["lr"])} | {f"lr/{g['name']}": float(g["lr"]) for g in others}


class DistillationHook(TrainerHook):
    """Asks the frozen teacher about each micro-batch before the student sees it.

    Adds their agreement to the metrics of every step, as "agreement/<name>": the losses without
    their weights, and `DistillationLoss.measures`; means over micro-batches and processes.

    Args:
        teacher: a trained detector of clips, frozen.
        student: the distilled student, whose losses decide how far the teacher has to run.
    """

    def __init__(self, teacher: TransformerDetector, student: DistilledStudent) -> None:
        self.teacher, self.student = teacher, student

    def before_step(self) -> None:
        self.student.agreement = []

    def before_forward(self, batch: list[Sample]) -> dict[str, Any]:
        return {"knowledge": self.student.knowledge(self.teacher, batch)}

    def measured(self) -> dict[str, Tensor]:
        found = self.student.agreement
        last = found.pop() if found else {}
        return {f"agreement/{name}": value for name, value in last.items()}

    def after_step(self) -> None:
        self.student.agreement = None


class MetricsLog(TrainerHook):
    """Appends to metrics.jsonl the means since the last line, and shows progress.

    A line is {"iteration": completed steps, losses, "agreement/<name>" of a student, "grad_norm",
    "lr", "lr/<group>" of the optimizer's further groups, "labelled_frames", of all processes, and
    of the main one "time_s", "data_time_s", "processor_time_s"}, each for one step, and what a
    detector of Detectron2 has counted in the last step. Sums that are not yet a line are part of
    the checkpoint, so the file of a resumed run equals that of an uninterrupted one, times apart.

    Args:
        open_loggers: (steps done before) -> where the same lines go as well.
    """

    def __init__(
        self,
        path: Path,
        period: int,
        learning_rate: LearningRate,
        open_loggers: Callable[[int], Loggers] = lambda start: Loggers(),
    ) -> None:
        self.path, self.period, self.learning_rate = path, period, learning_rate
        self.open_loggers, self.loggers = open_loggers, Loggers()
        self._finished = False
        self._sums: dict[str, float] = {}
        self._count = 0
        self._bar: Any = None

    def before_train(self) -> None:
        if comm.is_main_process():
            truncate_metrics(self.path, self.trainer.start_iter)
            self.loggers = self.open_loggers(self.trainer.start_iter)
            self._bar = progress_bar(
                total=self.trainer.max_iter,
                initial=self.trainer.start_iter,
                desc=self.trainer.stage,
                unit="step",
                leave=True,
                say=logger.info,
            )

    def after_step(self) -> None:
        for name, value in self.trainer.step_metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        done = self.trainer.iter + 1
        if self._bar is not None:
            self._bar.total = self.trainer.max_iter
            self._bar.update(1)
        if done % self.period == 0 or done == self.trainer.max_iter:
            means = {name: value / self._count for name, value in self._sums.items()}
            self._sums, self._count = {}, 0
            line = {"iteration": done, **means, **self.learning_rate.by_group()}
            self.append(line | self._counted_by_the_detector(line))
            if self._bar is not None:
                self._bar.set_postfix_str(
                    f"loss {means['total_loss']:.3f}, lr {self.learning_rate.value:.2g}, "
                    f"{means['time_s']:.2f} s a step",
                    refresh=False,
                )

    def append(self, line: dict[str, Any]) -> None:
        """Write one line."""
        if comm.is_main_process():
            append_metrics(self.path, line)
            self.loggers.metrics(line)

    def after_train(self) -> None:
        self._finished = True

    def _counted_by_the_detector(self, line: dict[str, Any]) -> dict[str, float]:
        """What models of Detectron2 have put into the storage in this step."""
        latest = self.trainer.storage.latest().items()
        return {n: v for n, (v, step) in latest if step == self.trainer.iter and n not in line}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._count = dict(state["sums"]), state["count"]

    def close(self) -> None:
        self.loggers.close(finished=self._finished)
        if self._bar is not None:
            self._bar.close()


class CheckpointWriter(TrainerHook):
    """Writes last.pth periodically and at the end, and final.pth; more of them when asked to.

    Args:
        folder: of the stage.
        period: steps between writes of last.pth.
        snapshot: (iteration, with the state needed to resume) -> what to write.
    """

    def __init__(
        self, folder: Path, period: int, snapshot: Callable[[int, bool], Checkpoint]
    ) -> None:
        self.folder, self.period, self.snapshot = folder, period, snapshot

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            self.write_last()

    def after_train(self) -> None:
        self._write(FINAL, self.trainer.max_iter, resumable=False)

    def write_last(self, done: int | None = None) -> None:
        """Everything needed to continue after so many steps, by default after the current one."""
        done = self.trainer.iter + 1 if done is None else done
        self._write(LAST, done, resumable=True)

    def write_best(self, iteration: int) -> None:
        """The weights alone."""
        self._write(BEST, iteration, resumable=False)

    def _write(self, name: str, iteration: int, *, resumable: bool) -> None:
        if comm.is_main_process():
            save_checkpoint(self.snapshot(iteration, resumable), self.folder / name)


class Validation(TrainerHook):
    """Evaluates on the validation split and keeps the best weights by a named metric.

    Args:
        validate: returns metrics by name, the same on all processes.
        period: steps between evaluations; there is one more at the end.
        metric: name of the metric to maximise.
        writer: writes best.pth, and last.pth before it and when an evaluation is interrupted.
        log: gets one line per evaluation, names prefixed with "val/".
        early_stopping: told the metric of each evaluation, or None.
        draw: (steps, metrics) -> file with some of the frames, on the main process; or None.
    """

    def __init__(
        self,
        validate: Callable[[], dict[str, float]],
        *,
        period: int,
        metric: str,
        writer: CheckpointWriter,
        log: MetricsLog,
        signals: StopSignals,
        early_stopping: EarlyStopping | None = None,
        draw: Callable[[int, dict[str, float]], Path] | None = None,
    ) -> None:
        self.early_stopping, self.draw = early_stopping, draw
        self.validate, self.period, self.metric = validate, period, metric
        self.writer, self.log, self.signals = writer, log, signals
        self.best: dict[str, Any] | None = None
        self._evaluated = 0

    def before_train(self) -> None:
        """Make up for an evaluation that the interrupted run did not finish, or for best.pth."""
        start = self.trainer.start_iter
        if self.best is not None and self.best["iteration"] == start:
            self.writer.write_best(start)  # a kill may have come between last.pth and it
        if start > 0 and self._due(start) and self._evaluated != start:
            with self.signals.immediate():
                self._evaluate(start)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        # After a signal to any process none begins an evaluation; a resumed run makes up for it.
        if self._due(done) and self.signals.requested(self.trainer.device) is None:
            try:
                with self.signals.immediate():
                    self._evaluate(done)
            except StopRequested:
                self.writer.write_last()
                raise

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "evaluated": self._evaluated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self._evaluated = state["best"], state["evaluated"]

    def _due(self, done: int) -> bool:
        # Of a resumed training, `max_iter` may not have been lowered yet.
        last = self.early_stopping.ends if self.early_stopping else self.trainer.max_iter
        return done % self.period == 0 or done == last

    def _evaluate(self, done: int) -> None:
        metrics = self.validate()
        if self.metric not in metrics:
            raise ValueError(
                f"the best checkpoint is chosen by {self.metric!r} (train.best_metric, or a "
                "stage's own), but the evaluation computes "
                f"{', '.join(metrics)}."
            )
        value = float(metrics[self.metric])
        with self.signals.deferred():
            best = self.best
            if best is None or value >= _or_worst(best["value"]):  # equal: the longer trained
                finite = value if math.isfinite(value) else None
                best = self.best = {"metric": self.metric, "value": finite, "iteration": done}
            if self.early_stopping is not None:
                self.early_stopping.observe(value)
            self._evaluated = done
            named = {f"val/{name}": value for name, value in metrics.items()}
            self.log.append({"iteration": done, **named})
            if best["iteration"] == done:  # best.pth is of the history that a resumed run continues
                self.writer.write_last(done)
                self.writer.write_best(done)
            if self.draw is not None:
                self.log.loggers.image(done, self.draw(done, metrics))
        logger.info(
            "%s: step %d: validation %s %.4f (best %s at step %d)",
            self.trainer.stage,
            done,
            self.metric,
            value,
            "undefined" if best["value"] is None else f"{best['value']:.4f}",
            best["iteration"],
        )


class Interruption(TrainerHook):
    """After a signal: finish the step, write last.pth, stop on all processes together."""

    def __init__(self, signals: StopSignals, writer: CheckpointWriter) -> None:
        self.signals, self.writer = signals, writer

    def after_step(self) -> None:
        number = self.signals.requested(self.trainer.device)
        if number is not None:
            self.writer.write_last()
            comm.synchronize()  # whoever ends first takes the others down
            raise StopRequested(number)

    def without_batch(self, error: RuntimeError) -> None:
        """The signal has ended the data workers as well, before this step had its batch."""
        if self.signals.received is not None:
            if self.trainer.iter > self.trainer.start_iter:
                self.writer.write_last(self.trainer.iter)
            raise StopRequested(self.signals.received) from error


def _or_worst(value: float | None) -> float:
    return -math.inf if value is None else value
