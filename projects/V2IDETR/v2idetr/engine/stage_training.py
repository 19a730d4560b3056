"""Training of one stage, from its beginning or from where it was cut off."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from v2idetr.checkpoints.architecture import describe
from v2idetr.checkpoints.files import CheckpointError, sha256
from v2idetr.config.load import build, fingerprint, save_config
from v2idetr.config.stage_settings import eval_period_of, optimizer_key, value_at
from v2idetr.data.loader import ClipDataset
from v2idetr.engine import hooks
from v2idetr.engine.early_stopping import EarlyStopping
from v2idetr.engine.loggers import open_loggers
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.sample_frames import sample_frames_of
from v2idetr.engine.stage import DetectorStage, Stage, StageModels
from v2idetr.engine.trainer import Trainer
from v2idetr.modeling.backbone_handover import pixel_statistics
from v2idetr.runs.checkpoint import (
    Checkpoint,
    blaming,
    load_checkpoint,
    load_detector,
    load_into,
)
from v2idetr.runs.folder import CONFIG, git_commit
from v2idetr.runs.stage_folder import LAST, StageFolder

logger = logging.getLogger(__name__)

TRIED_FRAMES = 8  # of the validation split; an augmentation may be drawn on half of them only
# What a smaller train.clips_at_once leaves as it is, and what it does not.
SAME_BATCH = "the batch of a step stays the same, that of batch normalisation becomes smaller"


def train_stage(run: RunContext, name: str) -> None:
    """Train a stage up to its final.pth; continues from its last.pth if there is one.

    Raises:
        ValueError, CheckpointError: something does not fit; NonFiniteLossError; StopRequested.
    """
    stage, folder = run.stages[name], run.stage_folder(name)
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        save_config(run.config, folder / CONFIG)
    models = stage.build(run.config, pretrained=starts_from_imagenet(run, stage))
    checkpoint = load_checkpoint(folder / LAST) if started(run, stage) else None
    if checkpoint is None:
        load_initial_weights(run.config, stage, models.model)
    stage.load_needs(run, models)
    if checkpoint is not None:
        _load_model(models, checkpoint, run, stage)
    if models.teacher is not None:
        models.teacher.to(run.device)
    models.trained.to(run.device)
    start, steps = checkpoint.iteration if checkpoint else 0, stage.steps(run.config)
    trainer = _build_trainer(run, stage, models, start)
    if checkpoint is not None:
        assert checkpoint.optimizer is not None, "last.pth is written with the optimizer"
        trainer.optimizer.load_state_dict(checkpoint.optimizer)
        trainer.load_state_dict(checkpoint.progress)
        logger.info("%s: resuming at step %d of %d", name, start, steps)
    del checkpoint  # twice the size of the model
    comm.synchronize()
    with run.signals.deferred():
        trainer.train(start, steps)
    comm.synchronize()


def started(run: RunContext, stage: Stage) -> bool:
    """Whether there is a checkpoint to continue the stage from."""
    return (run.stage_folder(stage.name) / LAST).exists()


def starts_from_imagenet(run: RunContext, stage: Stage) -> bool:
    """Whether no checkpoint replaces all weights of the stage's backbone."""
    file, partial, _ = _initial_weights(run.config, stage)
    return not started(run, stage) and not (file and not partial)


