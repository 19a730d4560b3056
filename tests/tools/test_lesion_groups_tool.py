"""tools/lesion_groups.py on folders of evaluated stages."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.tools.test_report import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boxes of the plain detector fit on a third of the frames, the student's on two thirds."""
    return make_run(tmp_path_factory.mktemp("groups"))


@pytest.fixture
def program() -> ModuleType:
    return importlib.import_module("lesion_groups")


def call(program: ModuleType, run: Path, output: Path, *more: str) -> int:
    stages = ["--plain", str(run / "plain"), "--teacher", str(run / "teacher")]
    return program.main([*stages, "--output", str(output), *more])


def test_counts_are_those_of_the_boxes_that_fit(program: ModuleType, run: Path, tmp_path) -> None:
    more = ["--split", "easy", "--other", "student", str(run / "student")]
    assert call(program, run, tmp_path / "out", *more) == 0
    content = json.loads((tmp_path / "out" / "lesion_groups.json").read_text())
    whole = content["rows"][0]
    n = whole["lesions"]
    assert whole["found"] == {"plain": n // 3, "teacher": n, "student": 2 * n // 3}
    assert whole["won_by_teacher"] == 2 * n // 3
    assert whole["of_these"] == {"student": n // 3}
    videos = [row for row in content["rows"] if row["measure"] == "video"]
    assert sum(row["lesions"] for row in videos) == n
    text = (tmp_path / "out" / "lesion_groups.md").read_text()
    assert "| all lesions" in text and "## By video" in text and "50.0" in text


def test_seeds_are_added(program: ModuleType, run: Path, tmp_path: Path) -> None:
    stages = ["--plain", *[str(run / "plain")] * 2, "--teacher", *[str(run / "teacher")] * 2]
    assert program.main([*stages, "--split", "easy", "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "lesion_groups.json").read_text())
    whole = content["rows"][0]
    assert content["seeds"] == 2 and whole["found"]["teacher"] == 2 * whole["lesions"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--split", "eesy"], "--split eesy: "),
        (["--split", "easy", "--rule", "iou75"], "--rule iou75: "),
        (["--split", "easy", "--other", "plain", "x"], "--other plain: give a new name"),
        (["--split", "easy", "--other", "more"], "--other more: give a new name"),
        (["--split", "easy", "--other", "more", "a", "b"], "the same number of folders"),
        (["--split", "easy", "--other", "more", "nowhere"], "nowhere: has no evaluation.json"),
    ],
)
def test_what_cannot_be_compared_is_said(
    program: ModuleType,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    assert call(program, run, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_config_is_refused(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(program, tmp_path / "none", tmp_path / "out", "--split", "val") == 2
    assert "is not the folder of a stage" in capsys.readouterr().err
