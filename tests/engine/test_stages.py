"""Which stages run, on which weights, and what is refused before anything is trained."""

from __future__ import annotations

import argparse
import json
import logging
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

import train_net
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.engine import launch, run_folder
from v2idetr.engine.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_detector,
    save_checkpoint,
)
from v2idetr.engine.config import load_config, load_run_config
from v2idetr.engine.run_context import Run, load_splits
from v2idetr.engine.signals import StopRequested, StopSignals
from v2idetr.engine.stage_models import build_stage, split_state
from v2idetr.engine.stage_training import train_stage
from v2idetr.engine.stages import evaluate_only, run_stages, stages_to_train
from v2idetr.programs import LOCK, sole_user


def make_run(path: Path, *overrides: str) -> Run:
    config = load_config(path, ["train.max_iter=2", "train.eval_period=2", *overrides])
    splits = load_splits(config, with_train=True)
    return Run(config, torch.device("cpu"), splits, StopSignals())


def write_weights(run: Run, stage: str, name: str = "best.pth") -> Path:
    """Freshly drawn weights of a stage, as if it had been trained."""
    models = build_stage(run.config, stage)
    path = run.stage_folder(stage) / name
    save_checkpoint(Checkpoint(stage, 2, split_state(models)[0], class_names=["polyp"]), path)
    return path


# ------------------------------------------------------------------------------------- eval-only


