"""Which stages run, on which weights, and what is refused before anything is trained."""

from __future__ import annotations

import argparse
import json
import logging

import pytest
import torch

from tests.tiny_runs import make_run, write_weights
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.checks import stages_to_train
from v2idetr.config.load import load_config, load_run_config
from v2idetr.engine import process
from v2idetr.engine.run_context import load_splits
from v2idetr.engine.stage_graph import build_stage
from v2idetr.engine.stage_training import train_stage
from v2idetr.engine.stages import run_stages
from v2idetr.runs.checkpoint import (
    load_checkpoint,
    load_detector,
)


def test_a_teacher_that_is_given_is_not_trained(tiny_config, tmp_path) -> None:
    path = write_weights(make_run(tiny_config), "teacher", "given.pth")
    run = make_run(tiny_config, f"teacher.checkpoint={path}", "train.stages=[teacher, student]")
    assert stages_to_train(run.config) == ["student"]
    results = run_stages(run)
    assert list(results) == ["student"]
    assert not (tmp_path / "run" / "teacher" / "last.pth").exists()


def test_one_teacher_serves_a_student_of_another_kind(tiny_config, tiny_detr_config) -> None:
    path = write_weights(make_run(tiny_config), "teacher", "given.pth")
    run = make_run(tiny_detr_config, f"teacher.checkpoint={path}", "train.stages=[student]")
    results = run_stages(run)
    assert list(results) == ["student"] and results["student"]["tests"]["held_out"]["frames"] == 3


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("ed", "feature_distillation.EmbeddingDistillation, mask: attention"),
        ("qd", "query_distillation.QueryDistillation, matching: hungarian"),
    ],
)
def test_a_student_is_trained_with_any_loss_of_its_config(tiny_config, tmp_path, key, kind) -> None:
    path = write_weights(make_run(tiny_config), "teacher", "given.pth")
    run = make_run(
        tiny_config,
        f"teacher.checkpoint={path}",
        "train.stages=[student]",
        "distillation.tfd=null",
        "distillation.cqd=null",
        f"distillation.{key}={{_target_: v2idetr.distillation.{kind}}}",
    )
    run_stages(run)
    (line, *_) = (tmp_path / "run" / "student" / "metrics.jsonl").read_text().splitlines()
    losses = {name for name in json.loads(line) if name.startswith("loss_")}
    assert losses == {"loss_class", "loss_l1", "loss_giou", f"loss_{key}"}


def test_a_student_as_teacher_is_refused(tiny_config) -> None:
    path = write_weights(make_run(tiny_config), "plain")
    run = make_run(tiny_config, f"teacher.checkpoint={path}", "train.stages=[student]")
    told = r"^teacher\.checkpoint: (?s:.*)missing in the file \(\d+\):\n    net\.fusion\."
    with pytest.raises(CheckpointError, match=told) as caught:
        train_stage(run, "student")
    assert "init_partial" not in str(caught.value), "a trained teacher lacks nothing"


def test_initial_weights_must_fit_unless_told_otherwise(tiny_config, tmp_path, caplog) -> None:
    path = tmp_path / "weights.pth"
    detector = build_stage(make_run(tiny_config).config, "plain").model
    state = {n: t + 1 for n, t in detector.state_dict().items() if "backbone" in n}
    torch.save(state, path)
    settings = ("train.stages=[plain]", f"train.init_checkpoint={path}", "optimizer.lr=0.0")
    with pytest.raises(CheckpointError, match=r"missing in the file.*(?s:.*)init_partial=true"):
        train_stage(make_run(tiny_config, *settings), "plain")
    with caplog.at_level(logging.INFO, "v2idetr"):
        frozen = ("train.init_partial=true", "optimizer.backbone_lr=0.0")
        train_stage(make_run(tiny_config, *settings, *frozen), "plain")
    assert "tensors that it does not give: net." in caplog.text
    final = load_checkpoint(tmp_path / "run" / "plain" / "final.pth")
    assert all(torch.equal(final.model[name], value) for name, value in state.items())


def test_a_teacher_starts_where_a_student_of_its_kind_does(tiny_config, tiny_detr_config) -> None:
    given = ["train.init_checkpoint=coco.pth"]
    assert load_config(tiny_config, given).teacher.init_checkpoint == "coco.pth"
    assert load_config(tiny_detr_config, given).teacher.init_checkpoint == ""


def test_a_checkpoint_that_no_stage_reads_is_refused(tiny_config) -> None:
    path = write_weights(make_run(tiny_config), "plain")
    own = write_weights(make_run(tiny_config), "teacher")
    only = ["train.stages=[teacher]", f"train.init_checkpoint={path}"]
    with pytest.raises(ValueError, match=r"train\.init_checkpoint=.* set teacher\.init_checkpoint"):
        load_run_config(
            tiny_config, [*only, "teacher.init_checkpoint="], world_size=1, has_gpu=False
        )
    both = [*only, f"teacher.init_checkpoint={own}"]  # one stage of a run that names both
    load_run_config(tiny_config, both, world_size=1, has_gpu=False)


def test_what_a_partial_start_leaves_out_is_said(tiny_config, tmp_path, caplog) -> None:
    run = make_run(tiny_config)
    path = write_weights(run, "teacher")
    plain = build_stage(run.config, "plain").model
    assert load_detector(plain, path, partial=True) == []
    assert "not in the model" in caplog.text and "net.fusion." in caplog.text


