"""Whole steps of momentum contrast against numpy, and what the stage hands on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from free_lunch.contrast import KeyHook, MomentumContrast, views_of
from free_lunch.encoder import Encoder
from tests.tiny_runs import make_run, write_weights
from v2idetr.config.load import load_config
from v2idetr.engine.stage_graph import build_stage
from v2idetr.engine.stages import build_to_train

CHOSEN = (  # all different, so that none stands in for another one
    "stages.student.temperature=0.3",
    "stages.student.distillation_temperature=0.15",
    "stages.student.contrast_weight=2.0",
    "stages.student.distillation_weight=3.0",
)


def batch_of(seed: int, number: int = 4) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (number, 2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return [{"views": list(views)} for views in pixels]


def vectors(encoder: Encoder, pixels: Tensor) -> np.ndarray:
    with torch.no_grad():
        return encoder(pixels).double().numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def similarities(queries: np.ndarray, keys: np.ndarray, queue: np.ndarray) -> np.ndarray:
    return np.concatenate([(queries * keys).sum(1, keepdims=True), queries @ queue.T], axis=1)


def test_the_second_step_has_the_losses_of_the_formulae(pretraining_config: Path) -> None:
    config = yaml.safe_load(pretraining_config.read_text())
    config["teacher"]["encoder"] |= {"dim": 12}
    pretraining_config.write_text(yaml.safe_dump(config))
    models = build_stage(load_config(pretraining_config, list(CHOSEN)), "student")
    contrast, teacher = models.trained, models.teacher
    assert isinstance(contrast, MomentumContrast) and isinstance(teacher, Encoder)
    hook = KeyHook(contrast, teacher)
    optimizer = torch.optim.SGD(contrast.encoder.parameters(), lr=1.0)

    batch = batch_of(seed=0)
    hook.before_step()
    sum(contrast(batch, **hook.before_forward(batch)).values()).backward()
    second = views_of(batch, torch.device("cpu"))[1]
    queue, teacher_queue = vectors(contrast.key_encoder, second), vectors(teacher, second)
    optimizer.step()
    hook.after_step()

    batch = batch_of(seed=1)
    hook.before_step()
    losses = contrast(batch, **hook.before_forward(batch))
    first, second = views_of(batch, torch.device("cpu"))
    student = similarities(
        vectors(contrast.encoder, first), vectors(contrast.key_encoder, second), queue
    )
    known = similarities(vectors(teacher, first), vectors(teacher, second), teacher_queue)
    p, s = log_softmax(known / 0.15), log_softmax(student / 0.15)
    expected = {
        "loss_contrast": -2 * log_softmax(student / 0.3)[:, 0].mean(),
        "loss_distillation": 3 * (np.exp(p) * (p - s)).sum(1).mean(),
    }
    assert {n: float(loss.detach()) for n, loss in losses.items()} == pytest.approx(
        expected, rel=1e-4
    )


def test_the_momentum_encoder_starts_from_the_weights_of_init_checkpoint(
    pretraining_config: Path, tmp_path: Path
) -> None:
    model = build_stage(load_config(pretraining_config), "contrastive").model
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "given.pth")
    start = f"train.init_checkpoint={tmp_path / 'given.pth'}"
    run = make_run(pretraining_config, start, "train.stages=[contrastive]")
    contrast = build_to_train(run, "contrastive").trained
    assert isinstance(contrast, MomentumContrast)
    contrast(batch_of(seed=0))
    for name, parameter in contrast.key_encoder.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_the_artefact_is_the_last_step_not_the_best_one(pretraining_config: Path) -> None:
    run = make_run(pretraining_config)
    for name in ("best.pth", "final.pth"):
        write_weights(run, "teacher", name)
    stage = run.stages["teacher"]
    assert stage.artefact(run.config) == run.stage_folder("teacher") / "final.pth"
    run.config.teacher.checkpoint = "given/other.pth"
    assert stage.artefact(run.config) == Path("given/other.pth")
