"""A folder has one run, one user and one configuration."""

from __future__ import annotations

import argparse
import json
from functools import partial

import pytest
import torch

from tests.tiny_runs import make_run, write_weights
from v2idetr.config.load import load_config
from v2idetr.engine import process
from v2idetr.engine.run_context import load_splits
from v2idetr.engine.stages import run_stages
from v2idetr.output_folder import LOCK, sole_user
from v2idetr.runs import folder as run_folder


def test_a_folder_with_a_run_is_neither_overwritten_nor_mixed(tiny_config, tmp_path) -> None:
    config = load_config(tiny_config)
    folder = tmp_path / "run"
    run_folder.claim(folder, config, resume=False)
    (folder / "teacher").mkdir()
    (folder / "teacher" / "last.pth").touch()
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


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ended_before_its_first_checkpoint_does_not_occupy_the_folder(
    tiny_config, tmp_path, resume
) -> None:
    folder = tmp_path / "run"
    run_folder.claim(folder, load_config(tiny_config), resume=False)
    (folder / "teacher").mkdir()
    (folder / "teacher" / "metrics.jsonl").write_text('{"iteration": 1}\n')
    run_folder.claim(folder, load_config(tiny_config, ["optimizer.lr=0.5"]), resume=resume)
    assert load_config(folder / "config.yaml").optimizer.lr == 0.5


@pytest.mark.parametrize("name", ["ablation.json", "data", "train.json", "notes.md"])
def test_a_folder_that_holds_something_else_is_refused(tiny_config, tmp_path, name) -> None:
    folder = tmp_path / "run"
    (folder / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"holds something else \({name}\): .*train\.output_dir"):
        run_folder.claim(folder, load_config(tiny_config), resume=False)
    assert [path.name for path in folder.iterdir()] == [name]
    with pytest.raises(ValueError, match=r"holds something else .*--output FOLDER"):
        run_folder.check_evaluation(folder, load_config(tiny_config), {})


def test_a_damaged_record_is_named(tiny_config, tmp_path) -> None:
    config = load_config(tiny_config)
    splits = load_splits(config, with_train=True)
    (tmp_path / "run.json").write_text('{"starts": [')
    with pytest.raises(ValueError, match=r"run\.json: is damaged \(.*another folder"):
        run_folder.record(tmp_path, config, splits, device="cpu", processes=1)


def test_what_programs_print_and_hidden_files_do_not_occupy_a_folder(tiny_config, tmp_path) -> None:
    folder = tmp_path / "run"
    (folder / "evaluation").mkdir(parents=True)
    for name in ("log", "slurm-12.out", "console.log", ".gitkeep", "config.yaml"):
        (folder / name).touch()
    run_folder.claim(folder, load_config(tiny_config), resume=False)


@pytest.mark.parametrize("made", [False, True])
def test_a_start_that_fails_leaves_nothing_behind(tiny_config, tmp_path, made) -> None:
    folder = tmp_path / "a" / "b"
    if made:
        folder.mkdir(parents=True)
        (folder / "console.log").write_text("mine")
    wrong = load_config(
        tiny_config, ["model.net.weights=no/such.pth", f"train.output_dir={folder}"]
    )
    options = argparse.Namespace(resume=False, eval_only=False, weights="", output="")
    with pytest.raises(process.UserError, match=r"No backbone weights at no/such\.pth"):
        process.run_process(options, wrong, "cpu")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.suffix != ".yaml") == (
        ["a", "b", "console.log"] if made else []
    )


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
    monkeypatch.setattr(process, "sole_user", partial(sole_user, patience_s=0.0))
    run = make_run(tiny_config, "train.stages=[plain]")
    write_weights(run, "plain")
    of_another = run.stage_folder("plain") / ".last.pth.123.tmp"
    of_another.touch()
    options = argparse.Namespace(resume=True, eval_only=eval_only, weights="", output="")
    with (
        sole_user(tmp_path / held / LOCK, "A test"),
        pytest.raises(process.UserError, match=rf"Another train_net.py is running .*{remedy}"),
    ):
        process.run_process(options, run.config, "cpu")
    assert of_another.exists()
    assert process.run_process(options, run.config, "cpu") == 0


def test_a_gpu_without_enough_memory_is_explained(tiny_config, monkeypatch) -> None:
    def full(*arguments) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(process, "run_stages", full)
    options = argparse.Namespace(resume=False, eval_only=False, weights="", output="")
    with pytest.raises(process.UserError, match=r"train\.clips_at_once[\s\S]*2\.00 GiB\.$"):
        process.run_process(options, load_config(tiny_config), "cpu")


def test_a_run_and_an_evaluation_beside_it_leave_each_other_alone(tiny_config, tmp_path) -> None:
    run = make_run(tiny_config, "train.stages=[plain]")
    write_weights(run, "plain")
    options = argparse.Namespace(resume=True, eval_only=True, weights="", output="")
    with sole_user(run.folder / LOCK, "A training"):
        assert process.run_process(options, run.config, "cpu") == 0
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
