"""tools/report.py and v2idetr.report: the page of finished, unfinished and odd runs."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from v2idetr.config.load import load_config, save_config, to_plain
from v2idetr.data.coco_vid import read_split, write_split
from v2idetr.evaluation.evaluator import evaluate_predictions, write_evaluation
from v2idetr.evaluation.predictions import FramePrediction, write_predictions
from v2idetr.report import curves, heldout
from v2idetr.report.frame_images import Album
from v2idetr.report.heldout import HeldOutFrame, Outcome, groups_of
from v2idetr.report.page import write_report
from v2idetr.runs.reading import read_run

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("teacher", "plain", "student")
WIDTH, HEIGHT = 64, 48
ODD_NAME = "a<b>&'clip"  # what a folder may be called and HTML may not swallow

# Shift of every box by stage and frame, in shares of its size: 0.1 is found, 0.6 is not.
SHIFTS = {"teacher": (0.1, 0.1, 0.1), "plain": (0.1, 0.6, 0.6), "student": (0.1, 0.1, 0.6)}


def make_split(folder: Path, name: str, *, videos: int = 3, frames: int = 4) -> dict[str, str]:
    """Noise with one lesion a frame, the last frame of each video without."""
    rng = np.random.default_rng(len(name))
    images, annotations = [], []
    for index in range(videos * frames):
        video, frame = divmod(index, frames)
        pixels = rng.integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        file_name = f"{name}/{index}.png"
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / file_name)
        images.append({"id": index + 1, "file_name": file_name, "width": WIDTH, "height": HEIGHT})
        images[-1] |= {"video_id": video + 1, "frame_index": frame, "scene_id": 0}
        if frame < frames - 1:
            ids = {"id": index + 1, "image_id": index + 1, "category_id": 1}
            annotations.append(ids | {"bbox": [16 + video, 12, 20, 16], "area": 320, "iscrowd": 0})
    write_split(
        folder / f"{name}.json",
        videos=[{"id": v + 1, "name": f"{ODD_NAME}{v}"} for v in range(videos)],
        images=images,
        annotations=annotations,
        categories=[{"id": 1, "name": "polyp"}],
        info={"description": "test"},
    )
    return {"json": str(folder / f"{name}.json"), "image_root": str(folder)}


def predictions_of(stage: str, split: Any) -> list[FramePrediction]:
    """One box a lesion, shifted by stage and frame."""
    predictions = []
    for record in split.records:
        boxes = np.array([a["bbox"] for a in record["annotations"]], dtype=float).reshape(-1, 4)
        shift = SHIFTS[stage][record["frame_index"]] if len(boxes) else 0.0
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        corners += shift * np.concatenate([boxes[:, 2:], boxes[:, 2:]], axis=1)
        scores = np.full(len(boxes), 0.875 if shift < 0.5 else 0.75)
        classes = np.zeros(len(boxes), dtype=np.int64)
        predictions.append(FramePrediction(record["image_id"], corners, scores, classes))
    return predictions


def write_stage(folder: Path, stage: str, splits: dict[str, Any]) -> None:
    """Metrics, predictions and evaluation of one stage."""
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in (20, 40, 60):
        losses = {"total_loss": 900.0 / step, "loss_class": 300.0 / step}
        if stage == "student":
            losses |= {"loss_tfd": 40.0 / step, "loss_cqd": 60.0 / step}
            losses |= {f"agreement/cosine_layer{k}": step / 80 - 3 * k / 8 for k in (0, 1)}
        lines.append({"iteration": step, **losses, "lr": 1e-4, "time_s": 0.5})
        metrics = {"val/AP50": 0.125 + step / 100 if step < 60 else None, "val/iou50/f1": 0.5}
        lines.append({"iteration": step, **metrics})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"iteration": 61, "total')
    predicted = {name: predictions_of(stage, split) for name, split in splits.items()}
    for name, split in splits.items():
        write_predictions(folder / f"predictions_{name}.json.gz", split, predicted[name])
    result = evaluate_predictions(
        val=(splits["val"], predicted["val"]),
        tests={n: (splits[n], predicted[n]) for n in splits if n != "val"},
        rules=["endovis_center", "iou50"],
        coco_ap=True,
    )
    frames = 3 if stage == "teacher" else 1
    cost = {"parameters": 4_600_000 + 1_000_000 * (frames - 1), "flops": 1.25e9 * frames}
    cost |= {"frames_per_second": 30.5 / frames, "frames_per_detection": frames}
    cost |= {
        "input_height": 96,
        "input_width": 128,
        "machine": "A processor",
        "peak_memory_mib": None,
    }
    write_evaluation(folder / "evaluation.json", {"stage": stage, **result, "cost": cost})


def make_run(folder: Path) -> Path:
    """A finished run below a folder."""
    paths = {name: make_split(folder / "data", name) for name in ("train", "val", "easy", "hard")}
    run = folder / "run"
    config = to_plain(load_config(ROOT / "configs" / "v2i_synthetic.yaml"))
    config["train"] |= {"output_dir": str(run), "max_iter": 60}
    config["data"] |= {"train": paths["train"], "val": paths["val"]}
    config["data"]["test"] = {name: paths[name] for name in ("easy", "hard")}
    splits = {name: read_split(paths[name]["json"], paths[name]["image_root"]) for name in paths}
    splits.pop("train")
    for stage in STAGES:
        write_stage(run / stage, stage, splits)
    save_config(OmegaConf.create(config), run / "config.yaml")
    start = {
        "time": "2026-11-20T09:12:31+00:00",
        "command": ["train_net.py", "--config-file", str(ROOT / "configs" / "v2i_synthetic.yaml")],
        "device": "cpu (2 threads)",
        "processes": 1,
        "python": "3.11.2",
        "platform": "Linux",
        "packages": {"torch": "2.14.1"},
        "git_commit": "0123abcd",
        "data": {"train": {"frames": 12}},
    }
    (run / "run.json").write_text(json.dumps({"starts": [start]}))
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that change it take a copy."""
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    """The finished run's page."""
    output = finished.parent / "report.html"
    assert write_report(finished, output, {"Operator": "Ann & Bob"}) == []
    return output.read_text()


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may spoil; the data is shared."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/report.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("report")