def test_evaluating_without_any_checkpoint_is_an_error(tiny_config, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no .*/teacher/best\.pth"):
        evaluate_only(make_run(tiny_config), tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no nowhere\.pth"):
        evaluate_only(make_run(tiny_config), tmp_path, "nowhere.pth")


def test_evaluating_weights_of_another_architecture_lists_them(tiny_config, tmp_path) -> None:
    run = make_run(tiny_config)
    path = write_weights(run, "teacher")
    with pytest.raises(CheckpointError, match=r"not in the model \(\d+\):\n    net\.temporal\."):
        evaluate_only(run, tmp_path, str(path))


def test_evaluating_weights_of_other_classes_is_an_error(tiny_config, tmp_path) -> None:
    run = make_run(tiny_config)
    path = write_weights(run, "plain")
    checkpoint = load_checkpoint(path)
    checkpoint.class_names = ["cyst"]
    save_checkpoint(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"trained for the classes \['cyst'\]"):
        evaluate_only(run, tmp_path, str(path))


def test_a_file_is_evaluated_without_training(tiny_config, tmp_path, caplog) -> None:
    run, folder = make_run(tiny_config), tmp_path / "evaluation"
    path = write_weights(run, "plain", "mine.pth")
    with caplog.at_level(logging.INFO, "v2idetr"):
        results = evaluate_only(run, folder, str(path))
    assert list(results) == ["mine"] and results["mine"]["tests"]["held_out"]["frames"] == 3
    written = json.loads((folder / "results.json").read_text())
    assert written["stages"]["mine"]["checkpoint"] == str(path)
    assert written["table"] in caplog.text and str(path) in caplog.text
    assert load_config(folder / "config.yaml") == run.config


def test_what_a_run_trained_is_evaluated_whatever_it_started_from(tiny_config, tmp_path) -> None:
    given = write_weights(make_run(tiny_config), "plain", "coco.pth")
    run = make_run(tiny_config, "train.stages=[plain]", f"train.init_checkpoint={given}")
    trained = write_weights(run, "plain")
    results = evaluate_only(run, tmp_path / "evaluation")
    assert results["plain"]["checkpoint"] == str(trained)
    assert load_config(tmp_path / "evaluation" / "config.yaml") == run.config


@pytest.mark.parametrize("by_option", [True, False])
def test_a_teacher_of_elsewhere_is_evaluated(tiny_config, tmp_path, by_option) -> None:
    file = str(write_weights(make_run(tiny_config), "teacher", "mine.pth"))
    key = [] if by_option else [f"teacher.checkpoint={file}"]
    run = make_run(tiny_config, "train.stages=[teacher]", *key)
    (result,) = evaluate_only(run, tmp_path, file if by_option else "").values()
    assert (result["stage"], result["checkpoint"]) == ("teacher", file)


def test_an_evaluation_is_overwritten_only_by_the_same(tiny_config, tmp_path) -> None:
    first = make_run(tiny_config, "train.stages=[plain]")
    write_weights(first, "plain")
    other = write_weights(first, "plain", "other.pth")
    evaluate_only(first, tmp_path / "evaluation")
    written = (tmp_path / "evaluation" / "results.json").read_bytes()
    told = r"holds another evaluation:\n  {}(?s:.*)--output"
    for change, found in (
        ("data.window=0", r"data\.window: 2 -> 0\n"),
        ("data.test.held_out.json=" + first.config.data.val.json, r"data\.test\.held_out\.json: "),
    ):
        run = make_run(tiny_config, "train.stages=[plain]", change)
        with pytest.raises(ValueError, match=told.format(found)):
            evaluate_only(run, tmp_path / "evaluation")
    with pytest.raises(ValueError, match=told.format(r"weights: .*best\.pth -> .*other\.pth\n")):
        evaluate_only(first, tmp_path / "evaluation", str(other))
    assert (tmp_path / "evaluation" / "results.json").read_bytes() == written
    evaluate_only(first, tmp_path / "evaluation")


@pytest.mark.parametrize("output", ["", "elsewhere"])
def test_an_evaluation_lies_beside_the_stages_or_where_it_is_told(
    tiny_config, tmp_path, output
) -> None:
    run = make_run(tiny_config, "train.stages=[plain]")
    write_weights(run, "plain")
    output = output and str(tmp_path / output)
    options = argparse.Namespace(resume=False, eval_only=True, weights="", output=output)
    assert launch.run_process(options, run.config, "cpu") == 0
    written = {path.name for path in Path(output or run.folder / "evaluation").iterdir()}
    assert written >= {"config.yaml", "log.txt", "results.json", "plain"}
    assert output or {path.name for path in run.folder.iterdir()} == {"plain", "evaluation"}


@pytest.mark.parametrize("eval_only", [True, False])
@pytest.mark.parametrize("stop", [StopRequested(signal.SIGTERM), OSError(28, "disk full")])
def test_what_is_to_be_done_after_an_interruption_can_be_typed_in(
    tiny_config, monkeypatch, capsys, eval_only, stop
) -> None:
    def interrupted(*arguments):
        raise stop

    given = ["--config-file", "x.yaml", "--eval-only" if eval_only else "--resume"]
    monkeypatch.setattr(launch, "_prepare", interrupted)
    monkeypatch.setattr(launch.sys, "argv", ["train_net.py", *given])
    options = train_net.parse(given)
    try:
        launch.run_process(options, load_config(tiny_config), "cpu")
    except launch.UserError as error:
        print(error)
    *_, said, command = capsys.readouterr().out.strip().splitlines()
    assert ("begin again" if eval_only else "continue") in said
    assert vars(train_net.parse(command.split()[2:])) == vars(options)


def test_an_evaluation_does_not_go_into_the_folder_of_a_run(tiny_config) -> None:
    run = make_run(tiny_config, "train.stages=[plain]")
    write_weights(run, "plain")
    run_folder.record(run.folder, run.config, run.splits, device="cpu", processes=1)
    with pytest.raises(ValueError, match=r"holds a run: .*--output"):
        evaluate_only(run, run.folder)


# --------------------------------------------------------------------------------------- weights


def test_a_teacher_that_is_given_is_not_trained(tiny_config, tmp_path) -> None:
    path = write_weights(make_run(tiny_config), "teacher", "given.pth")
    run = make_run(tiny_config, f"teacher.checkpoint={path}", "train.stages=[teacher, student]")
    assert stages_to_train(run) == ["student"]
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
    told = r"^teacher\.checkpoint: (?s:.*)missing in the file \(\d+\):\n    net\.temporal\."
    with pytest.raises(CheckpointError, match=told) as caught:
        train_stage(run, "student")
    assert "init_partial" not in str(caught.value), "a trained teacher lacks nothing"


def test_initial_weights_must_fit_unless_told_otherwise(tiny_config, tmp_path, caplog) -> None:
    path = tmp_path / "weights.pth"
    detector = build_stage(make_run(tiny_config).config, "plain").detector
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
    plain = build_stage(run.config, "plain").detector
    assert load_detector(plain, path, partial=True) == []
    assert "not in the model" in caplog.text and "net.temporal." in caplog.text


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
        first = build_stage(run.config, stage).detector.state_dict()
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
    overrides = ["teacher.model.net.d=64", "teacher.model.net.temporal.d=64"]
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
    one, other = (
        build_stage(config, stage).detector.state_dict() for stage in ("plain", "student")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_teacher_starts_as_its_student_but_for_msi(tiny_config) -> None:
    config = load_config(tiny_config)
    teacher, student = (
        build_stage(config, stage).detector.state_dict() for stage in ("teacher", "student")
    )
    assert all(".temporal." in name for name in teacher.keys() - student.keys())
    assert all(torch.equal(teacher[name], value) for name, value in student.items())


# --------------------------------------------------------------------------------------- folders


def test_a_folder_with_a_run_is_neither_overwritten_nor_mixed(tiny_config, tmp_path) -> None:
    config = load_config(tiny_config)
    folder = tmp_path / "run"
    run_folder.claim(folder, config, resume=False)
    (folder / "teacher").mkdir()
    with pytest.raises(ValueError, match=r"already holds a run. Add --resume"):
        run_folder.claim(folder, config, resume=False)
    run_folder.claim(folder, load_config(tiny_config, ["train.num_workers=2"]), resume=True)
    with pytest.raises(ValueError, match=r"other settings(?s:.*)optimizer\.lr: 0\.001 -> 0\.5"):
        run_folder.claim(folder, load_config(tiny_config, ["optimizer.lr=0.5"]), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_start_that_was_refused_does_not_occupy_the_folder(tiny_config, resume) -> None:
    wrong = make_run(tiny_config, "distillation.tfd.stride=128")
    run_folder.claim(wrong.folder, wrong.config, resume=False)
    with pytest.raises(ValueError, match=r"tfd\.stride"):
        run_stages(wrong)
    right = load_config(tiny_config)
    run_folder.claim(wrong.folder, right, resume=resume)
    assert load_config(wrong.folder / "config.yaml").distillation.tfd.stride == 32


def test_resuming_where_nothing_is_starts(tiny_config, tmp_path) -> None:
    run_folder.claim(tmp_path / "new", load_config(tiny_config), resume=True)
    assert load_config(tmp_path / "new" / "config.yaml") == load_config(tiny_config)


def test_leftovers_of_killed_writes_are_removed(tiny_config, tmp_path) -> None:
    leftover = tmp_path / "run" / "plain" / ".last.pth.123.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    run_folder.claim(tmp_path / "run", load_config(tiny_config), resume=True)
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("held", "eval_only", "remedy"),
    [("run", False, "train.output_dir"), ("run/evaluation", True, "--output")],
)
def test_a_folder_is_written_by_one_program_at_a_time(
    tiny_config, tmp_path, monkeypatch, held, eval_only, remedy
) -> None:
    monkeypatch.setattr(launch, "sole_user", partial(sole_user, patience_s=0.0))
    run = make_run(tiny_config, "train.stages=[plain]")
    write_weights(run, "plain")
    of_another = run.stage_folder("plain") / ".last.pth.123.tmp"
    of_another.touch()
    options = argparse.Namespace(resume=True, eval_only=eval_only, weights="", output="")
    with (
        sole_user(tmp_path / held / LOCK, "A test"),
        pytest.raises(launch.UserError, match=rf"Another train_net.py is running .*{remedy}"),
    ):
        launch.run_process(options, run.config, "cpu")
    assert of_another.exists()
    assert launch.run_process(options, run.config, "cpu") == 0


def test_a_run_and_an_evaluation_beside_it_leave_each_other_alone(tiny_config, tmp_path) -> None:
    run = make_run(tiny_config, "train.stages=[plain]")
    write_weights(run, "plain")
    options = argparse.Namespace(resume=True, eval_only=True, weights="", output="")
    with sole_user(run.folder / LOCK, "A training"):
        assert launch.run_process(options, run.config, "cpu") == 0
    being_written = run.folder / "evaluation" / "plain" / ".evaluation.json.123.tmp"
    being_written.touch()
    run_folder.claim(run.folder, run.config, resume=True)
    assert being_written.exists()


def test_data_that_changed_since_the_start_cannot_be_resumed(tiny_config, tmp_path) -> None:
    config = load_config(tiny_config)
    splits = load_splits(config, with_train=True)
    run_folder.record(tmp_path, config, splits, device="cpu", processes=1)
    run_folder.record(tmp_path, config, splits, device="cpu", processes=1)
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 2
    swapped = splits | {"train": splits["val"]}
    with pytest.raises(ValueError, match="annotations of train changed"):
        run_folder.record(tmp_path, config, swapped, device="cpu", processes=1)


def test_resuming_with_another_number_of_processes_is_warned_about(
    tiny_config, tmp_path, caplog
) -> None:
    config = load_config(tiny_config)
    splits = load_splits(config, with_train=True)
    for processes in (1, 1, 2):
        assert "was started with" not in caplog.text
        run_folder.record(tmp_path, config, splits, device="cpu", processes=processes)
    assert "was started with 1 processes and goes on with 2" in caplog.text


# ------------------------------------------------------------------------------------------ data


def test_all_splits_are_checked_before_anything_is_trained(tiny_config, tmp_path) -> None:
    config = load_config(
        tiny_config, ["data.val.json=nowhere.json", "data.test.held_out.image_root=nowhere"]
    )
    options = argparse.Namespace(resume=False, eval_only=False)
    with pytest.raises(launch.UserError) as caught:
        launch.run_process(options, config, "cpu")
    assert "data.val: nowhere.json" in str(caught.value)
    assert "data.test.held_out:" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_class_that_the_model_does_not_have_is_an_error(tiny_config) -> None:
    config = load_config(tiny_config, ["data.class_names=[adenoma]"])
    with pytest.raises(ValueError, match="adenoma"):
        load_splits(config, with_train=True)
