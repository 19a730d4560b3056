"""Phase recognition as stages of a run, on videos whose phases are colours."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from free_lunch.phases.labels import read_labels
from free_lunch.pretraining import build_encoder
from tests.free_lunch.tiny_phases import PHASES, STAGES, write_phase_config
from tests.tiny_fixtures import in_child
from tests.tiny_runs import make_run, run, same
from v2idetr.config.load import load_config
from v2idetr.data.coco_vid import load_split
from v2idetr.engine.run_context import load_splits
from v2idetr.engine.stages import run_stages
from v2idetr.report.page import write_report
from v2idetr.runs.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory, operations) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    config = write_phase_config(folder, operations)
    assert in_child(lambda: run(config, folder / "run", stages=STAGES)) == 0
    return folder / "run"


def test_all_three_kinds_learn_what_the_colours_say(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert list(results["stages"]) == list(STAGES)
    for name, result in results["stages"].items():
        metrics = result["tests"]["held_out"]
        # Half of the TCN's eight channels are dropped in training; chance is a third.
        assert metrics["strict"]["accuracy"] > (0.7 if name == "phases" else 0.9), name
        assert metrics["relaxed"]["accuracy"] >= metrics["strict"]["accuracy"]
        assert (metrics["videos"], metrics["frames"]) == (2, 48)
    knn = results["stages"]["probe"]["knn"]
    assert knn["tests"]["held_out"]["strict"]["accuracy"] > 0.6  # of eight random features
    for row in (*STAGES, f"probe, {knn['k']}-NN", "held_out (videos: 2, frames: 48)"):
        assert row in results["table"]


def test_predictions_are_written_frame_by_frame_and_give_the_accuracy(trained: Path) -> None:
    for stage in STAGES:
        with (trained / stage / "phases_test_held_out.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 48 and rows[0]["video"] == "test0" and rows[0]["phase"] == PHASES[0]
        hits = [row["phase"] == row["predicted"] for row in rows]
        evaluation = json.loads((trained / stage / "evaluation.json").read_text())
        accuracy = evaluation["tests"]["held_out"]["strict"]["accuracy"]
        assert np.mean(hits) == pytest.approx(accuracy)


def test_the_probe_leaves_the_backbone_as_it_was_and_finetuning_does_not(trained: Path) -> None:
    probe, finetuned = (load_checkpoint(trained / s / "final.pth").model for s in STAGES[:2])
    config = load_config(trained / "probe" / "config.yaml")
    start = build_encoder(config, "encoder", pretrained=True).state_dict()
    names = [n for n in start if n.startswith("backbone.stages")]
    assert names and all(torch.equal(probe[n], start[n]) for n in names)
    assert not any(torch.equal(finetuned[n], start[n]) for n in names)


def test_a_backbone_of_an_earlier_stage_is_probed(phase_config, trained) -> None:
    stage = (
        "+stages.after={_target_: free_lunch.phases.probe.ProbeStage, needs: {backbone: finetune}}"
    )
    run_context = make_run(phase_config, stage, "train.stages=[finetune, after]")
    run_stages(run_context)
    made, used = (
        load_checkpoint(run_context.folder / name).model
        for name in ("finetune/best.pth", "after/final.pth")
    )
    shared = [n for n in made if n.startswith("backbone.") and not n.endswith("batches_tracked")]
    assert shared and all(torch.equal(made[n], used[n]) for n in shared)


def test_with_a_share_of_the_labels_only_the_first_videos_are_used(phase_config) -> None:
    config = make_run(phase_config, "stages.finetune.share=0.5")
    split = config.stages["finetune"].training_split(config)
    assert {record["video_id"] for record in split.records} == {1, 2}
    whole = config.stages["probe"].training_split(config)
    assert {record["video_id"] for record in whole.records} == {1, 2, 3}
    assert len(config.stages["phases"].training_split(config).records) == 3


def test_a_stage_with_all_labels_can_follow_one_with_a_share_of_them(phase_config) -> None:
    name = "free_lunch.phases.finetuning.FinetuningStage"
    few = f"+stages.few={{_target_: {name}, settings: finetune, share: 0.34}}"
    run_context = make_run(phase_config, few, "train.stages=[few, finetune]")
    run_stages(run_context)
    results = json.loads((run_context.folder / "results.json").read_text())["stages"]
    assert [results[stage]["labelled_videos"] for stage in ("few", "finetune")] == [2, 3]


BETWEEN = "_target_: free_lunch.phases.probe.ProbeStage, share: 0.5, needs: {backbone: finetune}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["+stages.phases.needs={backbone: finetune}", "stages.phases.share=0.5"],
            r"stages\.phases\.share=0\.5 .*\(stages\.finetune\.share=1\.0\): set "
            r"stages\.finetune\.share=0\.5, or another stage as stages\.phases\.needs\.backbone",
        ),
        (
            [
                f"+stages.between={{{BETWEEN}}}",
                "+stages.phases.needs={backbone: between}",
                "stages.phases.share=0.5",
            ],
            r"stages\.phases\.share=0\.5 .*finetune.* as stages\.between\.needs\.backbone",
        ),
    ],
)
def test_few_labels_do_not_stand_on_a_backbone_that_has_seen_more(
    phase_config, changes, message
) -> None:
    with pytest.raises(ValueError, match=message):
        make_run(phase_config, *changes).stages["phases"].build(load_config(phase_config, changes))


def test_few_labels_may_stand_on_a_backbone_that_has_seen_as_few(phase_config) -> None:
    few = ["stages.finetune.share=0.5", "stages.phases.share=0.5"]
    run_context = make_run(phase_config, "+stages.phases.needs={backbone: finetune}", *few)
    run_context.stages["phases"].build(run_context.config)


def test_a_run_of_phases_that_is_resumed_at_its_end_is_not_trained_again(
    trained, phase_config
) -> None:
    before = load_checkpoint(trained / "phases" / "final.pth")
    (trained / "phases" / "evaluation.json").unlink()
    assert in_child(lambda: run(phase_config, trained, resume=True, stages=STAGES)) == 0
    assert same(before.model, load_checkpoint(trained / "phases" / "final.pth").model)
    assert (trained / "phases" / "evaluation.json").exists()


def changed(operations: dict, folder: Path, change) -> dict[str, str]:
    content = json.loads(Path(operations["train"]["json"]).read_text())
    change(content)
    path = folder / "changed.json"
    path.write_text(json.dumps(content))
    return {**operations["train"], "json": str(path)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("phases"), r"no `phases`: its frames have no phase labels"),
        (lambda c: c["phases"].reverse(), r"phases differ from data\.phases"),
        (lambda c: c["images"][3].pop("phase"), r"frame without `phase`: 1 \(train/004\.png"),
        (
            lambda c: c["images"][3].update(phase="Disection"),
            r"unknown phase: 1 \(Disection of train/004\.png; did you mean Dissection\?",
        ),
        (lambda c: c["videos"][0].update(frame_rate=5), r"different frame rates: 1 \(\[1\.0, 5\.0"),
        (
            lambda c: c["videos"].__setitem__(0, {"id": 1, "name": "v", "fps": 25}),
            r"different frame rates: 1 \(\[1\.0, 25\.0",
        ),
    ],
)
def test_labels_that_are_wrong_are_refused_with_the_file_and_the_frame(
    operations, tmp_path, change, message
) -> None:
    split = load_split(*changed(operations, tmp_path, change).values())
    with pytest.raises(ValueError, match=message) as caught:
        read_labels(split, PHASES)
    assert "changed.json" in str(caught.value)


def test_wrong_labels_stop_a_run_before_anything_is_trained(
    phase_config, operations, tmp_path
) -> None:
    data = changed(operations, tmp_path, lambda c: c["images"][3].update(phase="Disection"))
    run_context = make_run(phase_config, f"data.train.json={data['json']}")
    with pytest.raises(ValueError, match="Disection"):
        run_stages(run_context)
    assert not run_context.stage_folder("probe").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.phases=[]", r"data\.phases must name the phases"),
        ("stages.probe.share=0.0", r"stages\.probe: share=0\.0 .* must lie in \(0, 1\]"),
        ("stages.phases.width=0", r"stages\.phases: .* at least one .* map, got .* and width=0"),
        ("stages.probe.transitions=cholec80", r"'cholec80' has 7 phases, but num_phases is 3"),
        ("stages.probe.transitions=cholec", r"No table of transitions for data set 'cholec'"),
    ],
)
def test_settings_of_phases_that_do_not_fit_are_refused(phase_config, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        run_stages(make_run(phase_config, change))


def test_a_phase_stage_without_a_test_split_is_refused(phase_config) -> None:
    config = load_config(phase_config)
    config.data.test = {}
    with pytest.raises(ValueError, match=r"data\.test is empty, but the stage probe is evaluated"):
        load_splits(config, with_train=True)


def test_the_report_about_detectors_says_where_the_results_of_phases_are(trained, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"probe, finetune, phases train none; .*results\.json"):
        write_report(trained, tmp_path / "report.html")
