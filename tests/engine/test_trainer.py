"""One step gives one gradient: however it is cut, wherever it runs, whatever ran before."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.tiny_fixtures import in_two_processes
from v2idetr.config.load import load_config
from v2idetr.engine.run_context import RunContext, load_splits
from v2idetr.engine.signals import StopSignals
from v2idetr.engine.stage_graph import build_stage
from v2idetr.engine.trainer import NonFiniteLossError, Trainer, seed_step, split_batch


class Regressor(nn.Module):
    """A detector in its losses alone: a sum over boxes, divided by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.seen: list[float] = []

    def count_frames(self, batch: list[dict]) -> int:
        return len(batch)

    def count_boxes(self, batch: list[dict]) -> int:
        return sum(len(sample["boxes"]) for sample in batch)

    def forward(self, batch: list[dict], num_boxes: float) -> dict[str, torch.Tensor]:
        self.seen.append(num_boxes)
        boxes = torch.cat([sample["boxes"] for sample in batch])
        errors = (boxes @ self.weight - 1).square().sum() + 0 * self.weight.sum()
        return {"loss_box": errors / num_boxes}


def samples(*counts: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"boxes": torch.rand(count, 2, generator=generator), "file_name": f"{i}.png"}
        for i, count in enumerate(counts)
    ]


def trainer(model: nn.Module, *batches: list[dict], **settings) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.pop("lr", 0.1))
    return Trainer(model, list(batches), optimizer, stage="plain", seed=0, **settings)


