"""tools/import_labels.py from labels and videos to JSON files and a config."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import import_labels
import pytest

from tests.prepare.tiny_labels import cvat_box, cvat_video
from tests.runtime.tiny_videos import write_video
from v2idetr.data.coco_vid import load_split

FRAMES = 6
VIDEOS = ("P1_a", "P1_b", "P2_a", "P3_a")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/ of three patients, and labels/ of CVAT: a box on frames 1 to 4 of each."""
    root = tmp_path_factory.mktemp("own")
    (root / "videos").mkdir()
    for k, name in enumerate(VIDEOS):
        write_video(root / "videos" / f"{name}.mp4", frames=FRAMES + k)  # other bytes, other ends
        track = cvat_box(1, [4, 5, 10, 8]) + cvat_box(4, [10, 11, 10, 8])
        track += cvat_box(5, [10, 11, 10, 8], outside=1)
        (root / "labels" / name).mkdir(parents=True)
        text = cvat_video(f'<track id="0" label="polyp">{track}</track>', frames=FRAMES,
                          source=f"{name}.mp4")  # fmt: skip
        (root / "labels" / name / "annotations.xml").write_text(text)
    return root


def run(made: Path, output: Path, *further: str) -> int:
    command = ["--source", f"{made}/videos", "--labels", f"{made}/labels", "--output", str(output)]
    return import_labels.main([*command, *further])


# The frames of all these videos show the same moving square.
SAME = ("--patient-pattern", "(P[0-9])", "--allow-copies")


def content(output: Path, split: str) -> dict:
    return json.loads((output / f"{split}.json").read_text())


def test_videos_and_labels_become_checked_splits_by_patient_and_a_config(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "own"
    assert run(made, output, *SAME) == 0
    sides = {}
    for split in ("train", "val", "test"):
        loaded = load_split(output / f"{split}.json", output / "frames", class_names=["polyp"])
        names = {video["name"]: video["patient"] for video in loaded.videos.values()}
        sides |= (
            dict.fromkeys(names.values(), split) if not set(names.values()) & set(sides) else {}
        )
        assert [r["frame_index"] for r in loaded.records] == [1, 2, 3, 4] * len(names)
        boxes = [r["annotations"][0]["bbox"] for r in loaded.records[:4]]
        assert boxes == [[4, 5, 10, 8], [6, 7, 10, 8], [8, 9, 10, 8], [10, 11, 10, 8]]
    assert sorted(sides) == ["P1", "P2", "P3"] and sorted(sides.values()) == [
        "test",
        "train",
        "val",
    ]
    said = capsys.readouterr().out
    assert "labels of cvat: 16 labelled frames of 30 in 4 videos" in said
    assert "not known to be lesion-free: left out (--lesion-free): 8" in said
    assert "frames are the same in two splits" in said and "train.yaml" in said
    assert "frames are the same in two splits" in (output / "audit.md").read_text()
    assert (output / "train.yaml").read_text().startswith("# Suggested by import_labels.py")
    assert not (output / ".import").exists()


def test_a_second_run_decodes_nothing_and_writes_the_same(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "own"
    assert run(made, output, *SAME, "--lesion-free", "listed") == 0
    before = {path.name: path.read_bytes() for path in output.glob("*.json")}
    assert any(b'"frame_index":0' in text for text in before.values())
    monkeypatch.setattr("v2idetr.prepare.frame_cache._decode", None)
    assert run(made, output, *SAME, "--lesion-free", "listed") == 0
    assert {path.name: path.read_bytes() for path in output.glob("*.json")} == before


def test_copies_in_two_splits_are_refused_and_nothing_is_written(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "own"
    assert run(made, output, "--patient-pattern", "(P[0-9])") == 2
    said = capsys.readouterr().err
    assert said.startswith("import_labels: ") and "of one split are also in another" in said
    assert "--allow-copies" in said
    assert [path.name for path in output.iterdir()] == ["frames"]


@pytest.mark.parametrize(
    ("further", "said"),
    [
        (("--every", "0"), "--every 0: must be 1 or more"),
        (("--val-share", "0"), "must be above 0 and together below 1"),
        (("--val-share", "0.5", "--test-share", "0.5"), "must be above 0 and together below 1"),
        (("--rename", "a=b", "--rename", "a=c"), "given twice"),
        (("--rename", "a=b"), "no label has the class 'a'"),
        (("--classes", "adenoma"), "--rename polyp=adenoma"),
        (("--patient-pattern", "(P)"), "1 patient with lesions left"),
        (("--patients", "nowhere.csv"), "nowhere.csv"),
        (("--format", "coco"), "no labels of the format coco"),
    ],
)
def test_bad_options_are_refused_before_anything_is_decoded(
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    further: tuple[str, ...],
    said: str,
) -> None:
    assert run(made, tmp_path / "own", *further) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "own").exists()


def test_the_output_may_not_be_the_source(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, made / "videos") == 2
    assert "is the source; choose another folder" in capsys.readouterr().err


def test_an_output_inside_the_source_is_not_read_as_data(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "own")
    output = tmp_path / "own" / "videos" / "out"
    for _ in range(2):  # the second time with the files of the first
        assert run(tmp_path / "own", output, *SAME) == 0
    assert sum(len(content(output, split)["videos"]) for split in import_labels.SPLITS) == 4


def test_a_name_that_is_not_utf8_is_refused_by_name(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, tmp_path / "own")
    name = tmp_path / "own" / "videos" / "P1_a.mp4"
    try:
        os.rename(name, os.fsencode(name).replace(b"P1_a", b"P1_\xe4"))
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    text = tmp_path / "own" / "labels" / "P1_a"
    shutil.rmtree(text)
    assert run(tmp_path / "own", tmp_path / "out", *SAME, "--lesion-free", "all") == 2
    assert "is not UTF-8: rename it" in capsys.readouterr().err