def test_the_page_has_all_its_parts(page: str) -> None:
    assert set(re.findall(r'<section[^>]* id="(\w+)"', page)) == {
        "results",
        "curves",
        "frames",
        "teaching",
        "run",
        "limits",
    }
    assert "not a medical device" in page
    assert 'content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page


def test_nothing_comes_from_elsewhere(page: str) -> None:
    assert not re.search(r"https?://|\bsrc=|<script|<link|@import|url\((?!#)", page)
    references = re.findall(r'\bhref="([^"]{0,30})', page)
    assert references
    assert all(reference.startswith(("#", "data:image/jpeg;base64,")) for reference in references)


def test_every_frame_that_is_drawn_is_stored_once(page: str) -> None:
    stored = re.findall(r'<symbol id="(\w+)"', page)
    assert len(stored) == len(set(stored))
    assert set(re.findall(r'<use href="#(\w+)"', page)) == set(stored)


def test_the_models_are_described_as_the_config_has_them(
    page: str, copied: Path, tmp_path: Path
) -> None:
    assert "mixes them (MSI)" in page
    assert "imitates the teacher: its features (TFD) and its queries (CQD)." in page
    config = load_config(copied / "config.yaml")
    config.distillation.tfd = config.teacher.model.net.fusion = None
    save_config(config, copied / "config.yaml")
    write_report(copied, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "each by itself, without MSI" in text
    assert "imitates the teacher: its queries (CQD)." in text


def test_names_from_files_are_escaped(page: str) -> None:
    assert "a&lt;b&gt;&amp;&#39;clip" in page
    assert "a<b>" not in page
    assert "Ann &amp; Bob" in page


def test_the_table_has_the_metrics_of_the_evaluations(page: str, finished: Path) -> None:
    table = re.search(r'<table class="metrics">.*?</table>', page, re.DOTALL)
    assert table is not None
    for stage in STAGES:
        result = json.loads((finished / stage / "evaluation.json").read_text())["all_tests"]
        assert f"<span>{100 * result['coco']['AP50']:.1f}</span>" in table[0]
        assert f"<span>{100 * result['rules']['iou50']['f1']:.1f}</span>" in table[0]
    assert "<span>6.60</span>" in table[0]  # millions of parameters of the teacher


def test_the_mask_has_the_cells_of_its_stride(page: str) -> None:
    """128 x 96 px at stride 32 are 4 x 3 cells; four training frames are shown."""
    assert "4 × 3 cells" in page
    assert page.count('<rect class="cell"') == 4 * 12


def test_the_clip_has_the_teachers_frames(page: str) -> None:
    strip = re.search(r'<div class="strip">.*?</div>', page, re.DOTALL)
    assert strip is not None
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", strip[0])
    assert captions == ["1 frame earlier", "the frame itself", "2 frames later"]


def test_what_was_run_is_there(page: str) -> None:
    assert "python train_net.py --config-file " in page
    assert "0123abcd" in page
    assert "60 of 60" in page
    assert "train.max_iter: " in page  # a difference from the named config


def test_the_same_run_gives_the_same_page(finished: Path, page: str, tmp_path: Path) -> None:
    write_report(finished, tmp_path / "again.html", {"Operator": "Ann & Bob"})
    assert (tmp_path / "again.html").read_text() == page


def test_a_stage_that_is_not_evaluated_is_said_to_be_missing(copied: Path, tmp_path: Path) -> None:
    (copied / "student" / "evaluation.json").unlink()
    shutil.rmtree(copied / "teacher")
    assert write_report(copied, tmp_path / "report.html") == []
    page = (tmp_path / "report.html").read_text()
    assert "The comparison is not complete" in page
    assert "Not evaluated: V2I student." in page
    assert page.count("<b>Plain student</b>") == page.count("<div><svg") > 0


def test_a_run_that_has_just_begun_has_a_page(copied: Path, tmp_path: Path) -> None:
    for stage in STAGES:
        shutil.rmtree(copied / stage)
    write_report(copied, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Nothing is evaluated yet" in page
    assert page.count("not begun") == 3


def test_the_folder_of_an_evaluation_is_not_that_of_a_run(copied: Path, tmp_path: Path) -> None:
    (copied / "run.json").unlink()
    with pytest.raises(ValueError, match=r"there is no run\.json in it"):
        write_report(copied, tmp_path / "report.html")


def test_frames_that_are_gone_are_reported_and_the_rest_is_there(
    copied: Path, tmp_path: Path
) -> None:
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(re.sub(r"image_root: .*", "image_root: /nowhere", config))
    missing = write_report(copied, tmp_path / "report.html")
    assert len(missing) == 2
    assert all("/nowhere" in sentence for sentence in missing)
    page = (tmp_path / "report.html").read_text()
    assert "/nowhere" in page
    assert 'id="results"' in page
    assert 'id="frames"' not in page


def test_missing_predictions_are_named_with_the_command_that_makes_them(
    copied: Path, tmp_path: Path
) -> None:
    (copied / "plain" / "predictions_hard.json.gz").unlink()
    (sentence,) = write_report(copied, tmp_path / "report.html")
    assert "predictions_hard.json.gz" in sentence
    assert "--eval-only" in sentence


@pytest.mark.parametrize("argument", ["run", "facts"])
def test_a_users_error_is_a_message_and_status_2(
    tool: ModuleType, tmp_path: Path, argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path)]
    if argument == "facts":
        (tmp_path / "facts.json").write_text("[1")
        arguments += ["--facts", str(tmp_path / "facts.json")]
    assert tool.main(arguments) == 2
    error = capsys.readouterr().err
    assert ("facts.json" if argument == "facts" else "config.yaml") in error
    assert not (tmp_path / "report.html").exists()


def test_the_tool_says_where_the_page_is(
    tool: ModuleType, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(copied)]) == 0
    assert f"{copied}/report.html" in capsys.readouterr().out