@pytest.mark.parametrize("counts", [(3, 1, 2, 2), (4, 0, 0, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_gives_the_gradient_of_the_large_batch(counts, accumulate) -> None:
    gradients, losses = [], []
    for parts in (1, accumulate):
        model = Regressor()
        run = trainer(model, samples(*counts), accumulate=parts)
        run.train(0, 1)
        gradients.append(model.weight.grad)
        losses.append(run.step_metrics["total_loss"])
        assert model.seen == [max(sum(counts), 1) / parts] * parts
    torch.testing.assert_close(gradients[1], gradients[0])
    assert losses[1] == pytest.approx(losses[0])


def test_a_batch_that_cannot_be_cut_evenly_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"5 clips cannot be cut into 2 equal parts"):
        split_batch(samples(1, 1, 1, 1, 1), 2)


def test_gradients_are_clipped_together_by_their_norm() -> None:
    model = Regressor()
    before = model.weight.detach().clone()
    run = trainer(model, samples(3, 3), clip_grad_norm=0.1, lr=1.0)
    run.train(0, 1)
    assert run.step_metrics["grad_norm"] > 0.1
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.1, rel=1e-4)


def test_random_numbers_of_a_step_depend_on_seed_stage_iteration_and_rank_alone() -> None:
    def draw(*words) -> tuple:
        seed_step(*words)
        return random.random(), np.random.rand(), float(torch.rand(1))

    first = draw(0, "plain", 5, 0)
    torch.rand(10)
    assert draw(0, "plain", 5, 0) == first
    others = [(1, "plain", 5, 0), (0, "student", 5, 0), (0, "plain", 6, 0), (0, "plain", 5, 1)]
    draws = [first, *(draw(*words) for words in others)]
    for kind in zip(*draws, strict=True):
        assert len(set(kind)) == 5


# ---------------------------------------------------------------------------------- not a number


def test_a_loss_that_is_not_finite_names_the_iteration_and_the_frame() -> None:
    model = Regressor()
    bad = samples(1, 1, 1)
    bad[1]["boxes"][0, 0] = float("inf")
    weight = model.weight.detach().clone()
    with pytest.raises(NonFiniteLossError) as caught:
        trainer(model, samples(1, 1, 1), bad, lr=0.0).train(0, 2)
    message = str(caught.value)
    assert "stage plain, iteration 1" in message and "loss_box" in message
    assert "1.png" in message and "0.png" not in message and "2.png" not in message
    assert torch.equal(model.weight, weight)


def test_a_matcher_that_refuses_its_costs_is_reported_with_the_frame() -> None:
    class Refusing(Regressor):
        def forward(self, batch: list[dict], num_boxes: float) -> dict[str, torch.Tensor]:
            if any(sample["file_name"] == "1.png" for sample in batch):
                raise FloatingPointError("the matching costs (L1) are not finite")
            return super().forward(batch, num_boxes)

    with pytest.raises(NonFiniteLossError) as caught:
        trainer(Refusing(), samples(1, 1, 1)).train(0, 1)
    assert str(caught.value) == (
        "stage plain, iteration 0: the matching costs (L1) are not finite. Earlier "
        "checkpoints are kept. 1 frame(s) gave this:\n  1.png\n"
        "Look at these frames and their boxes; else lower optimizer.lr, or set train.amp=off."
    )


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    class Cornered(Regressor):
        def forward(self, batch: list[dict], num_boxes: float) -> dict[str, torch.Tensor]:
            return {"loss_box": (self.weight * 0).square().sum().sqrt()}

    model = Cornered()
    with pytest.raises(NonFiniteLossError, match="gradient is not finite, though the loss is"):
        trainer(model, samples(1)).train(0, 1)
    assert bool(torch.isfinite(model.weight).all())


# ------------------------------------------------------------------------------- real detectors


def one_step(config_path: Path, name: str, *, world: int = 1, **settings) -> tuple[dict, dict]:
    """Losses and gradients of the first step of a stage, dropout apart."""
    config = load_config(config_path, ["model.net.dropout=0"])
    models = build_stage(config, name)
    splits = load_splits(config, with_train=True)
    run = RunContext(config, torch.device("cpu"), splits, StopSignals())
    stage = run.stages[name]
    loader = run.train_loader(stage, models, 0)
    network = DistributedDataParallel(models.trained) if world > 1 else models.trained
    optimizer = torch.optim.SGD(models.trained.parameters(), lr=0.0)
    step = Trainer(network, loader, optimizer, stage=name, seed=0, **settings)
    if models.teacher is not None:
        # A trained teacher is no copy of its student, where the L1 of TFD would have a kink.
        other = load_config(config_path, ["train.seed=1"])
        models.teacher.load_state_dict(build_stage(other, "teacher").model.state_dict())
        step.register_hooks(stage.hooks(models))
    step.train(0, 1)
    losses = {name: value for name, value in step.step_metrics.items() if "time" not in name}
    gradients = {n: p.grad for n, p in models.trained.named_parameters() if p.grad is not None}
    return losses, gradients


@pytest.mark.parametrize("stage", ["teacher", "plain", "student"])
def test_accumulation_is_the_large_batch_for_every_stage(tiny_config, stage) -> None:
    losses, gradients = one_step(tiny_config, stage)
    cut_losses, cut_gradients = one_step(tiny_config, stage, accumulate=4)
    assert cut_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(cut_gradients, gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", ["plain", "student"])
def test_accumulation_is_the_large_batch_for_a_softmax_too(tiny_detr_config, stage) -> None:
    # Its loss is a weighted mean, and the parts of a batch have different numbers of lesions.
    losses, gradients = one_step(tiny_detr_config, stage)
    cut_losses, cut_gradients = one_step(tiny_detr_config, stage, accumulate=4)
    assert cut_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(cut_gradients, gradients, rtol=1e-5, atol=1e-5)


def test_two_processes_give_the_losses_and_gradients_of_one(tiny_config, tmp_path) -> None:
    expected_losses, expected = one_step(tiny_config, "student")

    def work(rank: int) -> None:
        losses, gradients = one_step(tiny_config, "student", world=2, accumulate=2)
        torch.save({"losses": losses, "gradients": gradients}, tmp_path / f"{rank}.pt")

    in_two_processes(work, tmp_path)
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert result["losses"] == pytest.approx(expected_losses, rel=1e-5, abs=1e-5)
        torch.testing.assert_close(result["gradients"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_bf16_gives_nearly_the_same_losses(tiny_config, stage) -> None:
    losses, _ = one_step(tiny_config, stage)
    rounded, _ = one_step(tiny_config, stage, amp="bf16")
    assert rounded["total_loss"] == pytest.approx(losses["total_loss"], rel=0.05)