def test_a_student_of_another_kind_and_its_teacher_start_from_a_file_each(
    tiny_config, tiny_detr_config, tmp_path
) -> None:
    path = write_weights(make_run(tiny_config), "plain")
    teachers = path.rename(tmp_path / "deformable.pth")
    students = write_weights(make_run(tiny_detr_config), "plain", "detr.pth")
    own = ["optimizer.lr=0.0", "optimizer.backbone_lr=0.0", "train.seed=1"]
    start = [f"train.init_checkpoint={students}", f"teacher.init_checkpoint={teachers}"]
    with pytest.raises(
        CheckpointError, match=r"^teacher\.init_c.*(?s:.*)teacher\.init_partial=true"
    ):
        run_stages(make_run(tiny_detr_config, *own, *start))
    run_stages(make_run(tiny_detr_config, *own, *start, "teacher.init_partial=true"))
    for stage, given in (("teacher", teachers), ("plain", students), ("student", students)):
        final = load_checkpoint(tmp_path / "run" / stage / "final.pth").model
        for name, value in load_checkpoint(given).model.items():
            assert torch.equal(final[name], value), (stage, name)


def test_a_teacher_can_have_an_optimizer_of_its_own(tiny_config, tmp_path) -> None:
    still = ["teacher.optimizer.lr=0.0", "teacher.optimizer.backbone_lr=0.0"]
    run = make_run(tiny_config, "train.stages=[teacher,plain]", *still)
    run_stages(run)
    for stage in ("teacher", "plain"):
        final = load_checkpoint(run.stage_folder(stage) / "final.pth").model
        first = build_stage(run.config, stage).model.state_dict()
        unmoved = all(torch.equal(final[name], value) for name, value in first.items())
        assert unmoved == (stage == "teacher"), stage


def test_a_checkpoint_of_all_weights_needs_no_imagenet_file(tiny_config, tmp_path) -> None:
    first = make_run(tiny_config, "train.stages=[plain]", f"train.output_dir={tmp_path / 'first'}")
    given = write_weights(first, "plain")
    start = [f"train.init_checkpoint={given}", "model.net.weights=nowhere.pth"]
    assert "plain" in run_stages(make_run(tiny_config, "train.stages=[plain]", *start))
    partial = make_run(
        tiny_config,
        "train.stages=[plain]",
        f"train.output_dir={tmp_path / 'partial'}",
        *start,
        "train.init_partial=true",
    )
    with pytest.raises(ValueError, match=r"nowhere\.pth"):
        run_stages(partial)


def test_teacher_and_student_of_different_width_are_refused_before_training(tiny_config) -> None:
    overrides = ["teacher.model.net.d=64", "teacher.model.net.fusion.features.d=64"]
    with pytest.raises(ValueError, match=r"distillation.*(32.*64|64.*32)"):
        run_stages(make_run(tiny_config, *overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distillation.tfd.stride=128", r"distillation\.tfd\.stride=128"),
        ("distillation.cqd.layers=all", r"distillation\.cqd\.layers=all .*1 layers.* 2"),
        ("teacher.model.net.num_queries=2", r"distillation\.cqd\.per_frame=N/T of 2 teacher"),
    ],
)
def test_losses_that_do_not_fit_the_teacher_are_refused_before_it_is_trained(
    tiny_config, tmp_path, override, message
) -> None:
    with pytest.raises(ValueError, match=message):
        run_stages(make_run(tiny_config, "teacher.model.net.num_decoder_layers=2", override))
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "distillation.tfd.align=none",
            r"teacher normalises .* set distillation\.tfd\.align=conv1x1",
        ),
        ("model.net.num_heads=3", r"net\.d=32 must be divisible by net\.num_heads=3 and by 4"),
    ],
)
def test_a_detr_student_that_does_not_go_together_is_refused(
    tiny_detr_config, override, message
) -> None:
    with pytest.raises(ValueError, match=message):
        run_stages(make_run(tiny_detr_config, override))


def test_a_teacher_of_more_frames_than_a_clip_has_is_refused(tiny_config) -> None:
    with pytest.raises(ValueError, match=r"teacher\.model looks at 5 frames.*num_frames is 3"):
        run_stages(make_run(tiny_config, "teacher.model.num_frames=5"))


def test_students_start_from_the_same_weights(tiny_config) -> None:
    config = load_config(tiny_config)
    one, other = (build_stage(config, stage).model.state_dict() for stage in ("plain", "student"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_teacher_is_frozen_and_in_evaluation_mode(tiny_config) -> None:
    models = build_stage(load_config(tiny_config), "student", pretrained=False)
    models.trained.train()
    assert models.teacher is not None
    assert not any(module.training for module in models.teacher.modules())
    assert not any(parameter.requires_grad for parameter in models.teacher.parameters())


def test_a_teacher_starts_as_its_student_but_for_msi(tiny_config) -> None:
    config = load_config(tiny_config)
    teacher, student = (
        build_stage(config, stage).model.state_dict() for stage in ("teacher", "student")
    )
    assert all(".fusion." in name for name in teacher.keys() - student.keys())
    assert all(torch.equal(teacher[name], value) for name, value in student.items())


# ------------------------------------------------------------------------------------ data


def test_all_splits_are_checked_before_anything_is_trained(tiny_config, tmp_path) -> None:
    config = load_config(
        tiny_config, ["data.val.json=nowhere.json", "data.test.held_out.image_root=nowhere"]
    )
    options = argparse.Namespace(resume=False, eval_only=False)
    with pytest.raises(process.UserError) as caught:
        process.run_process(options, config, "cpu")
    assert "data.val: nowhere.json" in str(caught.value)
    assert "data.test.held_out:" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_class_that_the_model_does_not_have_is_an_error(tiny_config) -> None:
    config = load_config(tiny_config, ["data.class_names=[adenoma]"])
    with pytest.raises(ValueError, match="adenoma"):
        load_splits(config, with_train=True)
