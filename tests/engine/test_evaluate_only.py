"""Evaluation alone: what it reads, where it writes, and what it does not overwrite."""

from __future__ import annotations

import argparse
import json
import logging
import signal
from pathlib import Path

import pytest

import train_net
from tests.tiny_runs import make_run, write_weights
from v2idetr.checkpoints.architecture import describe
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.load import load_config, save_config
from v2idetr.engine import process
from v2idetr.engine.signals import StopRequested
from v2idetr.engine.stage_graph import build_stage
from v2idetr.engine.stages import evaluate_only
from v2idetr.modeling.backbone_handover import pixel_statistics
from v2idetr.runs import folder as run_folder
from v2idetr.runs.checkpoint import (
    load_checkpoint,
    load_detector,
    save_checkpoint,
)


def test_evaluating_without_any_checkpoint_is_an_error(tiny_config, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no .*/teacher/best\.pth"):
        evaluate_only(make_run(tiny_config), tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no nowhere\.pth"):
        evaluate_only(make_run(tiny_config), tmp_path, "nowhere.pth")


def test_evaluating_weights_of_another_architecture_lists_them(tiny_config, tmp_path) -> None:
    run = make_run(tiny_config)
    path = write_weights(run, "teacher")
    with pytest.raises(CheckpointError, match=r"not in the model \(\d+\):\n    net\.fusion\."):
        evaluate_only(run, tmp_path / "evaluation", str(path))


def test_evaluating_weights_of_other_classes_is_an_error(tiny_config, tmp_path) -> None:
    run = make_run(tiny_config)
    path = write_weights(run, "plain")
    checkpoint = load_checkpoint(path)
    checkpoint.class_names = ["cyst"]
    save_checkpoint(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"trained for the classes \['cyst'\]"):
        evaluate_only(run, tmp_path / "evaluation", str(path))


def test_evaluating_weights_of_otherwise_normalised_images_is_an_error(
    tiny_config, tmp_path
) -> None:
    run = make_run(tiny_config)
    detector = build_stage(run.config, "plain").model
    path = write_weights(run, "plain")
    checkpoint = load_checkpoint(path)
    checkpoint.architecture = describe(detector.net)
    checkpoint.pixels = pixel_statistics(detector)
    save_checkpoint(checkpoint, path)
    load_detector(detector, path)
    other = make_run(tiny_config, "model.pixel_std=[255.0,255.0,255.0]")
    said = r"pixel_std is \[255\.0, 255\.0, 255\.0\], in the file \[58\.395, "
    with pytest.raises(CheckpointError, match=said):
        evaluate_only(other, tmp_path / "evaluation", str(path))


def test_test_splits_that_share_frames_are_not_pooled(
    tiny_config, tiny_data, tmp_path, caplog
) -> None:
    paths = tiny_data["test"]["held_out"]
    same = f"{{json: {paths['json']}, image_root: {paths['image_root']}}}"
    run = make_run(tiny_config, f"+data.test.hard={same}")
    path = write_weights(run, "plain")
    (result,) = evaluate_only(run, tmp_path / "evaluation", str(path)).values()
    assert set(result["tests"]) == {"held_out", "hard"} and result["all_tests"] is None
    assert "'held_out' and 'hard' share frames" in caplog.text


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
    (result,) = evaluate_only(run, tmp_path / "evaluation", file if by_option else "").values()
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
    assert process.run_process(options, run.config, "cpu") == 0
    written = {path.name for path in Path(output or run.folder / "evaluation").iterdir()}
    assert written >= {"config.yaml", "log.txt", "results.json", "plain"}
    assert output or {path.name for path in run.folder.iterdir()} == {"plain", "evaluation"}


@pytest.mark.parametrize(("eval_only", "trained"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("stop", [StopRequested(signal.SIGTERM), OSError(28, "disk full")])
def test_what_is_to_be_done_after_an_interruption_can_be_typed_in(
    tiny_config, monkeypatch, capsys, eval_only, trained, stop
) -> None:
    def interrupted(*arguments):
        raise stop

    if trained:
        run = make_run(tiny_config)
        write_weights(run, "teacher", "last.pth")
        save_config(run.config, run.folder / "config.yaml")
    given = ["--config-file", "x.yaml", *(["--eval-only"] if eval_only else [])]
    if not eval_only and trained:
        given.append("--resume")
    monkeypatch.setattr(process, "_prepare", interrupted)
    monkeypatch.setattr(process.sys, "argv", ["train_net.py", *given])
    options = train_net.parse(given)
    try:
        process.run_process(options, load_config(tiny_config), "cpu")
    except process.UserError as error:
        print(error)
    *_, said, command = capsys.readouterr().out.strip().splitlines()
    goes_on = trained and not eval_only
    assert ("continue from the last checkpoint" if goes_on else "begin again") in said
    assert vars(train_net.parse(command.split()[2:])) == vars(options)


def test_an_evaluation_does_not_go_into_the_folder_of_a_run(tiny_config) -> None:
    run = make_run(tiny_config, "train.stages=[plain]")
    write_weights(run, "plain")
    run_folder.record(run.folder, run.config, run.splits, device="cpu", processes=1)
    with pytest.raises(ValueError, match=r"holds a run: .*--output"):
        evaluate_only(run, run.folder)