@torch.no_grad()
def dry_run(run: RunContext, stage: Stage, models: StageModels) -> None:
    """Compute the losses of a training clip or two: parts that do not fit say so now.

    A student's losses meet its teacher for the first time here, and would otherwise do so after
    the teacher has been trained. A detector's first validation clips are read, too.

    Raises:
        ValueError: whatever a part has to say about another one; a loss is not finite.
    """
    if isinstance(stage, DetectorStage) and (split := run.splits.get("val")) is not None:
        mapper = run.clip_mapper(split, models.model, is_train=False, keep=False)
        clips = ClipDataset(split.records, mapper)
        for index in range(min(TRIED_FRAMES, len(clips))):
            clips[index, index]  # with the draws of an evaluation
    batch = next(iter(run.train_loader(stage, models, 0, dry_run=True)))
    models.trained.to(run.device)
    models.trained.train()
    _warn_of_cut_normalisation(run, stage, models.trained)
    if models.teacher is not None:
        models.teacher.to(run.device)
    model: Any = models.trained
    extra: dict[str, Any] = {"num_boxes": float(max(1, model.count_boxes(batch)))}
    for hook in stage.hooks(models):
        extra |= hook.before_forward(batch)
    with EventStorage():  # where Detectron2's detectors write
        losses: dict[str, torch.Tensor] = model(batch, **extra)
    if wrong := [name for name, loss in losses.items() if not bool(torch.isfinite(loss).all())]:
        raise ValueError(
            f"stages.{stage.name}: {', '.join(wrong)} is not finite before any training: look at "
            "the weights of the losses, and at what the stage starts from."
        )


def _warn_of_cut_normalisation(run: RunContext, stage: Stage, model: nn.Module) -> None:
    """Say that statistics of batch normalisation are those of a part of the batch."""
    parts = run.micro_batches(stage)
    if parts > 1 and any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        logger.warning(
            "%s: train.clips_at_once=%d cuts the batch into %d parts, and batch normalisation is "
            "computed for each part by itself: raise train.clips_at_once if memory allows it, or "
            "freeze the normalisation.",
            stage.name,
            run.config.train.clips_at_once,
            parts,
        )


def load_initial_weights(config: DictConfig, stage: Stage, model: nn.Module) -> None:
    """Start a stage from its init_checkpoint, if there is one.

    Raises:
        CheckpointError: it does not fit, see `load_detector`; names the key.
    """
    file, partial, key = _initial_weights(config, stage)
    if not file:
        return
    with blaming(key):
        left_out = load_detector(
            model,
            file,
            class_names=list(config.data.class_names),
            partial=partial,
            advice=f"set {stage.settings}.init_partial=true to leave out what does not fit",
        )
    modules = Counter(".".join(name.split(".")[:2]) for name in left_out)
    logger.info(
        "%s: starting from %s; tensors that it does not give: %s",
        stage.name,
        file,
        ", ".join(f"{module} ({count})" for module, count in modules.items()) or "none",
    )


def _initial_weights(config: DictConfig, stage: Stage) -> tuple[str, bool, str]:
    """The file that the stage starts from ("" for none), whether in part, and the file's key."""
    key = f"{stage.settings}.init_checkpoint"
    partial = value_at(config, f"{stage.settings}.init_partial")
    return str(value_at(config, key) or ""), bool(partial), key


def split_state(models: StageModels) -> tuple[dict[str, Any], dict[str, Any]]:
    """State of the model that is saved, and of what surrounds it in training."""
    state = dict(models.model.state_dict())
    if models.trained is models.model:
        return state, {}
    own = {id(tensor) for tensor in models.model.state_dict(keep_vars=True).values()}
    everything = models.trained.state_dict(keep_vars=True)
    around = {name: t.detach() for name, t in everything.items() if id(t) not in own}
    return state, around


def _load_model(models: StageModels, checkpoint: Checkpoint, run: RunContext, stage: Stage) -> None:
    path = run.stage_folder(stage.name) / LAST
    known = checkpoint.stage, checkpoint.config_fingerprint
    if known != (stage.name, fingerprint(run.config)):
        raise CheckpointError(
            f"{path}: was written by stage {checkpoint.stage} of a run with other settings; "
            "give this run another train.output_dir."
        )
    for role, digest in _needed_files(run, stage).items():
        if checkpoint.needs.get(role, digest) != digest:
            file = stage.earlier[role].artefact(run.config)
            raise CheckpointError(
                f"stages.{stage.name}.needs.{role}: {file} has changed since {path} was written. "
                "Put the earlier file back, or give this run another train.output_dir."
            )
    load_into(models.model, checkpoint.model, path)
    _, around = split_state(models)
    if around.keys() != checkpoint.adapters.keys():
        raise CheckpointError(
            f"{path}: was written with other distillation losses: it has "
            f"{sorted(checkpoint.adapters)}, the config gives {sorted(around)}."
        )
    models.trained.load_state_dict(checkpoint.adapters, strict=False)


