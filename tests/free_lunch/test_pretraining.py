"""Pretraining as stages of a run: what learns, what is refused, and that it resumes to the bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml

from free_lunch.contrast import KeyHook, MomentumContrast
from free_lunch.pretraining import build_encoder
from free_lunch.views import TwoViews
from tests.free_lunch.conftest import write_pretraining_config
from tests.tiny_fixtures import in_child, in_two_processes
from tests.tiny_parts import TinyBackbone
from tests.tiny_runs import before_step, make_run, run, same, send
from v2idetr.config.load import build, load_config
from v2idetr.engine.stage_graph import build_stage
from v2idetr.engine.stages import run_stages
from v2idetr.runs.checkpoint import load_checkpoint

STAGES = ("teacher", "student")


def batch_of(models, number: int = 4, seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (number, 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return [{"views": list(views), "file_name": str(i)} for i, views in enumerate(pixels)]


def _normalised(encoder, pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.float() - encoder.pixel_mean) / encoder.pixel_std


def step(models, hook: KeyHook, batch: list[dict], optimizer: torch.optim.Optimizer) -> dict:
    hook.before_step()
    losses = models.trained(batch, **hook.before_forward(batch))
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    hook.after_step()
    return losses


def test_gradients_flow_into_the_student_alone(pretraining_config: Path) -> None:
    models = build_stage(load_config(pretraining_config), "student")
    hook = KeyHook(models.trained, models.teacher)
    optimizer = torch.optim.SGD([p for p in models.trained.parameters() if p.requires_grad], lr=0.1)
    before = {n: p.clone() for n, p in models.teacher.state_dict().items()}
    for seed in range(2):  # the first step has no keys to compare with
        losses = step(models, hook, batch_of(models, seed=seed), optimizer)
    assert set(losses) == {"loss_contrast", "loss_distillation"}
    assert all(float(loss.detach()) > 0 for loss in losses.values())
    assert all(p.grad is not None for p in models.trained.encoder.parameters())
    assert all(p.grad is None for p in models.trained.key_encoder.parameters())
    assert all(p.grad is None for p in models.teacher.parameters())
    assert same(before, dict(models.teacher.state_dict())), "the teacher does not change"
    assert not models.teacher.training


def test_each_loss_has_its_own_temperature_and_weight(pretraining_config: Path) -> None:
    def losses(*changes: str) -> dict[str, float]:
        models = build_stage(load_config(pretraining_config, list(changes)), "student")
        hook = KeyHook(models.trained, models.teacher)
        with torch.no_grad():
            for seed in range(2):
                hook.before_step()
                batch = batch_of(models, seed=seed)
                found = models.trained(batch, **hook.before_forward(batch))
                hook.after_step()
        return {name: float(loss) for name, loss in found.items()}

    usual = losses()
    warm = losses("stages.student.distillation_temperature=2.0")
    assert warm["loss_contrast"] == usual["loss_contrast"]
    assert warm["loss_distillation"] < usual["loss_distillation"]
    cold = losses("stages.student.temperature=0.1")
    assert cold["loss_distillation"] == usual["loss_distillation"]
    assert cold["loss_contrast"] != usual["loss_contrast"]
    doubled = losses("stages.student.contrast_weight=2.0")
    assert doubled["loss_contrast"] == pytest.approx(2 * usual["loss_contrast"])


def test_mixed_precision_gives_nearly_the_same_losses(pretraining_config: Path) -> None:
    found = []
    for enabled in (False, True):
        models = build_stage(load_config(pretraining_config), "student")
        hook = KeyHook(models.trained, models.teacher)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for seed in range(2):
                hook.before_step()
                batch = batch_of(models, seed=seed)
                losses = models.trained(batch, **hook.before_forward(batch))
                hook.after_step()
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        found.append({name: float(loss) for name, loss in losses.items()})
    assert found[1] == pytest.approx(found[0], rel=0.05, abs=0.01)


def test_with_a_frozen_backbone_only_the_head_learns(pretraining_config: Path) -> None:
    models = build_stage(load_config(pretraining_config), "teacher")
    before = {n: p.clone() for n, p in models.model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in models.trained.parameters() if p.requires_grad], lr=0.1)
    for seed in range(2):
        step(models, KeyHook(models.trained, None), batch_of(models, seed=seed), optimizer)
    changed = {n for n, p in models.model.state_dict().items() if not torch.equal(p, before[n])}
    assert changed and all(name.startswith("head.") for name in changed)


def test_the_momentum_encoder_follows_the_encoder_and_its_statistics(pretraining_config) -> None:
    models = build_stage(load_config(pretraining_config), "contrastive")
    contrast = models.trained
    assert isinstance(contrast, MomentumContrast)
    contrast.momentum = 0.75
    optimizer = torch.optim.SGD(contrast.encoder.parameters(), lr=0.1)
    step(models, KeyHook(contrast, None), batch_of(models), optimizer)
    before = {n: t.clone() for n, t in contrast.key_encoder.state_dict().items()}
    step(models, KeyHook(contrast, None), batch_of(models, seed=1), optimizer)
    now = contrast.encoder.state_dict()
    for name, tensor in contrast.key_encoder.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        expected = 0.75 * before[name] + 0.25 * now[name]
        torch.testing.assert_close(tensor, expected)
    assert not torch.equal(now["backbone.norm.running_mean"], before["backbone.norm.running_mean"])


def test_the_first_step_gives_the_momentum_encoder_statistics_of_the_images(
    pretraining_config,
) -> None:
    models = build_stage(load_config(pretraining_config), "contrastive")
    batch = batch_of(models)
    first = torch.stack([sample["views"][0] for sample in batch])
    norm = models.trained.key_encoder.backbone.norm
    assert norm.running_mean.abs().max() == 0
    with torch.no_grad():
        models.trained(batch)
        maps = TinyBackbone.forward(models.model.backbone, _normalised(models.model, first))["c2"]
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)))
    kept = norm.running_mean.clone()
    models.trained(batch)
    assert torch.equal(norm.running_mean, kept), "only the first step does"


def test_a_key_does_not_depend_on_the_rest_of_its_batch(pretraining_config) -> None:
    encoder = build_encoder(load_config(pretraining_config), "encoder", pretrained=True)
    contrast = MomentumContrast(encoder, queue_size=8, temperature=0.2, momentum=0.9)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    together, alone = contrast.key_encoder(pixels), contrast.key_encoder(pixels[:1])
    torch.testing.assert_close(together[:1], alone)


def test_the_batch_in_parts_gives_the_queue_of_the_whole_batch(pretraining_config) -> None:
    whole, parts = (build_stage(load_config(pretraining_config), "student") for _ in range(2))
    first, batch = batch_of(whole), batch_of(whole, seed=1)
    for models, pieces in ((whole, [batch]), (parts, [batch[:2], batch[2:]])):
        hook = KeyHook(models.trained, models.teacher)
        for step_pieces in ([first], pieces):
            hook.before_step()
            for piece in step_pieces:
                models.trained(piece, **hook.before_forward(piece))
            hook.after_step()
    for name in ("student", "teacher"):
        torch.testing.assert_close(parts.trained.queue.keys(name), whole.trained.queue.keys(name))


def test_views_depend_on_the_seed_alone(pretraining_config, tmp_path) -> None:
    run_context = make_run(pretraining_config)
    stage = run_context.stages["student"]
    mapper = stage.training_mapper(run_context, stage.build(run_context.config))
    assert isinstance(mapper, TwoViews)
    record = run_context.splits["train"].records[0]
    state = torch.get_rng_state()
    one, again, other = (mapper(record, seed)["views"] for seed in (5, 5, 6))
    assert torch.equal(state, torch.get_rng_state()), "the global generator is as before"
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], other[0])
    assert one[0].shape == (3, 64, 64) and one[0].dtype == torch.uint8


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, unlabelled_data) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    config = write_pretraining_config(folder, unlabelled_data)
    assert in_child(lambda: run(config, folder / "run", stages=STAGES)) == 0
    return folder / "run"


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights_and_queue(
    pretraining_config, tmp_path, uninterrupted
) -> None:
    output = tmp_path / "killed"

    def killed(at: int, resume: bool) -> int:
        def work() -> int:
            before_step(at, send(signal.SIGKILL))
            return run(pretraining_config, output, resume=resume, stages=STAGES)

        return in_child(work)

    assert killed(4, resume=False) == -signal.SIGKILL  # teacher, last.pth at 2
    assert killed(4 + 5, resume=True) == -signal.SIGKILL  # student, last.pth at 4
    assert in_child(lambda: run(pretraining_config, output, resume=True, stages=STAGES)) == 0
    for stage in STAGES:
        one, other = (load_checkpoint(f / stage / "last.pth") for f in (uninterrupted, output))
        assert one.iteration == other.iteration == 6
        assert same(one.model, other.model) and same(one.adapters, other.adapters)
        assert same(one.optimizer, other.optimizer)
    assert int(one.adapters["queue.pointer"]) == 6 * 4 % 8
    lines = [json.loads(t) for t in (output / "student/metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line}
    assert {"loss_contrast", "loss_distillation", "val/views/top1"} <= names


def test_a_later_stage_and_model_net_weights_take_the_backbone(
    uninterrupted, tiny_config, tmp_path
) -> None:
    trained = load_checkpoint(uninterrupted / "student" / "final.pth").model
    backbone = "{_target_: tiny_parts.TinyNormBackbone, width: 8}"
    weights = f"model.net.weights={uninterrupted}/student/final.pth"
    config = load_config(tiny_config, [f"model.net.backbone={backbone}", weights])
    detector = build(config, "model").state_dict()
    for name, tensor in trained.items():
        if name.startswith("backbone.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(detector[f"net.{name}"], tensor)


def test_a_run_of_pretraining_alone_needs_neither_validation_nor_test(pretraining_config) -> None:
    changes = ["data.val=null", "train.eval_period=0", "train.stages=[contrastive]"]
    run_context = make_run(pretraining_config, *changes, "stages.contrastive.queue_size=4")
    run_context.config.train.eval_period = 0
    run_stages(run_context)
    assert (run_context.folder / "contrastive" / "final.pth").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.student.queue_size=6", r"stages\.student\.queue_size is 6.*train\.batch_size, 4"),
        ("stages.student.queue_size=2", r"stages\.student\.queue_size is 2, which is no multiple"),
        (
            "stages.contrastive.distillation_weight=5",
            r"contrastive\.needs is \{\}: a weight above 0",
        ),
        ("stages.student.distillation_weight=0", r"a teacher belong together"),
        ("stages.student.encoder=encodr", r"encodr: the config has no encoder there"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_trained(
    pretraining_config, change, message
) -> None:
    stages = "train.stages=[teacher, student, contrastive]"
    run_context = make_run(pretraining_config, "stages.contrastive.queue_size=8", stages, change)
    with pytest.raises(ValueError, match=message):
        run_stages(run_context)
    assert not run_context.stage_folder("teacher").exists()


def test_a_teacher_of_another_architecture_is_refused_by_name(
    uninterrupted, pretraining_config
) -> None:
    config = yaml.safe_load(pretraining_config.read_text())
    config["teacher"]["encoder"]["dim"] = 6
    pretraining_config.write_text(yaml.safe_dump(config))
    given = f"teacher.checkpoint={uninterrupted}/teacher/final.pth"
    run_context = make_run(pretraining_config, given, "train.stages=[student]")
    with pytest.raises(ValueError, match=r"teacher/final\.pth"):
        run_stages(run_context)


def test_teacher_and_student_can_have_backbones_of_different_kinds(pretraining_config) -> None:
    config = yaml.safe_load(pretraining_config.read_text())
    config["teacher"]["encoder"] |= {"dim": 12}
    config["teacher"]["encoder"]["backbone"] = {"_target_": "tiny_parts.TinyBackbone", "width": 16}
    pretraining_config.write_text(yaml.safe_dump(config))
    run_context = make_run(pretraining_config)
    run_stages(run_context)
    assert load_checkpoint(run_context.folder / "student" / "final.pth").iteration == 2


def test_two_processes_end_with_the_weights_and_the_queue_of_one(
    pretraining_config, tmp_path, uninterrupted
) -> None:
    output = tmp_path / "two"

    def work(rank: int) -> None:
        steps = ("train.max_iter=6", "train.eval_period=3")
        run_stages(make_run(pretraining_config, *steps, f"train.output_dir={output}"))

    in_two_processes(work, tmp_path)
    for stage in STAGES:
        one, two = (
            load_checkpoint(folder / stage / "last.pth") for folder in (uninterrupted, output)
        )
        assert one.iteration == two.iteration == 6
        for part in ("model", "adapters"):
            torch.testing.assert_close(getattr(two, part), getattr(one, part), rtol=1e-4, atol=1e-5)
        assert "queue.student_keys" in one.adapters and "head.layers.0.weight" in one.model
