"""Training of one stage, from its beginning or from where it was cut off."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from v2idetr.checkpoints.architecture import describe
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.load import build, fingerprint, save_config
from v2idetr.distillation.student import DistilledStudent
from v2idetr.engine import hooks
from v2idetr.engine.early_stopping import EarlyStopping
from v2idetr.engine.run_context import RunContext, eval_loader, train_loader
from v2idetr.engine.stage_models import StageModels, build_stage, split_state
from v2idetr.engine.trainer import Trainer
from v2idetr.evaluation.evaluator import validate
from v2idetr.runs.checkpoint import Checkpoint, load_checkpoint, load_detector, load_into
from v2idetr.runs.folder import CONFIG, git_commit, steps_of

logger = logging.getLogger(__name__)

LAST = "last.pth"


def train_stage(run: RunContext, stage: str) -> None:
    """Train a stage up to its final.pth; continues from its last.pth if there is one.

    Raises:
        ValueError, CheckpointError: something does not fit; NonFiniteLossError; StopRequested.
    """
    folder = run.stage_folder(stage)
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        save_config(run.config, folder / CONFIG)
    models = build_stage(run.config, stage, pretrained=starts_from_imagenet(run, stage))
    if models.teacher is not None:
        load_teacher(run, models.teacher)
        models.teacher.to(run.device)
    last = folder / LAST
    checkpoint = load_checkpoint(last) if started(run, stage) else None
    if checkpoint is None:
        load_initial_weights(run.config, stage, models.detector)
    else:
        _load_model(models, checkpoint, last, stage, run.config)
    models.trained.to(run.device)
    start, steps = checkpoint.iteration if checkpoint else 0, steps_of(run.config, stage)
    trainer = _build_trainer(run, stage, models, start)
    if checkpoint is not None:
        assert checkpoint.optimizer is not None, "last.pth is written with the optimizer"
        trainer.optimizer.load_state_dict(checkpoint.optimizer)
        trainer.load_state_dict(checkpoint.progress)
        logger.info("%s: resuming at step %d of %d", stage, start, steps)
    del checkpoint  # twice the size of the model
    comm.synchronize()
    with run.signals.deferred():
        trainer.train(start, steps)
    comm.synchronize()


def started(run: RunContext, stage: str) -> bool:
    """Whether there is a checkpoint to continue the stage from."""
    return (run.stage_folder(stage) / LAST).exists()


def starts_from_imagenet(run: RunContext, stage: str) -> bool:
    """Whether no checkpoint replaces all weights of the stage's backbone."""
    given = run.config[_section(stage)]
    return not started(run, stage) and not (given.init_checkpoint and not given.init_partial)


@torch.no_grad()
def rehearse(run: RunContext, stage: str, models: StageModels) -> None:
    """Compute the losses of one training clip: parts that do not fit say so now.

    A student's losses meet its teacher for the first time here, and would otherwise do so after
    the teacher has been trained.

    Raises:
        ValueError: whatever a part has to say about another one.
    """
    batch = next(iter(train_loader(run, stage, _frames_needed(models), 0, rehearsal=True)))
    models.trained.to(run.device).train()
    if models.teacher is None:
        models.trained(batch)
        return
    assert isinstance(models.trained, DistilledStudent)
    teacher = models.teacher.to(run.device).eval()
    models.trained(batch, knowledge=models.trained.knowledge(teacher, batch))


def load_teacher(run: RunContext, teacher: nn.Module) -> None:
    """Give a student's teacher the weights that were trained, or given by teacher.checkpoint."""
    names = list(run.config.data.class_names)
    with _blaming("teacher.checkpoint" if run.config.teacher.checkpoint else ""):
        load_detector(teacher, run.weights("teacher"), class_names=names)


def load_initial_weights(config: DictConfig, stage: str, detector: nn.Module) -> None:
    """Start a stage from its init_checkpoint, if there is one.

    Raises:
        CheckpointError: it does not fit, see `load_detector`; names the key.
    """
    section = _section(stage)
    given = config[section]
    if not given.init_checkpoint:
        return
    with _blaming(f"{section}.init_checkpoint"):
        left_out = load_detector(
            detector,
            given.init_checkpoint,
            class_names=list(config.data.class_names),
            partial=given.init_partial,
            advice=f"set {section}.init_partial=true to leave out what does not fit",
        )
    modules = Counter(".".join(name.split(".")[:2]) for name in left_out)
    logger.info(
        "%s: starting from %s; tensors that it does not give: %s",
        stage,
        given.init_checkpoint,
        ", ".join(f"{module} ({count})" for module, count in modules.items()) or "none",
    )