def _needed_files(run: RunContext, stage: Stage) -> dict[str, str]:
    """Digest of what each earlier stage has handed over, by role."""
    return {role: sha256(need.artefact(run.config)) for role, need in stage.earlier.items()}


def bare_trainer(
    run: RunContext,
    stage: Stage,
    models: StageModels,
    batches: Iterable[Any],
    *,
    accumulate: int | None = None,
) -> Trainer:
    """The trainer of a stage with its optimizer, without hooks.

    Args:
        batches: what the steps are made of.
        accumulate: parts that a batch is processed in; None: as many as the config allows for.
    """
    train = run.config.train
    return Trainer(
        _distributed(run, models.trained),
        batches,
        build(run.config, optimizer_key(run.config, stage.name))(models.trained),
        stage=stage.name,
        seed=train.seed,
        accumulate=accumulate or run.micro_batches(stage),
        amp=train.amp,
        clip_grad_norm=float(train.clip_grad_norm),
    )


def _build_trainer(run: RunContext, stage: Stage, models: StageModels, start: int) -> Trainer:
    train, folder, steps = run.config.train, run.stage_folder(stage.name), stage.steps(run.config)
    trainer = bare_trainer(run, stage, models, run.train_loader(stage, models, start))
    early_stopping = _early_stopping(train, steps)
    multiplier = build(run.config, "lr_multiplier")
    learning_rate = hooks.LearningRate(multiplier, steps, early_stopping)
    log = hooks.MetricsLog(
        StageFolder(folder).metrics,
        train.log_period,
        learning_rate,
        lambda start: open_loggers(run.config, stage.name, start),
    )
    samples = sample_frames_of(run, stage, models)
    commit, digest = git_commit(), fingerprint(run.config)
    architecture = describe(getattr(models.model, "net", models.model))
    pixels, needs = pixel_statistics(models.model), _needed_files(run, stage)
    validation: hooks.Validation | None = None

    def snapshot(iteration: int, resumable: bool) -> Checkpoint:
        state, around = split_state(models)
        return Checkpoint(
            stage=stage.name,
            iteration=iteration,
            model=state,
            adapters=around,
            optimizer=trainer.optimizer.state_dict() if resumable else None,
            progress=trainer.state_dict() if resumable else {},
            best=validation.best if validation else None,
            class_names=list(run.config.data.class_names),
            config_fingerprint=digest,
            git_commit=commit,
            architecture=architecture,
            pixels=pixels,
            needs=needs,
        )

    writer = hooks.CheckpointWriter(folder, train.checkpoint_period, snapshot)
    if period := eval_period_of(run.config, stage.name):
        validation = hooks.Validation(
            lambda: stage.validate(run, models),
            period=period,
            metric=stage.best_metric(run.config),
            writer=writer,
            log=log,
            signals=run.signals,
            early_stopping=early_stopping,
            draw=samples.write if samples else None,
        )
    stop = hooks.Interruption(run.signals, writer)
    # Log before validation before checkpoint: last.pth then holds what both have done.
    around = [log, validation, early_stopping, writer, stop]
    trainer.register_hooks([learning_rate, *stage.hooks(models), *around])
    return trainer


def _early_stopping(train: Any, steps: int) -> EarlyStopping | None:
    if not train.patience:
        return None
    return EarlyStopping(patience=train.patience, cooldown=float(train.cooldown), most_steps=steps)


def _distributed(run: RunContext, model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[run.device.index] if run.device.type == "cuda" else None,
        find_unused_parameters=run.config.train.find_unused_parameters,
        # Running statistics are the first process's, as in its checkpoint; else all are constants,
        # or equal on all processes.
        forward_sync_buffers=any(isinstance(m, _BatchNorm) for m in model.modules()),
        gradient_as_bucket_view=True,  # or every gradient is kept twice
    )
