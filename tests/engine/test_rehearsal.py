"""Before a long run: eight frames are found, or what stands in the way is measured and named."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import tiny_detector
from tests.tiny_runs import make_run
from v2idetr.config.load import load_run_config
from v2idetr.data.audit import AuditReport
from v2idetr.data.coco_vid import SplitData
from v2idetr.engine.rehearsal import causes, data
from v2idetr.engine.rehearsal import run as rehearsal
from v2idetr.engine.rehearsal.cost import StageCost, measure
from v2idetr.engine.rehearsal.finding import Finding
from v2idetr.engine.rehearsal.frames import chosen, eight_frames
from v2idetr.engine.rehearsal.training import Outcome, train_on
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.signals import StopRequested, StopSignals
from v2idetr.engine.stage import Stage
from v2idetr.evaluation.frames import LabelledFrame, Video
from v2idetr.evaluation.predictions import FramePrediction

LEARNS = ("optimizer.lr=3e-3", "optimizer.backbone_lr=3e-3")


def by_topic(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings}


def prepared(config: Path, *overrides: str, stage: str = "plain") -> tuple:
    run = make_run(config, *overrides)
    models = run.stages[stage].build(run.config)
    return run, run.stages[stage], models, eight_frames(run, run.stages[stage], models)


def trained(config: Path, *overrides: str, steps: int, rate: float = 1.0) -> tuple:
    run, stage, models, frames = prepared(config, *overrides)
    late = time.monotonic() + 1000
    outcome = train_on(run, stage, models, frames, until_s=late, rate=rate, most_steps=steps)
    return run, stage, models, outcome


def examined(config: Path, *overrides: str, budget_s: float, tell: Callable = print) -> list:
    resolved = load_run_config(config, overrides, world_size=1, has_gpu=False)
    signals = StopSignals()
    return list(
        rehearsal.examine_run(
            resolved,
            torch.device("cpu"),
            budget_s=budget_s,
            available_gib=100.0,
            signals=signals,
            tell=tell,
        )
    )


# ------------------------------------------------------------------------------------ the frames


def record(image_id: int, *labels: int) -> dict:
    return {"image_id": image_id, "annotations": [{"category_id": n, "iscrowd": 0} for n in labels]}


def test_frames_have_lesions_of_every_class_and_are_spread() -> None:
    records = [record(n, *([0] if n % 2 else [])) for n in range(100)]
    records[90]["annotations"] += record(0, 1)["annotations"]
    places = chosen(records, 8)
    assert len(places) == len(set(places)) == 8 and 90 in places
    assert all(records[place]["annotations"] for place in places)
    assert max(np.diff(places)) < 25 and places == sorted(places)


def test_fewer_labelled_frames_than_eight_are_all_taken() -> None:
    assert chosen([record(0), record(1, 0), record(2, 0, 1)], 8) == [1, 2]


# ---------------------------------------------------------------------------- until they are found


@pytest.mark.slow
def test_all_stages_find_the_frames_and_nothing_is_written(tiny_config, tmp_path) -> None:
    found = by_topic(examined(tiny_config, *LEARNS, "train.max_iter=1000", budget_s=3600.0))
    for stage in ("teacher", "plain", "student"):
        assert found[f"{stage}: eight frames"].level == "ok", found[f"{stage}: eight frames"]
        assert "all 8 lesions of 8 frames found" in found[f"{stage}: eight frames"].found
        assert found[f"{stage}: time"].found.partition("1000 steps of")[1]
    assert {"run: time", "run: memory", "run: disk"} <= found.keys()
    assert not (tmp_path / "run").exists()


def test_a_budget_that_ends_early_proves_nothing_and_the_cost_is_told_all_the_same(
    tiny_config, tmp_path
) -> None:
    found = by_topic(examined(tiny_config, *LEARNS, "train.stages=[plain]", budget_s=0.01))
    eight = found["plain: eight frames"]
    assert eight.level == "warn" and "--minutes" in eight.remedy
    assert "0 of 8 lesions found" in eight.found
    assert found["plain: learning rate"].level == "warn"
    assert "6 steps of" in found["plain: time"].found
    assert "2 validations of 3 frames" in found["plain: time"].found
    assert not (tmp_path / "run").exists()


def test_a_signal_ends_it_and_leaves_nothing_behind(tiny_config, tmp_path, monkeypatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def interrupted(words: str) -> None:
        assert list(temporary.iterdir())
        raise StopRequested(2)

    with pytest.raises(StopRequested):
        examined(tiny_config, "train.stages=[plain]", budget_s=5.0, tell=interrupted)
    assert not list(temporary.iterdir())


def test_data_that_a_run_would_refuse_are_refused(tiny_config) -> None:
    findings = examined(tiny_config, "data.class_names=[cyst]", budget_s=1.0)
    assert findings[-1].level == "fail" and "data.train" in "".join(f.found for f in findings)
    assert not any("eight frames" in finding.topic for finding in findings)


def test_a_folder_with_a_run_is_a_warning(tiny_config, tmp_path) -> None:
    (tmp_path / "run" / "plain").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "run" / "plain" / "last.pth").touch()
    first = examined(tiny_config, "data.class_names=[cyst]", budget_s=1.0)[0]
    assert (first.topic, first.level) == ("output folder", "warn")


# ------------------------------------------------------------------------ measured without training


def test_more_lesions_than_queries_fail() -> None:
    own = [record(0), record(1, 0, 0, 0)]
    split = SplitData(Path("a"), Path("b"), ["polyp"], {}, own, AuditReport("a"))
    (finding,) = data.queries("plain", tiny_detector(num_queries=2), split)
    assert finding.level == "fail" and "1 frames have more lesions (up to 3)" in finding.found
    assert "num_queries" in finding.remedy
    (finding,) = data.queries("plain", tiny_detector(num_queries=3), split)
    assert finding.level == "ok"


@pytest.mark.parametrize(("width", "height", "level"), [(64, 48, "ok"), (16, 12, "warn")])
def test_boxes_are_measured_after_the_resize(tiny_config, width, height, level) -> None:
    size = (
        f"[{{_target_: v2idetr.data.augmentation.resize_fixed, width: {width}, height: {height}}}]"
    )
    run, _, models, frames = prepared(tiny_config, f"data.augmentations.test={size}")
    sides = data.longer_sides_px(run, run.splits["train"])
    boxes = [a["bbox"] for r in run.splits["train"].records for a in r["annotations"]]
    np.testing.assert_allclose(sides, [max(box[2:]) * width / 64 for box in boxes])
    assert data.finest_stride(models.model, frames) == 8
    finding = data.box_sizes(run, "plain", run.splits["train"], 8)
    assert finding.level == level
    if level == "warn":
        assert "shorter than half a cell" in finding.found


@pytest.mark.parametrize(("zoom", "level"), [(1.0, "ok"), (6.0, "fail")])
def test_augmentations_that_cut_the_boxes_off_are_named(tiny_config, zoom, level) -> None:
    jitter = "{_target_: v2idetr.data.augmentation.ScaleJitter, width: 64, height: 48, "
    own = f"data.augmentations.train=[{jitter}scale: [{zoom}, {zoom}]}}]"
    run, stage, models, _ = prepared(tiny_config, own)
    finding = data.augmentation(run, stage, models)
    assert finding.level == level
    assert ("min_visible" in finding.remedy) == (level == "fail")


def rgb_noise(mean: tuple[float, float, float], spread: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, spread, (3, 5000))
    return np.clip(np.array(mean)[:, None] + noise, 0, 255)


@pytest.mark.parametrize(
    ("mean", "std", "colour", "spread", "level", "said"),
    [
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), (140, 90, 70), 50, "ok", ""),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (140, 90, 70), 50, "fail", "0..255"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (140, 90, 70), 50, "fail", "0..255"),
        ((123.7, 116.3, 103.5), (5e3, 5e3, 5e3), (140, 90, 70), 50, "fail", "0..255"),
        ((103.5, 116.3, 123.7), (57.4, 57.1, 58.4), (140, 110, 90), 50, "warn", "BGR"),
        ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0), (140, 90, 70), 50, "ok", ""),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), (0, 0, 0), 0, "fail", "look at the files"),
    ],
)
def test_normalization_is_compared_with_the_pixels(mean, std, colour, spread, level, said) -> None:
    detector = tiny_detector()
    detector.pixel_mean = torch.tensor(mean).view(3, 1, 1)
    detector.pixel_std = torch.tensor(std).view(3, 1, 1)
    (finding,) = data.normalization("plain", detector, rgb_noise(colour, spread))
    assert finding.level == level and said in finding.remedy


# ------------------------------------------------------------------------------------ the causes


def seen(truth: list[tuple], detections: list[tuple]) -> LabelledFrame:
    """A frame from (box, class) and (box, score, class)."""
    boxes, scores, classes = zip(*detections, strict=True) if detections else ([], [], [])
    prediction = FramePrediction(
        1,
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.array(scores, dtype=float),
        np.array(classes, dtype=np.int64),
    )
    lesions, labels = zip(*truth, strict=True)
    return LabelledFrame(
        Video("train", 1, "a"),
        np.array(lesions, dtype=float).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        prediction,
    )


def a_stage() -> Stage:
    stage = Stage()
    stage.name = "plain"
    return stage


BOX, TINY = (10, 10, 50, 50), (100, 100, 103, 102)


def test_lesions_under_another_name_are_wrong_classes() -> None:
    wrong = seen([(BOX, 1)], [(BOX, 0.9, 0), (BOX, 0.1, 1)])
    right = seen([(BOX, 0)], [(BOX, 0.9, 0)])
    outcome = Outcome(frames=[wrong, right, wrong])
    (finding,) = causes.classes(a_stage(), outcome, ["polyp", "cyst"])
    assert finding.level == "fail"
    assert "class cyst" in finding.found and "2 are detected as polyp, and never" in finding.found
    assert not list(causes.classes(a_stage(), Outcome(frames=[right]), ["polyp", "cyst"]))


def test_small_lesions_without_a_box_are_told_from_others() -> None:
    small = seen([(BOX, 0), (TINY, 0)], [(BOX, 0.9, 0)])
    outcome = Outcome(frames=[small], ratios=[np.array([0.5, 0.5])])
    (finding,) = causes.missed_boxes(a_stage(), outcome, 8)
    assert finding.level == "fail" and "too small" in finding.remedy
    assert "at the network's input: 2 px; of those found: 20 px" in finding.found
    (finding,) = causes.missed_boxes(a_stage(), outcome, 2)  # of a detector with finer maps
    assert finding.level == "warn"
    outcome.frames = [seen([(BOX, 0)], [(BOX, 0.2, 0), (TINY, 0.9, 0)])]
    assert not list(causes.missed_boxes(a_stage(), outcome, 8))  # it has a box


def course(*losses: float, error: str = "") -> Outcome:
    return Outcome(losses=[float(loss) for loss in losses for _ in range(10)], error=error)


@pytest.mark.parametrize(
    ("own", "slower", "faster", "level", "remedy"),
    [
        (
            course(9, 9, 9),
            course(9, 9, 9),
            course(9, 5, 2),
            "fail",
            "optimizer.lr=0.01 optimizer.backbone_lr=0.0001 (now 0.001, 1e-05)",
        ),
        (course(9, 20, 40), course(9, 5, 2), course(9, 50, 90), "fail", "optimizer.lr=0.0001 "),
        (course(9, error="nan"), course(9, 5), course(9, error="nan"), "fail", "lr=0.0001 "),
        (course(error="nan"), course(error="nan"), course(error="nan"), "fail", "none of these"),
        (course(9, 5, 3), course(9, 8, 7), course(9, 5, 3), "ok", ""),
        (course(9, 5, 3), course(9), course(1), "warn", "--minutes"),  # of too few steps
    ],
    ids=["too low", "too high", "not finite", "no rate", "right", "undecided"],
)
def test_the_rate_that_learns_is_named(tiny_config, own, slower, faster, level, remedy) -> None:
    run = make_run(tiny_config)
    trials = {0.1: slower, 10.0: faster}
    (finding,) = causes.learning_rate(run, run.stages["plain"], own, trials.__getitem__)
    assert finding.level == level and remedy in finding.remedy
    if remedy.strip().endswith("lr=0.0001"):
        assert "optimizer.backbone_lr=1e-06" in finding.remedy


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "better"), [("3e-5", "0.0003"), ("3e-1", "0.03")])
def test_a_rate_that_does_not_learn_is_found_by_training(tiny_config, rate, better) -> None:
    own = [f"optimizer.lr={rate}", f"optimizer.backbone_lr={rate}", "train.clip_grad_norm=0"]
    run, stage, _, outcome = trained(tiny_config, *own, steps=60)

    def trial(factor: float) -> Outcome:
        return trained(tiny_config, *own, steps=60, rate=factor)[-1]

    (finding,) = causes.learning_rate(run, stage, outcome, trial)
    assert finding.level == "fail" and f"optimizer.lr={better}" in finding.remedy


def test_a_backbone_that_does_not_learn_is_named(tiny_config) -> None:
    _, stage, models, outcome = trained(tiny_config, "optimizer.backbone_lr=0.0", steps=3)
    (finding,) = causes.unmoved(stage, outcome, models.trained)
    assert "not at all: backbone" in finding.found and "backbone_lr" in finding.remedy
    _, stage, models, outcome = trained(tiny_config, *LEARNS, steps=3)
    assert not list(causes.unmoved(stage, outcome, models.trained))
    models.model.requires_grad_(False)
    (finding,) = causes.unmoved(stage, outcome, models.trained)
    assert "parameters are frozen" in finding.found


def test_a_loss_that_is_not_finite_ends_the_training_with_its_words(tiny_config) -> None:
    own = ["optimizer.lr=1e30", "optimizer.backbone_lr=1e30", "train.clip_grad_norm=0"]
    *_, outcome = trained(tiny_config, *own, steps=30)
    assert "not finite" in outcome.error and not outcome.found
    assert causes.describe(outcome).startswith("loss not finite at step")


def test_training_stops_as_soon_as_all_is_found(tiny_config, monkeypatch) -> None:
    def look(outcome: Outcome, model: object, frames: object) -> None:
        outcome.frames, outcome.found = [seen([(BOX, 0)], [])], outcome.steps >= 20

    monkeypatch.setattr("v2idetr.engine.rehearsal.training.look", look)
    *_, outcome = trained(tiny_config, steps=100)
    assert outcome.found and outcome.steps == 20


def test_found_means_above_every_false_positive(tiny_config, monkeypatch) -> None:
    from v2idetr.engine.rehearsal import training

    _, _, models, frames = prepared(tiny_config)

    def predicting(false_score: float) -> Outcome:
        predictions = []
        for row in frames.split.records:
            x, y, w, h = row["annotations"][0]["bbox"]
            boxes = np.array([[x, y, x + w, y + h], [40, 30, 60, 45]], dtype=float)
            both = np.array([0.5, false_score])
            image_id, labels = row["image_id"], np.zeros(2, dtype=np.int64)
            predictions.append(FramePrediction(image_id, boxes, both, labels))
        monkeypatch.setattr(training, "predict", lambda model, loader: predictions)
        outcome = Outcome()
        training.look(outcome, models.model, frames)
        return outcome

    assert predicting(0.4).found and predicting(0.4).hits == 8
    assert not predicting(0.6).found and predicting(0.6).hits == 0


# -------------------------------------------------------------------------------------- the cost


def test_the_cost_of_a_stage_is_that_of_its_own_steps_and_files(tiny_config, tmp_path) -> None:
    run, stage, models, _ = prepared(tiny_config, "train.max_iter=1000", "train.eval_period=300")
    cost = measure(run, stage, models)
    assert (cost.steps, cost.validations) == (1000, 4)  # at 300, 600, 900 and the end
    assert (cost.validated_frames, cost.evaluated_frames) == (3, 6)
    assert 0 < cost.waiting_s < cost.step_s < 10 and len(cost.losses) >= 4
    best = tmp_path / "run" / "plain" / "best.pth"  # for later stages
    assert cost.disk_bytes > 3 * best.stat().st_size
    assert not (tmp_path / "run" / "plain" / "last.pth").exists()
    assert 2**26 < cost.memory_bytes < 2**36


def test_times_are_steps_and_frames_times_what_was_measured() -> None:
    cost = StageCost(
        "plain", 100, 2.0, 0.5, [], validations=4, frame_s=0.1,
        validated_frames=50, evaluated_frames=200,
    )  # fmt: skip
    assert (cost.training_s, cost.validation_s, cost.evaluation_s) == (200, 20, 20)
    assert rehearsal._times(cost).startswith("4 min: 100 steps of 2 s")


@pytest.mark.parametrize(
    ("memory_gib", "disk_gib", "levels"),
    [(1, 1e-3, {"ok"}), (9, 1e-3, {"ok", "fail"}), (1, 1e9, {"ok", "fail"})],
)
def test_too_little_memory_or_disk_fails(tiny_config, memory_gib, disk_gib, levels) -> None:
    run: RunContext = make_run(tiny_config)
    sizes = {"memory_bytes": int(memory_gib * 2**30), "disk_bytes": int(disk_gib * 2**30)}
    costs = [StageCost("plain", 10, 1.0, 0.0, [], **sizes)]
    findings = list(rehearsal._whole_run(run.config, costs, torch.device("cpu"), 8.0))
    assert {finding.level for finding in findings} == levels


@pytest.mark.parametrize(("load", "level"), [(0.0, "ok"), (1000.0, "warn")])
def test_times_of_a_busy_machine_are_said_to_be_that(tiny_config, load, level) -> None:
    costs = [StageCost("plain", 10, 1.0, 0.0, [])]
    config, device = make_run(tiny_config).config, torch.device("cpu")
    time_of_run, *_ = rehearsal._whole_run(config, costs, device, 8.0, load)
    assert (time_of_run.topic, time_of_run.level) == ("run: time", level)