def test_a_damaged_evaluation_is_named(copied: Path, tmp_path: Path) -> None:
    (copied / "plain" / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"plain/evaluation\.json: is not JSON"):
        write_report(copied, tmp_path / "report.html")


def test_a_line_that_was_cut_off_is_left_out(finished: Path) -> None:
    stage = read_run(finished).stages["student"]
    assert [line["iteration"] for line in stage.steps] == [20, 40, 60]
    assert stage.train_seconds == pytest.approx(60 * 0.5)


def test_of_equal_metrics_the_last_has_the_best_weights(copied: Path) -> None:
    lines = [{"iteration": n, "val/AP50": value} for n, value in ((20, 0.5), (40, 0.5), (60, 0.4))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (copied / "plain" / "metrics.jsonl").write_text(text)
    assert curves.best_validation(read_run(copied).stages["plain"], "AP50") == (40, 0.5)


def test_the_agreement_of_student_and_teacher_is_drawn_by_layer(finished: Path) -> None:
    drawn = {chart.title: chart for chart in curves.charts(read_run(finished))}
    chart = drawn["Agreement with the teacher"]
    assert [line.label for line in chart.lines] == ["layer 0", "layer 1"]
    assert chart.lines[1].points == [(20.0, -0.125), (40.0, 0.125), (60.0, 0.375)]
    low, high = chart.draw().axes[0].get_ylim()
    assert low < -0.125 and high > 0.75  # a negative cosine is inside


def test_a_stage_without_labels_has_a_chart_of_its_own(copied: Path) -> None:
    assert "Losses without labels" not in {c.title for c in curves.charts(read_run(copied))}
    lines = [{"iteration": n, "total_loss": 7.0 / n, "labelled_frames": 0.0} for n in (20, 40)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (copied / "plain" / "metrics.jsonl").write_text(text)
    drawn = {chart.title: chart for chart in curves.charts(read_run(copied))}
    assert [line.label for line in drawn["Losses without labels"].lines] == ["Plain student"]
    assert "Plain student" not in {line.label for line in drawn["Detection loss"].lines}


# ---------------------------------------------------------------- frames


def frame_of(right: dict[str, bool], index: int = 0) -> HeldOutFrame:
    nothing = np.zeros((0, 4))
    outcomes = {
        stage: Outcome(nothing, np.zeros(0), np.zeros(0, dtype=np.int64), value, "")
        for stage, value in right.items()
    }
    video = heldout.Video("easy", index, f"clip{index}")
    lesion = np.array([[0.0, 0.0, 1.0, 1.0]])
    record = {"image_id": index, "frame_index": 0}
    return HeldOutFrame(video, record, lesion, np.zeros(1, dtype=np.int64), outcomes)


@pytest.mark.parametrize("stages", [STAGES, ("plain", "student"), ("teacher", "plain"), ("plain",)])
def test_every_frame_is_in_exactly_one_group(stages: tuple[str, ...]) -> None:
    frames = [
        frame_of(dict(zip(stages, right, strict=True)), index)
        for index, right in enumerate(itertools.product([True, False], repeat=len(stages)))
    ]
    members = [id(frame) for group in groups_of(frames) for frame in group.frames]
    assert sorted(members) == sorted(map(id, frames))


def test_groups_are_named_after_who_is_right() -> None:
    right = {"teacher": True, "plain": False, "student": True}
    (group,) = groups_of([frame_of(right)])
    assert group.title == "The V2I student is right, the plain student is not"


def test_shown_frames_come_from_different_videos() -> None:
    frames = [frame_of({"plain": False}, index // 5) for index in range(50)]
    (group,) = groups_of(frames)
    assert len({frame.video for frame in group.shown}) == len(group.shown) == 2


def test_the_fixtures_models_differ_as_they_were_made(finished: Path) -> None:
    frames = heldout.held_out_frames(read_run(finished))
    by_frame = {f.record["frame_index"]: f.right for f in frames if f.video.video_id == 1}
    assert by_frame[0] == {"teacher": True, "plain": True, "student": True}
    assert by_frame[1] == {"teacher": True, "plain": False, "student": True}
    assert by_frame[2] == {"teacher": True, "plain": False, "student": False}
    assert by_frame[3] == {"teacher": True, "plain": True, "student": True}  # lesion-free


def test_a_box_is_drawn_where_it_is() -> None:
    stored = Album().add(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    box = stored.box("truth", np.array([16.0, 12.0, 36.0, 28.0]))
    assert (box.x, box.y, box.width, box.height) == (80, 60, 100, 80)  # 320 units for 64 px
    assert stored.height == 240


def test_facts_may_begin_with_a_byte_order_mark(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text('{"camera": "C1"}', encoding="utf-8-sig")
    assert tool.read_facts(tmp_path / "facts.json") == {"camera": "C1"}
