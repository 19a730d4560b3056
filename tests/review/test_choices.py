"""What can be chosen lies below the root, and what was left out is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from v2idetr.review import choices as module
from v2idetr.review.choices import check_model, look_for


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_runs_models_and_videos_are_found(tmp_path: Path) -> None:
    run = tmp_path / "output" / "run"
    touch(run / "config.yaml", run / "run.json", run / "plain" / "best.pth", run / "plain/last.pth")
    touch(tmp_path / "a.xml", tmp_path / "a.bin", tmp_path / "other.xml", tmp_path / "b.onnx")
    touch(tmp_path / "v" / "c.MP4", tmp_path / "notes.txt", tmp_path / ".hidden" / "d.mp4")
    found = look_for(tmp_path)
    assert found.runs == [run]
    assert [found.title(p) for p in found.models] == [
        "a.xml",
        "b.onnx",
        "output/run/plain/best.pth",
    ]
    assert [found.title(p) for p in found.videos] == ["v/c.MP4"]
    assert not found.cut


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    touch(tmp_path / "outside" / "a.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "link.mp4").symlink_to(tmp_path / "outside" / "a.mp4")
    touch(root / ".hidden.mp4", root / "b.mp4")
    (root / "inside.mp4").symlink_to(root / "b.mp4")
    assert [path.name for path in look_for(root).videos] == ["b.mp4", "inside.mp4"]


def test_long_lists_are_cut_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ENTRIES", 2)
    touch(*(tmp_path / f"{k}.mp4" for k in range(3)))
    found = look_for(tmp_path)
    assert len(found.videos) == 2
    assert found.cut == "Only the first 2 of 3 videos are listed."


def test_a_path_outside_the_root_is_shown_whole(tmp_path: Path) -> None:
    assert look_for(tmp_path).title(Path("/elsewhere/a.mp4")) == "/elsewhere/a.mp4"


def test_a_model_must_be_there_and_of_a_known_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.zip: must be one of \.pth"):
        check_model(tmp_path / "a.zip")
    with pytest.raises(ValueError, match=r"a\.onnx: no such file"):
        check_model(tmp_path / "a.onnx")
