"""Runs as a review: same frames for all detectors, paths that stay where they belong."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.review.tiny_review import FRAMES, HEIGHT, HOSTILE, VIDEOS, WIDTH
from v2idetr.review.review import NotThereError, Shown
from v2idetr.review.run_review import RunReview, where_it_is


def test_a_run_has_its_test_and_validation_splits_and_evaluated_stages(
    run_review: RunReview,
) -> None:
    assert run_review.splits == ["held_out", "val"]
    assert [d.name for d in run_review.detectors] == ["Teacher", "Plain student", "V2I student"]
    assert run_review.detectors[1].thresholds == {"endovis_center": 0.5, "iou50": 0.5}
    assert [v["frames"] for v in run_review.videos(0)] == [FRAMES] * VIDEOS
    assert run_review.videos(0)[1]["name"] == HOSTILE


def test_a_clip_has_times_lesions_and_detections_of_each_frame(run_review: RunReview) -> None:
    clip = run_review.clip(0, 1, 0)
    assert clip["times_s"] == pytest.approx([k / 25 for k in range(FRAMES)])
    assert clip["rate_hz"] == 25
    assert [len(lesions) for lesions in clip["truth"]] == [1] * (FRAMES - 1) + [0]
    assert [len(own["frames"]) for own in clip["detectors"]] == [FRAMES] * 3
    json.dumps(clip, allow_nan=False)


def test_a_frame_is_a_jpeg_of_its_size(run_review: RunReview) -> None:
    image = Image.open(io.BytesIO(run_review.jpeg(0, 2, 3)))
    assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))


@pytest.mark.parametrize("at", [(2, 0, 0), (0, VIDEOS, 0), (0, 0, FRAMES), (-1, 0, 0), (0, 0, -1)])
def test_a_position_that_does_not_exist_is_refused(
    run_review: RunReview, at: tuple[int, int, int]
) -> None:
    with pytest.raises(NotThereError):
        run_review.jpeg(*at)
    with pytest.raises(NotThereError):
        run_review.jump("miss", 0, "iou50", 0.5, at, 1)


def test_an_unknown_detector_or_rule_is_refused(run_review: RunReview) -> None:
    with pytest.raises(NotThereError, match="detector 3"):
        run_review.jump("miss", 3, "iou50", 0.5, (0, 0, 0), 1)
    with pytest.raises(NotThereError, match="rule 'best'"):
        run_review.jump("miss", 0, "best", 0.5, (0, 0, 0), 1)


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A second run on the same data, which the test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "other"))


def test_detectors_of_several_runs_have_the_names_of_their_runs(
    finished_run: Path, copy: Path
) -> None:
    both = RunReview([finished_run, copy])
    titles = ("Teacher", "Plain student", "V2I student")
    names = [f"{title} ({run})" for run in ("run", "other") for title in titles]
    assert [shown.name for shown in both.detectors] == names
    assert len(both.clip(0, 0, 0)["detectors"]) == 6


def test_runs_of_one_name_are_told_apart_by_their_folders(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "second" / finished_run.name))
    names = [shown.name for shown in RunReview([finished_run, copy]).detectors]
    assert names[0] == f"Teacher ({finished_run.parent.name}/run)"
    assert names[3] == "Teacher (second/run)"


def test_a_run_is_not_compared_with_itself(finished_run: Path) -> None:
    with pytest.raises(ValueError, match="is given twice"):
        RunReview([finished_run, finished_run])


def test_a_run_on_other_frames_is_refused(finished_run: Path, copy: Path) -> None:
    config = copy / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("held_out.json", "val.json"))
    with pytest.raises(ValueError, match=r"other: was evaluated on other frames .*val\.json"):
        RunReview([finished_run, copy]).videos(0)


def test_a_run_on_as_many_other_frames_is_refused(
    finished_run: Path, copy: Path, tmp_path: Path
) -> None:
    config = copy / "config.yaml"
    text = config.read_text()
    source = Path(text[text.index("held_out:") :].split("json:")[1].split()[0])
    content = json.loads(source.read_text())
    content["images"][0]["file_name"] = "elsewhere.png"
    (tmp_path / "renamed.json").write_text(json.dumps(content))
    config.write_text(text.replace(str(source), str(tmp_path / "renamed.json")))
    with pytest.raises(ValueError, match=r"other: was evaluated on other frames .*renamed\.json"):
        RunReview([finished_run, copy]).videos(0)


def test_a_run_without_a_split_is_refused(finished_run: Path, copy: Path) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("held_out:", "elsewhere:"))
    with pytest.raises(ValueError, match="has no split 'held_out', only elsewhere, val"):
        RunReview([finished_run, copy]).videos(0)


def test_missing_predictions_are_named(copy: Path) -> None:
    (copy / "plain" / "predictions_held_out.json.gz").unlink()
    with pytest.raises(ValueError, match=r"plain/predictions_held_out\.json\.gz: no such file"):
        RunReview([copy]).videos(0)


def test_a_run_that_was_not_evaluated_is_refused(copy: Path) -> None:
    for stage in ("teacher", "plain", "student"):
        (copy / stage / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="no stage of it has been evaluated yet"):
        RunReview([copy])


def test_without_a_frame_rate_false_alarms_a_minute_are_unknown(copy: Path, tmp_path: Path) -> None:
    config = (copy / "config.yaml").read_text()
    start = config.index("held_out:")
    source = Path(config[start:].split("json:")[1].split()[0])
    content = json.loads(source.read_text())
    for video in content["videos"]:
        del video["fps"]
    without = tmp_path / "without.json"
    without.write_text(json.dumps(content))
    (copy / "config.yaml").write_text(config.replace(str(source), str(without)))
    metrics = RunReview([copy]).metrics(0, 0, [0.5] * 3)["detectors"][1]["iou50"]["video"]
    assert (metrics["alarms"], metrics["alarms_a_minute"]) == (1, None)
    given = RunReview([copy], fps=25.0).metrics(0, 0, [0.5] * 3)["detectors"][1]["iou50"]["video"]
    assert given["alarms_a_minute"] == pytest.approx(25 * 60 / FRAMES)


@pytest.mark.parametrize(
    ("key", "value"),
    [("class_names", None), ("thresholds", {"iou50": None}), ("thresholds", [0.5])],
)
def test_a_damaged_evaluation_is_named(copy: Path, key: str, value: object) -> None:
    file = copy / "plain" / "evaluation.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ValueError, match=r"plain/evaluation\.json: is damaged"):
        RunReview([copy])


def test_a_relative_path_is_looked_for_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "output" / "run"
    run.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(run)  # the folder of the tests may have a data/
    assert where_it_is("data", run) == tmp_path / "data"
    assert where_it_is("nowhere", run) == Path("nowhere")
    here = tmp_path / "here"
    (here / "data").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert where_it_is("data", run) == Path("data")


def test_scores_far_below_a_chosen_threshold_are_shown() -> None:
    assert Shown("a").floor == 0.05
    assert Shown("a", (), {"iou50": 0.02, "endovis_center": 0.3}).floor == 0.01
