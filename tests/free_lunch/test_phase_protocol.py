"""Which videos a phase stage learns from and chooses by, and that test videos are neither."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from free_lunch.phases import features, probe, temporal_stage
from free_lunch.phases.stage import METRIC, PhaseStage
from free_lunch.phases.temporal import CausalTCN
from free_lunch.phases.temporal_stage import WholeVideos
from tests.free_lunch.tiny_phases import STAGES
from tests.tiny_fixtures import in_two_processes
from tests.tiny_runs import make_run
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stages import run_stages
from v2idetr.runs.checkpoint import load_checkpoint
from v2idetr.runs.stage_folder import StageFolder

FAST = ("phases.max_iter=4", "stages.probe.share=0.5", "stages.phases.share=0.5")


def recorded(monkeypatch: pytest.MonkeyPatch, owner, name: str) -> list[tuple]:
    """The arguments of every call of a function, from now on."""
    calls, original = [], getattr(owner, name)

    def record(*arguments, **options):
        calls.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, record)
    return calls


def without_tests(run: RunContext) -> RunContext:
    """The run, where reading labels or frames of a test split is an error."""
    gone = Path("gone")

    def unreadable(split):
        records = [{**r, "file_name": str(gone / "frame.png")} for r in split.records]
        return replace(split, json_path=gone / "test.json", image_root=gone, records=records)

    splits = {
        name: unreadable(split) if name.startswith("test/") else split
        for name, split in run.splits.items()
    }
    return replace(run, splits=splits)


def test_a_probe_sees_its_share_of_the_videos_and_is_chosen_by_validation(
    phase_config, monkeypatch
) -> None:
    linear = recorded(monkeypatch, probe, "choose_linear")
    knn = recorded(monkeypatch, probe, "choose_k")
    run_stages(make_run(phase_config, *FAST, "train.stages=[probe]"))
    for ((train, val),) in (linear, knn):
        assert [video.name for video in train] == ["train0", "train1"]
        assert [video.name for video in val] == ["val0", "val1"]


def test_a_tcn_is_trained_on_its_share_of_the_videos(phase_config, monkeypatch) -> None:
    calls = recorded(monkeypatch, WholeVideos, "__call__")
    run_stages(make_run(phase_config, *FAST, "train.stages=[phases]", "phases.max_iter=20"))
    assert {record["video_id"] for _, record, *_ in calls} == {1, 2}


def test_the_best_step_is_chosen_by_validation(phase_config, monkeypatch) -> None:
    run_context = make_run(phase_config, *FAST, "train.stages=[phases]")
    stage = run_context.stages["phases"]
    models = stage.build(run_context.config)
    calls = recorded(monkeypatch, stage, "predictions")
    stage.validate(run_context, models)
    assert [name for _, _, name in calls] == ["val"]


def test_a_stage_is_validated_in_its_own_period(phase_config) -> None:
    periods = ("train.eval_period=2", "phases.eval_period=3", "phases.max_iter=7")
    run_context = make_run(phase_config, *FAST, "train.stages=[finetune, phases]", *periods)
    run_stages(run_context)
    validated = {}
    for stage in ("finetune", "phases"):
        lines = StageFolder(run_context.stage_folder(stage)).metrics.read_text().splitlines()
        found = map(json.loads, lines)
        validated[stage] = [line["iteration"] for line in found if f"val/{METRIC}" in line]
    assert validated == {"finetune": [2], "phases": [3, 6, 7]}


@pytest.mark.parametrize("name", STAGES)
def test_nothing_of_a_test_split_is_read_in_training(phase_config, name) -> None:
    run_context = without_tests(make_run(phase_config, *FAST, f"train.stages=[{name}]"))
    stage = run_context.stages[name]
    assert isinstance(stage, PhaseStage)
    stage.train(run_context)
    with pytest.raises(FileNotFoundError, match="gone"):
        stage.evaluate(run_context, stage.artefact(run_context.config), run_context.folder)


def test_features_are_computed_once_for_all_stages_of_one_backbone(
    phase_config, monkeypatch
) -> None:
    calls = recorded(monkeypatch, features, "_computed")
    run_stages(make_run(phase_config, *FAST, "train.stages=[probe, phases]"))
    assert sorted(name for *_, name in calls) == ["test/held_out", "train", "val"]


@pytest.fixture
def unequal_config(phase_config, operations, tmp_path, monkeypatch) -> Path:
    """Training videos of 24, 10 and 24 frames, two a step; without dropout, whose draws depend on
    the process, and with SGD, which does not enlarge differences of rounding."""
    content = json.loads(Path(operations["train"]["json"]).read_text())
    content["images"] = [
        image
        for image in content["images"]
        if (image["video_id"], image["frame_index"]) < (2, 10) or image["video_id"] == 3
    ]
    (tmp_path / "unequal.json").write_text(json.dumps(content))
    config = yaml.safe_load(phase_config.read_text())
    config["data"]["train"] = operations["train"] | {"json": str(tmp_path / "unequal.json")}
    sgd = {"_target_": "v2idetr.engine.optimizer.SGDRecipe", "lr": 0.05}
    config["finetune"]["optimizer"] = config["phases"]["optimizer"] = sgd
    config["phases"]["batch_size"] = 2
    config["stages"]["phases"]["num_stages"] = 2
    phase_config.write_text(yaml.safe_dump(config))
    undropped = partial(CausalTCN, dropout=0.0, channel_dropout=0.0)
    monkeypatch.setattr(temporal_stage, "CausalTCN", undropped)
    return phase_config


STEPS = ("train.stages=[finetune, phases]", "train.max_iter=6", "phases.max_iter=12")


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / stage / "final.pth").model


def test_two_processes_end_with_the_weights_of_one(unequal_config, tmp_path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run_stages(make_run(unequal_config, *STEPS, f"train.output_dir={one}"))

    def work(rank: int) -> None:
        run_stages(make_run(unequal_config, *STEPS, f"train.output_dir={two}"))

    in_two_processes(work, tmp_path)
    for stage in ("finetune", "phases"):
        torch.testing.assert_close(weights(two, stage), weights(one, stage), rtol=1e-4, atol=1e-5)


def test_videos_one_after_the_other_give_the_weights_of_a_whole_batch(
    unequal_config, tmp_path
) -> None:
    folders = {}
    for size in (1, 2):
        folders[size] = tmp_path / str(size)
        given = (f"train.output_dir={folders[size]}", f"train.clips_at_once={size}")
        run_stages(make_run(unequal_config, *STEPS, "train.stages=[phases]", *given))
    whole, parts = (weights(folders[size], "phases") for size in (2, 1))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_features_are_computed_anew_for_other_pixels_under_an_old_name(
    phase_config, monkeypatch
) -> None:
    run_context = make_run(phase_config, *FAST)
    stage = run_context.stages["probe"]
    assert isinstance(stage, PhaseStage)
    model = stage.classifier(run_context.config, pretrained=True)
    labelled = stage.labelled(run_context, "val")
    calls = recorded(monkeypatch, features, "_computed")
    for _ in range(2):
        features.features_of(run_context, model, labelled, "val")
    assert len(calls) == 1
    frame = Path(labelled.split.records[5]["file_name"])
    found = frame.stat()
    os.utime(frame, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))
    features.features_of(run_context, model, labelled, "val")
    assert len(calls) == 2
