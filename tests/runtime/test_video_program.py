"""The whole program on generated videos: frames, times, files and exit codes."""

from __future__ import annotations

import itertools
import json
import os
import signal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from tests.runtime.tiny_videos import (
    HEIGHT,
    WIDTH,
    SquareFinder,
    end_of,
    pixels_of,
    predict,
    rows,
    square,
    times_of,
    write_video,
)
from v2i_runtime import video_run
from v2i_runtime.detections import Detections
from v2i_runtime.frame_text import FrameText
from v2i_runtime.sources import open_source
from v2i_runtime.video_run import Outcome

pytest.importorskip("supervision", reason="draws the boxes")

UNEVEN = [0, 40, 41, 100, 250, 1000, 1003, 4000]


def frames_of(path: Path) -> list[np.ndarray]:
    return [frame.pixels for frame in open_source(path)]


# Frames and times


def test_every_frame_of_a_variable_rate_keeps_its_exact_time(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", frames=8, times=UNEVEN)
    assert predict(source, "--output", tmp_path / "out.mp4", "--json", tmp_path / "out.json") == 0
    assert times_of(tmp_path / "out.mp4") == [Fraction(ms, 1000) for ms in UNEVEN]
    images = json.loads((tmp_path / "out.json").read_text())["images"]
    assert [image["time_s"] for image in images] == [ms / 1000 for ms in UNEVEN]


def test_thirds_of_a_second_are_exact(tmp_path: Path) -> None:
    for index in range(7):
        Image.fromarray(pixels_of(index)).save(tmp_path / f"{index}.png")
    out = tmp_path / "out.mp4"
    assert predict(tmp_path / "*.png", "--image-rate", "30000/1001", "--output", out) == 0
    assert times_of(out) == [Fraction(1001 * index, 30000) for index in range(7)]
    assert end_of(out) == Fraction(1001 * 7, 30000)


def test_the_last_frame_keeps_its_duration(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=5)
    predict(source, "--output", tmp_path / "all.mp4")
    predict(source, "--output", tmp_path / "part.mp4", "--end", 0.1)
    assert end_of(tmp_path / "all.mp4") == Fraction(5, 25)
    assert end_of(tmp_path / "part.mp4") == Fraction(3, 25)


def test_start_and_end_are_exact_and_the_video_begins_at_0(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", frames=8, times=UNEVEN)
    out, table = tmp_path / "out.mp4", tmp_path / "out.csv"
    assert predict(source, "--output", out, "--csv", table, "--start", 0.041, "--end", 1.003) == 0
    assert [row["frame"] for row in rows(table)] == ["2", "3", "4", "5"]
    assert [float(row["time_s"]) for row in rows(table)] == [0.041, 0.1, 0.25, 1.0]
    assert times_of(out) == [Fraction(ms - 41, 1000) for ms in (41, 100, 250, 1000)]
    assert end_of(out) == Fraction(1003 - 41, 1000)


def test_an_excerpt_without_frames_leaves_nothing_and_says_where_they_are(
    tmp_path: Path, capsys
) -> None:
    source = write_video(tmp_path / "in.mp4")
    assert predict(source, "--output", tmp_path / "out.mp4", "--start", 9) == 2
    assert "begin at 0.000 s, and it was read until 0.760 s" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_video_that_starts_late_is_shown_at_once_and_reported_with_its_own_times(
    tmp_path: Path,
) -> None:
    source = write_video(tmp_path / "in.mkv", frames=3, times=[5000, 5040, 5080])
    out, table = tmp_path / "out.mp4", tmp_path / "out.csv"
    assert predict(source, "--output", out, "--csv", table) == 0
    assert times_of(out) == [Fraction(ms, 1000) for ms in (0, 40, 80)]
    assert [float(row["time_s"]) for row in rows(table)] == [5.0, 5.04, 5.08]


# Kinds of input


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm", ".ts", ".h264", ".gif"])
@pytest.mark.parametrize("frames", [1, 20])
def test_containers_with_and_without_times_keep_all_frames(
    tmp_path: Path, suffix: str, frames: int
) -> None:
    source = write_video(tmp_path / f"in{suffix}", frames=frames)
    out, table = tmp_path / "out.mp4", tmp_path / "out.csv"
    assert predict(source, "--output", out, "--csv", table) == 0
    assert times_of(out) == [Fraction(index, 25) for index in range(frames)]
    if (frames, suffix) != (1, ".ts"):  # FFmpeg takes half a period for its duration
        assert abs(end_of(out) - Fraction(frames, 25)) <= Fraction(1, 1000)
    for row in rows(table):
        corner = float(row["x1_px"]), float(row["y1_px"])
        assert np.allclose(corner, square(int(row["frame"])), atol=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"pixel_format": "yuv420p10le"},
        {"pixel_format": "yuv444p"},
        {"options": {"bf": "3", "b-adapt": "0"}},
        {"options": {"x264-params": "tff=1"}},
    ],
    ids=["10 bits", "4:4:4", "B-frames", "interlaced"],
)
def test_kinds_of_h264_keep_frames_times_and_boxes(tmp_path: Path, changes: dict, capsys) -> None:
    source = write_video(tmp_path / "in.mp4", **changes)
    out, table = tmp_path / "out.mp4", tmp_path / "out.csv"
    assert predict(source, "--output", out, "--csv", table) == 0
    assert times_of(out) == [Fraction(index, 25) for index in range(20)]
    assert len(rows(table)) == 20
    assert ("is interlaced" in capsys.readouterr().err) == ("x264-params" in str(changes))


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", rotation=90, aspect=Fraction(4, 3))
    assert predict(source, "--output", tmp_path / "out.mp4") == 0
    with av.open(tmp_path / "out.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (HEIGHT, WIDTH)
        assert stream.sample_aspect_ratio == Fraction(3, 4)
        assert next(container.decode(stream)).rotation == 0


def test_frames_before_a_truncation_are_kept(tmp_path: Path, capsys) -> None:
    source = write_video(tmp_path / "whole.mkv", frames=60)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    out, results = tmp_path / "out.mp4", tmp_path / "out.json"
    assert predict(cut, "--output", out, "--json", results) == 1
    said = capsys.readouterr().err
    assert "is damaged or truncated after frame" in said
    kept = len(times_of(out))
    assert 5 < kept < 60
    content = json.loads(results.read_text())
    assert len(content["images"]) == kept and content["info"]["complete"] is False


def test_an_image_of_another_size_ends_the_video_there(tmp_path: Path, capsys) -> None:
    for index in range(6):
        size = (WIDTH, HEIGHT) if index < 4 else (80, 60)
        Image.fromarray(pixels_of(index, size=size)).save(tmp_path / f"{index}.png")
    assert predict(tmp_path, "--output", tmp_path / "out.mp4") == 1
    assert "4.png is 80 x 60 px" in capsys.readouterr().err
    assert len(times_of(tmp_path / "out.mp4")) == 4


def test_an_empty_file_is_no_video(tmp_path: Path, capsys) -> None:
    (tmp_path / "in.mp4").touch()
    assert predict(tmp_path / "in.mp4", "--output", tmp_path / "out.mp4") == 2
    assert "cannot be read as a video" in capsys.readouterr().err


# Detections


def test_between_detections_boxes_are_shown_and_not_reported(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4")
    out, results, detector = tmp_path / "out.mp4", tmp_path / "out.json", SquareFinder()
    arguments = ["--output", out, "--json", results, "--csv", tmp_path / "out.csv", "--every", 3]
    assert predict(source, *arguments, detector=detector) == 0
    assert detector.seen == 7
    content = json.loads(results.read_text())
    assert [image["frame_index"] for image in content["images"]] == [0, 3, 6, 9, 12, 15, 18]
    assert len(content["annotations"]) == len(rows(tmp_path / "out.csv")) == 7
    assert len(times_of(out)) == 20
    plain, shown = frames_of(source), frames_of(out)
    x, y = square(0)
    corner = np.s_[y - 1 : y + 2, x - 1 : x + 2, 0]  # of the box of frame 0
    assert np.abs(shown[1][corner].astype(int) - plain[1][corner]).mean() > 30


def test_every_nth_frame_is_counted_from_the_first_of_an_excerpt(tmp_path: Path) -> None:
    source, results = write_video(tmp_path / "in.mp4"), tmp_path / "out.json"
    assert predict(source, "--json", results, "--start", 0.2, "--every", 4) == 0
    images = json.loads(results.read_text())["images"]
    assert [image["frame_index"] for image in images] == [5, 9, 13, 17]


def test_results_load_in_pycocotools(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    source = write_video(tmp_path / "in.mp4")
    results = tmp_path / "out.json"
    assert predict(source, "--json", results) == 0
    loaded = coco.COCO(str(results))
    again = loaded.loadRes(json.loads(results.read_text())["annotations"])
    assert sorted(again.getImgIds()) == list(range(1, 21))
    first = again.imgToAnns[1][0]
    assert first["category_id"] == 1 and first["score"] == pytest.approx(0.9)
    assert np.allclose(first["bbox"], [*square(0), 12, 12], atol=1)


def test_detections_below_the_threshold_are_left_out(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4")
    assert predict(source, "--csv", tmp_path / "out.csv", "--threshold", 0.95) == 0
    assert rows(tmp_path / "out.csv") == []


def test_a_model_without_a_threshold_asks_for_one(tmp_path: Path, capsys) -> None:
    source = write_video(tmp_path / "in.mp4")
    detector = SquareFinder(score_threshold=None)
    assert predict(source, "--csv", tmp_path / "out.csv", detector=detector) == 2
    assert "give --threshold" in capsys.readouterr().err


def test_smoothing_averages_the_boxes_of_a_lesion(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=5)
    assert predict(source, "--csv", tmp_path / "out.csv", "--smooth", 3) == 0
    left = [float(row["x1_px"]) for row in rows(tmp_path / "out.csv")]
    assert np.allclose(left, [4, 5, 6, 8, 10], atol=0.7)  # of 4, 6, 8, 10, 12


def test_tracked_lesions_keep_their_number(tmp_path: Path) -> None:
    pytest.importorskip("trackers")
    source = write_video(tmp_path / "in.mp4", frames=10)
    table, results = tmp_path / "out.csv", tmp_path / "out.json"
    out = tmp_path / "out.mp4"
    assert predict(source, "--csv", table, "--json", results, "--output", out, "--track") == 0
    assert [row["track"] for row in rows(table)] == [""] + ["1"] * 9
    annotations = json.loads(results.read_text())["annotations"]
    assert [one["track_id"] for one in annotations] == [None] + [1] * 9


def test_a_missing_package_is_named_before_the_work(tmp_path: Path, monkeypatch, capsys) -> None:
    source = write_video(tmp_path / "in.mp4")
    for package, option in (("trackers", "--track"), ("supervision", "--smooth=2")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        assert predict(source, "--csv", tmp_path / "out.csv", option) == 2
        assert f"the package {package} cannot be imported" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


# In the corner, and in the end


class Nothing(SquareFinder):
    """Finds nothing."""

    def __call__(self, frames) -> list[Detections]:
        return [found.above(2.0) for found in super().__call__(frames)]


@pytest.fixture
def corners(monkeypatch) -> list[str]:
    """Texts in the corner of each frame that has one, where nothing is found."""
    texts: list[str] = []
    monkeypatch.setattr(
        FrameText, "draw", lambda self, pixels, text, corner, **style: texts.append(text)
    )
    return texts


def test_the_corner_shows_the_rate_of_the_last_two_seconds(
    tmp_path: Path, monkeypatch, corners: list[str]
) -> None:
    # Asked for at the start, for every frame and in the end: 10 frames/s for 3 s, then 4.
    clock = itertools.accumulate([0.1] * 31 + [0.25] * 31)
    monkeypatch.setattr(video_run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    source = write_video(tmp_path / "in.mp4", frames=60)
    assert predict(source, "--output", tmp_path / "out.mp4", detector=Nothing()) == 0
    assert corners[:29] == ["10 fps"] * 29  # of frames 1 to 29
    assert corners[-20:] == ["4 fps"] * 20


def test_show_time_shows_the_time_of_each_frame(tmp_path: Path, corners: list[str]) -> None:
    source = write_video(tmp_path / "in.mp4", frames=5)
    arguments = ["--output", tmp_path / "out.mp4", "--show-time", "--start", 0.08]
    assert predict(source, *arguments, detector=Nothing()) == 0
    assert [" ".join(text.split()[-2:]) for text in corners] == ["0.08 s", "0.12 s", "0.16 s"]


def test_the_real_time_factor_is_seconds_of_video_per_second_of_work() -> None:
    outcome = Outcome(frames=50, detections=1, seconds=2.0, wall_s=4.0)
    assert outcome.summary() == (
        "50 frames, 2.00 s of video in 4.0 s (0.50 x real time, 12.5 frames/s), "
        "1 detection: nothing written"
    )


# Run


def test_odd_sizes_are_padded_and_it_is_said(tmp_path: Path, capsys) -> None:
    for index in range(3):
        Image.fromarray(pixels_of(index, size=(63, 47))).save(tmp_path / f"{index}.png")
    out = tmp_path / "out.mp4"
    assert predict(tmp_path, "--output", out) == 0
    assert "padded by a copy of their last column or row" in capsys.readouterr().err
    assert frames_of(out)[0].shape == (48, 64, 3)


def test_an_error_of_the_detector_ends_the_run_once_and_keeps_the_frames_before(
    tmp_path: Path, capsys
) -> None:
    def fail(index: int) -> None:
        if index == 7:
            raise ValueError("the detector broke")

    source = write_video(tmp_path / "in.mp4")
    out, detector = tmp_path / "out.mp4", SquareFinder(before=fail)
    assert predict(source, "--output", out, detector=detector) == 1
    assert capsys.readouterr().err.count("the detector broke") == 1
    assert len(times_of(out)) == 7


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_complete_files(tmp_path: Path, number: int, code: int) -> None:
    def interrupt(index: int) -> None:
        if index == 9:
            os.kill(os.getpid(), number)

    source = write_video(tmp_path / "in.mp4", frames=60)
    out, results, table = (tmp_path / f"out.{kind}" for kind in ("mp4", "json", "csv"))
    detector = SquareFinder(before=interrupt)
    arguments = ["--output", out, "--json", results, "--csv", table]
    assert predict(source, *arguments, detector=detector) == code
    kept = len(times_of(out))
    content = json.loads(results.read_text())
    assert 9 <= kept <= 11
    assert len(content["images"]) == len(rows(table)) == kept
    assert content["info"]["complete"] is False
    assert end_of(out) == Fraction(kept, 25)


def test_colors_survive(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", codec="ffv1", pixel_format="bgr0", frames=3)
    out = tmp_path / "out.mp4"
    assert predict(source, "--output", out, detector=Nothing()) == 0
    difference = frames_of(out)[0].astype(int) - pixels_of(0)  # no rate on the first frame
    assert np.abs(difference).mean() < 2
    with av.open(out) as container:
        context = container.streams.video[0].codec_context
        tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert tags == (1, 1, 1, 1)  # BT.709, limited range
        assert context.pix_fmt == "yuv420p"
