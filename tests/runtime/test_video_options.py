"""Options of the program: models, outputs, numbers; what cannot work is refused before the work."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.tiny_videos import predict, rows, write_video
from v2i_runtime.predict_video import main

pytest.importorskip("supervision", reason="draws the boxes")


# Outputs


@pytest.mark.parametrize("option", ["--output", "--json", "--csv"])
@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_an_output_that_is_the_input_is_refused(
    tmp_path: Path, option: str, link: str, capsys
) -> None:
    source = write_video(tmp_path / "in.mp4")
    before, other = source.read_bytes(), source if link == "same" else tmp_path / "other.mp4"
    if link == "symbolic":
        other.symlink_to(source)
    elif link == "hard":
        other.hardlink_to(source)
    assert predict(source, option, other, "--overwrite") == 2
    assert "is the input" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write"),
        (["--output", "x.avi"], "must end in .mp4"),
        (["--csv", "old.csv"], "exists; choose another name, or add --overwrite"),
        (["--csv", "a.txt", "--json", "a.txt"], "are one file"),
        (["--csv", "folder"], "is a folder"),
        (["--csv", "/proc/new/a.csv"], "nothing can be written to /proc/new"),
        (["--csv", "a.csv", "--start", "2", "--end", "1"], "--end 1.0: must be after --start"),
        (["--csv", "a.csv", "--image-rate", "5"], "--image-rate is for image files"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(
    tmp_path: Path, monkeypatch, capsys, arguments: list[str], message: str
) -> None:
    source = write_video(tmp_path / "in.mp4", frames=2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.csv").write_text("old")
    assert predict(source, *arguments) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "old.csv").read_text() == "old"


def test_existing_files_are_replaced_on_request_and_nothing_else_is_left(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=4)
    names = {"--output": "a.mp4", "--json": "a.json", "--csv": "a.csv"}
    arguments = [part for option, name in names.items() for part in (option, tmp_path / name)]
    assert predict(source, *arguments) == 0
    assert predict(source, *arguments, "--overwrite") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", *names.values()}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.mp4", "gone.mp4: no such file or folder"),
        ("*.mp4", "matches in.mp4, but a pattern is for images"),
        ("*.jpg", "*.jpg: no file matches this pattern"),
    ],
)
def test_an_input_that_cannot_be_used_is_named_and_leaves_no_folder(
    tmp_path: Path, monkeypatch, capsys, source: str, message: str
) -> None:
    write_video(tmp_path / "in.mp4", frames=2)
    monkeypatch.chdir(tmp_path)
    assert predict(source, "--csv", "new/folder/out.csv") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_the_folder_of_an_output_is_created(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=2)
    assert predict(source, "--csv", tmp_path / "new" / "folder" / "out.csv") == 0
    assert len(rows(tmp_path / "new" / "folder" / "out.csv")) == 2


def test_frames_that_h264_cannot_hold_are_refused_with_their_size(tmp_path: Path, capsys) -> None:
    Image.fromarray(np.zeros((16, 17_000, 3), np.uint8)).save(tmp_path / "wide.png")
    out = tmp_path / "out.mp4"
    assert predict(tmp_path / "wide.png", "--output", out) == 2
    assert f"{out}: H.264 cannot hold frames of 17000 x 16 px" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["wide.png"]


def test_an_interruption_before_the_first_frame_says_that_nothing_was_written(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    def interrupted(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # the signal arrives in the main thread
        yield from ()

    source = write_video(tmp_path / "in.mp4", frames=2)
    monkeypatch.setattr("v2i_runtime.sources.VideoFile.__iter__", interrupted)
    assert predict(source, "--csv", tmp_path / "out.csv") == 143
    said = capsys.readouterr()
    assert said.err.endswith("Interrupted: nothing was written.\n")
    assert said.out.endswith("nothing written\n")


# Models


def test_an_exported_model_predicts_a_video(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.runtime.tiny_models import write_model

    source = write_video(tmp_path / "in.mp4", frames=3)
    model = write_model(tmp_path / "student.onnx")
    arguments = [str(model), str(source), "--csv", str(tmp_path / "out.csv"), "--threads", "1"]
    assert main([*arguments, "--threshold", "0"]) == 0
    assert {row["class"] for row in rows(tmp_path / "out.csv")} == {"polyp", "ulcer"}


@pytest.mark.parametrize("name", ["model.pth", "model.txt"])
def test_a_model_of_another_kind_is_refused(tmp_path: Path, name: str, capsys) -> None:
    source = write_video(tmp_path / "in.mp4", frames=3)
    assert main([name, str(source), "--csv", str(tmp_path / "out.csv")]) == 2
    assert "is no exported detector (.onnx, .xml)" in capsys.readouterr().err


def test_a_folder_as_a_model_is_named_as_one(tmp_path: Path, capsys) -> None:
    source = write_video(tmp_path / "in.mp4", frames=3)
    (tmp_path / "student").mkdir()
    arguments = [str(tmp_path / "student"), str(source), "--csv", str(tmp_path / "out.csv")]
    assert main(arguments) == 2
    assert "student: is a folder; give the model's file in it" in capsys.readouterr().err


def test_a_model_is_never_overwritten(tmp_path: Path, capsys) -> None:
    source = write_video(tmp_path / "in.mp4", frames=3)
    for name, model in (("a.onnx", "a.onnx"), ("a.bin", "a.xml")):
        (tmp_path / name).write_bytes(b"weights")
        arguments = [str(tmp_path / model), str(source), "--csv", str(tmp_path / name)]
        assert main([*arguments, "--overwrite"]) == 2
        assert "is the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--threshold=2", "2 is not in [0, 1]"),
        ("--every=0", "0 is no whole number of 1 or more"),
        ("--start=soon", "soon is no number"),
        ("--start=nan", "nan is no number"),
        ("--start=1/0", "1/0 is no number"),
        ("--end=1e400", "1e400 is too large"),
        ("--end=1e999999999", "1e999999999 is too large"),
        ("--image-rate=0", "0 is not above 0"),
    ],
)
def test_values_out_of_range_are_named(option: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["model.onnx", "in.mp4", option])
    assert message in capsys.readouterr().err
