"""Time, memory and disk of a stage, from measured steps of its own training."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from v2idetr.checkpoints.architecture import describe
from v2idetr.config.stage_settings import eval_period_of
from v2idetr.data.coco_vid import SplitData
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import DetectorStage, Stage, StageModels
from v2idetr.engine.stage_training import bare_trainer, split_state
from v2idetr.engine.trainer import Trainer, TrainerHook
from v2idetr.evaluation.predictions import predict
from v2idetr.modeling.backbone_handover import pixel_statistics
from v2idetr.runs.checkpoint import Checkpoint, save_checkpoint
from v2idetr.runs.stage_folder import LAST

MOST_STEPS, FEWEST_STEPS = 8, 3  # measured, after one that warms up
ENOUGH_S = 30.0  # of steps
EVALUATED_BATCHES = 4


@dataclass
class StageCost:
    """Of one stage.

    Attributes:
        steps: of the whole training.
        step_s, waiting_s: median time of a step, and of it the wait for data.
        losses: of the measured steps.
        validations: number of them in the training.
        frame_s: time of a frame in validation; 0 if not measured.
        validated_frames, evaluated_frames: of one validation, and of the evaluation at the end.
        memory_bytes: peak of the main process with its data workers.
        cuda_bytes: peak of the GPU's memory; 0 without one.
        disk_bytes: checkpoints of the finished stage.
    """

    stage: str
    steps: int
    step_s: float
    waiting_s: float
    losses: list[float] = field(default_factory=list)
    validations: int = 0
    frame_s: float = 0.0
    validated_frames: int = 0
    evaluated_frames: int = 0
    memory_bytes: int = 0
    cuda_bytes: int = 0
    disk_bytes: int = 0

    @property
    def training_s(self) -> float:
        """All steps."""
        return self.steps * self.step_s

    @property
    def validation_s(self) -> float:
        """All validations."""
        return self.validations * self.validated_frames * self.frame_s

    @property
    def evaluation_s(self) -> float:
        """On the validation and test splits, at the end."""
        return self.evaluated_frames * self.frame_s

    @property
    def total_s(self) -> float:
        return self.training_s + self.validation_s + self.evaluation_s


def measure(run: RunContext, stage: Stage, models: StageModels) -> StageCost:
    """Take some steps as the run would, detect in some validation frames, write its checkpoints.

    Args:
        run: with a temporary folder, where the checkpoints stay for later stages.
        models: are trained further.
    """
    before = _reset_peak(run.device)
    trainer = bare_trainer(run, stage, models, run.train_loader(stage, models, 0))
    clock = _Clock()
    trainer.register_hooks([*stage.hooks(models), clock])
    trainer.train(0, MOST_STEPS + 1)
    steps = clock.steps[1:]
    cost = StageCost(
        stage=stage.name,
        steps=stage.steps(run.config),
        step_s=median(step["time_s"] for step in steps),
        waiting_s=median(step["data_time_s"] for step in steps),
        losses=[step["total_loss"] for step in clock.steps],
    )
    if isinstance(stage, DetectorStage):
        _validation(run, stage, models, cost)
    cost.memory_bytes = _peak_bytes(before) + clock.workers_bytes
    if run.device.type == "cuda":
        cost.cuda_bytes = torch.cuda.max_memory_reserved(run.device)
    cost.disk_bytes = _write(run, stage, models, trainer, len(clock.steps))
    return cost


def _validation(run: RunContext, stage: Stage, models: StageModels, cost: StageCost) -> None:
    """Time of a frame, from some batches of the validation split after the first one."""
    val: SplitData = run.splits["val"]
    batches = islice(run.eval_loader(val, models.model), EVALUATED_BATCHES + 1)
    predict(models.model, [next(batches)])
    start = time.perf_counter()
    frames = len(predict(models.model, batches))
    if not frames:  # the split is one batch
        start = time.perf_counter()
        frames = len(predict(models.model, run.eval_loader(val, models.model)))
    cost.frame_s = (time.perf_counter() - start) / frames
    period = eval_period_of(run.config, stage.name)
    cost.validations = -(-cost.steps // period) if period else 0
    cost.validated_frames = len(val.records)
    tests = sum(len(split.records) for split in run.tests.values())
    cost.evaluated_frames = len(val.records) + tests


def _write(
    run: RunContext, stage: Stage, models: StageModels, trainer: Trainer, iteration: int
) -> int:
    """Write what the stage hands on, and what it is resumed from; bytes of all its checkpoints."""
    state, around = split_state(models)
    checkpoint = Checkpoint(
        stage=stage.name,
        iteration=iteration,
        model=state,
        adapters=around,
        class_names=list(run.config.data.class_names),
        architecture=describe(getattr(models.model, "net", models.model)),
        pixels=pixel_statistics(models.model),
    )
    folder = run.stage_folder(stage.name)
    folder.mkdir(parents=True, exist_ok=True)
    given = stage.artefact(run.config)
    save_checkpoint(checkpoint, given)
    checkpoint.optimizer = trainer.optimizer.state_dict()
    last: Path = folder / LAST
    save_checkpoint(checkpoint, last)
    size = last.stat().st_size + (2 if eval_period_of(run.config, stage.name) else 1) * (
        given.stat().st_size
    )
    last.unlink()
    return size


class _Clock(TrainerHook):
    """Keeps the times of the steps, and ends when there are enough."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.workers_bytes = 0

    def after_step(self) -> None:
        self.steps.append(dict(self.trainer.step_metrics))
        self.workers_bytes = max(self.workers_bytes, _children_bytes())
        spent_s = sum(step["time_s"] for step in self.steps)
        if spent_s > ENOUGH_S and len(self.steps) > FEWEST_STEPS:
            self.trainer.max_iter = self.trainer.iter + 1


def _reset_peak(device: torch.device) -> bool:
    """Begin a new measurement of the peaks; whether the main memory's could be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_bytes(was_reset: bool) -> int:
    """Peak of this process since `_reset_peak`, or else since its start."""
    if was_reset:
        return _status_bytes("self", "VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _children_bytes() -> int:
    """Memory of the data workers that they do not share with this process."""
    return sum(
        _status_bytes(str(child.pid), "RssAnon") for child in multiprocessing.active_children()
    )


def _status_bytes(process: str, name: str) -> int:
    """A value of /proc/PROCESS/status; 0 where there is none."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)