def _section(stage: str) -> str:
    """The section of the config that says what the stage starts from."""
    return "teacher" if stage == "teacher" else "train"


@contextlib.contextmanager
def _blaming(key: str) -> Iterator[None]:
    """Errors about a file begin with the key that names it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}" if key else str(error)) from error


def _load_model(
    models: StageModels, checkpoint: Checkpoint, path: Path, stage: str, config: DictConfig
) -> None:
    if checkpoint.stage != stage or checkpoint.config_fingerprint != fingerprint(config):
        raise CheckpointError(
            f"{path}: was written by stage {checkpoint.stage} of a run with other settings; "
            "give this run another train.output_dir."
        )
    load_into(models.detector, checkpoint.model, path)
    _, around = split_state(models)
    if around.keys() != checkpoint.adapters.keys():
        raise CheckpointError(
            f"{path}: was written with other distillation losses: it has "
            f"{sorted(checkpoint.adapters)}, the config gives {sorted(around)}."
        )
    models.trained.load_state_dict(checkpoint.adapters, strict=False)


def _build_trainer(run: RunContext, stage: str, models: StageModels, start: int) -> Trainer:
    train, folder = run.config.train, run.stage_folder(stage)
    trainer = Trainer(
        _distributed(run, models.trained),
        train_loader(run, stage, _frames_needed(models), start),
        build(run.config, "teacher.optimizer" if stage == "teacher" else "optimizer")(
            models.trained
        ),
        stage=stage,
        seed=train.seed,
        accumulate=run.micro_batches(stage),
        amp=train.amp,
        clip_grad_norm=float(train.clip_grad_norm),
    )
    steps, early_stopping = steps_of(run.config, stage), None
    if train.patience:
        early_stopping = EarlyStopping(
            patience=train.patience, cooldown=float(train.cooldown), most_steps=steps
        )
    multiplier = build(run.config, "lr_multiplier")
    learning_rate = hooks.LearningRate(multiplier, steps, early_stopping)
    log = hooks.MetricsLog(folder / "metrics.jsonl", train.log_period, learning_rate)
    commit, digest = git_commit(), fingerprint(run.config)
    architecture = describe(models.detector.net)
    validation: hooks.Validation | None = None

    def snapshot(iteration: int, resumable: bool) -> Checkpoint:
        detector, around = split_state(models)
        return Checkpoint(
            stage=stage,
            iteration=iteration,
            model=detector,
            adapters=around,
            optimizer=trainer.optimizer.state_dict() if resumable else None,
            progress=trainer.state_dict() if resumable else {},
            best=validation.best if validation else None,
            class_names=list(run.config.data.class_names),
            config_fingerprint=digest,
            git_commit=commit,
            architecture=architecture,
        )

    writer = hooks.CheckpointWriter(folder, train.checkpoint_period, snapshot)
    if train.eval_period:
        validation = _validation(run, models, writer, log, early_stopping)
    distillation = None
    if models.teacher is not None:
        assert isinstance(models.trained, DistilledStudent)
        distillation = hooks.DistillationHook(models.teacher, models.trained.knowledge)
    board = None
    if train.tensorboard and comm.is_main_process():
        board = hooks.TensorBoard(folder, train.log_period)
    stop = hooks.Interruption(run.signals, writer)
    # Log before validation before checkpoint: last.pth then holds what both have done.
    trainer.register_hooks(
        [learning_rate, distillation, log, validation, early_stopping, board, writer, stop]
    )
    return trainer


def _validation(
    run: RunContext,
    models: StageModels,
    writer: hooks.CheckpointWriter,
    log: hooks.MetricsLog,
    early_stopping: EarlyStopping | None,
) -> hooks.Validation:
    split, evaluation = run.splits["val"], run.config.evaluation
    loader = eval_loader(run, split, models.detector.num_frames)
    return hooks.Validation(
        lambda: validate(
            models.detector,
            split,
            loader,
            rules=list(evaluation.rules),
            coco_ap=evaluation.coco_ap,
        ),
        period=run.config.train.eval_period,
        metric=run.config.train.best_metric,
        writer=writer,
        log=log,
        signals=run.signals,
        early_stopping=early_stopping,
    )


def _frames_needed(models: StageModels) -> int:
    watching = models.detector if models.teacher is None else models.teacher
    return watching.num_frames


def _distributed(run: RunContext, model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[run.device.index] if run.device.type == "cuda" else None,
        find_unused_parameters=run.config.train.find_unused_parameters,
        forward_sync_buffers=False,  # all are constants
        gradient_as_bucket_view=True,  # or every gradient is kept twice
    )
