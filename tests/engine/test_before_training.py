"""What would fail or mislead after hours is said before the first step; what changed is redone."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn

from tests.tiny_runs import before_step, make_run, run, send, write_weights
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.engine.command_line import UserError
from v2idetr.engine.stage_graph import build_stage
from v2idetr.engine.stage_training import dry_run
from v2idetr.engine.stages import run_stages

FLIP = "{{_target_: v2idetr.data.augmentation.horizontal_flip, probability: {}}}"


def test_a_given_teacher_is_tried_before_another_need_is_trained(tiny_config, tmp_path) -> None:
    bad = tmp_path / "bad.pth"
    torch.save({"model": {"net.nothing": torch.zeros(1)}}, bad)
    needs = "+stages.student.needs.initial=plain"
    run = make_run(tiny_config, f"teacher.checkpoint={bad}", needs)
    with pytest.raises(CheckpointError, match=r"^teacher\.checkpoint: .*bad\.pth"):
        run_stages(run)
    assert not (tmp_path / "run" / "plain").exists()


@pytest.mark.parametrize("given", [False, True])
def test_initial_weights_that_know_other_pixels_are_refused(tiny_config, tmp_path, given) -> None:
    needs = "+stages.student.needs.initial=teacher"
    pixels = "teacher.model.pixel_mean=[1.0, 2.0, 3.0]"
    file = tmp_path / "run" / "teacher" / "best.pth"
    if given:
        run_stages(make_run(tiny_config, "train.stages=[teacher]", pixels))
    checkpoint = f"teacher.checkpoint={file if given else ''}"
    run = make_run(tiny_config, needs, pixels, checkpoint, "train.stages=[teacher, student]")
    with pytest.raises(ValueError, match=r"^stages\.student\.needs\.initial: .*pixel_mean"):
        run_stages(run)
    assert file.exists() is given


def test_a_training_does_not_go_on_under_another_teacher(tiny_config, tmp_path, in_child) -> None:
    teacher = write_weights(make_run(tiny_config), "teacher", "given.pth")
    output, given = tmp_path / "student", [f"teacher.checkpoint={teacher}"]

    def cut_off() -> int:
        before_step(5, send(signal.SIGKILL))
        return run(tiny_config, output, stages=("student",), overrides=given)

    def refused() -> None:
        with pytest.raises(UserError, match=r"^stages\.student\.needs\.teacher: .* has changed"):
            run(tiny_config, output, resume=True, stages=("student",), overrides=given)

    assert in_child(cut_off) == -signal.SIGKILL
    content = torch.load(teacher, weights_only=True)
    content["model"] = {name: 1.1 * tensor for name, tensor in content["model"].items()}
    torch.save(content, teacher)
    assert in_child(refused) == 0


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_augmentations_that_no_evaluation_allows_are_refused(
    tiny_config, tmp_path, probability: float
) -> None:
    flip = f"data.augmentations.test=[{FLIP.format(probability)}]"
    run = make_run(tiny_config, "train.stages=[plain]", flip)
    with pytest.raises(ValueError, match="in evaluation they may only resize"):
        run_stages(run)
    assert not (tmp_path / "run" / "plain").exists()


def test_a_loss_that_is_not_finite_is_named_before_the_teacher_is_trained(
    tiny_config, tmp_path
) -> None:
    run = make_run(tiny_config, "distillation.tfd.weight=.inf")
    with pytest.raises(ValueError, match=r"stages\.student: loss_tfd is not finite"):
        run_stages(run)
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize(("at_once", "frozen"), [(1, False), (4, False), (1, True)])
def test_batch_normalisation_over_a_part_of_the_batch_is_warned_of(
    tiny_config, caplog, at_once, frozen
) -> None:
    run = make_run(tiny_config, f"train.clips_at_once={at_once}")
    models = build_stage(run.config, "plain")
    if not frozen:
        models.trained.extra = nn.BatchNorm2d(1)
    dry_run(run, run.stages["plain"], models)
    warned = "clips_at_once=1 cuts the batch into 4 parts, and batch normalisation" in caplog.text
    assert warned is (at_once == 1 and not frozen)


def test_a_finished_stage_is_evaluated_on_a_test_split_that_is_new(tiny_config, tiny_data) -> None:
    one = make_run(tiny_config, "train.stages=[plain]")
    assert set(run_stages(one)["plain"]["tests"]) == {"held_out"}
    written = (one.stage_folder("plain") / "final.pth").stat().st_mtime_ns
    paths = tiny_data["val"]
    more = f"+data.test.more={{json: {paths['json']}, image_root: {paths['image_root']}}}"
    two = make_run(tiny_config, "train.stages=[plain]", more)
    assert set(run_stages(two)["plain"]["tests"]) == {"held_out", "more"}
    assert (one.stage_folder("plain") / "final.pth").stat().st_mtime_ns == written
