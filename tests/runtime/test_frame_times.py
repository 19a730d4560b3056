"""Times and completeness of videos whose container says little of them, or cuts what it holds."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.runtime.tiny_videos import predict, square, times_of, write_video
from v2i_runtime.frame_times import FrameTimes
from v2i_runtime.sources import VideoFile, open_source
from v2i_runtime.video_facts import facts_of

B_FRAMES = {"bf": "3", "b-adapt": "0"}


def in_25ths(path: Path) -> list[Fraction]:
    return [frame.time_s * 25 for frame in open_source(path)]


# Containers without presentation times


def avi(path: Path, codec: str = "libx264", **options: str) -> Path:
    return write_video(path, codec=codec, pixel_format="yuv420p", options=options)


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", B_FRAMES), ("libx264", {"bf": "0"}), ("mpeg4", {"bf": "2"})]
)
def test_frames_of_an_avi_are_shown_in_the_order_and_times_of_its_packets(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    assert in_25ths(avi(tmp_path / "in.avi", codec, **options)) == list(range(20))


def test_a_pause_in_an_avi_stays_where_it_is(tmp_path: Path) -> None:
    times = [0, 1, 2, 5, 6, 9]
    path = write_video(tmp_path / "in.avi", frames=6, times=times, time_base=Fraction(1, 25))
    assert in_25ths(path) == times


def test_tables_and_excerpts_of_an_avi_with_b_frames_have_the_right_times(tmp_path: Path) -> None:
    pytest.importorskip("supervision", reason="draws the boxes")
    source = avi(tmp_path / "in.avi", **B_FRAMES)
    out, table, results = (tmp_path / f"out.{kind}" for kind in ("mp4", "csv", "json"))
    arguments = ["--output", out, "--csv", table, "--json", results, "--start", 0.2, "--end", 0.6]
    assert predict(source, *arguments) == 0
    numbers = list(range(5, 15))
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["frame"]), float(row["time_s"])) for row in rows] == [
        (number, number / 25) for number in numbers
    ]
    corners = [(float(row["x1_px"]), float(row["y1_px"])) for row in rows]
    assert np.allclose(corners, [square(number) for number in numbers], atol=1)
    images = json.loads(results.read_text())["images"]
    assert [image["time_s"] for image in images] == [number / 25 for number in numbers]
    assert times_of(out) == [Fraction(index, 25) for index in range(10)]


def best_of(*given: tuple[int, int | None]) -> list[int | None]:
    """Times of frames with these (presentation, decoding) times."""
    times, found = FrameTimes("mov,mp4"), []
    for pts, dts in given:
        frame = av.VideoFrame(2, 2, "gray")
        frame.pts, frame.dts = pts, dts
        found.append(times.time_of(frame))
    return found


def test_presentation_times_that_do_not_increase_give_way_to_decoding_times() -> None:
    given = (0, 0), (3, 1), (2, 2), (1, 3), (6, 4), (5, None)
    assert best_of(*given) == [0, 3, 2, 3, 4, 5]


def test_presentation_times_that_increase_are_taken_whatever_the_decoding_times() -> None:
    assert best_of((10, 10), (20, 10), (35, 10), (40, None)) == [10, 20, 35, 40]


# Units of time


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_a_video_keeps_the_unit_of_its_own_times(tmp_path: Path, suffix: str) -> None:
    times = [0, 3600, 7200, 10800, 550_800, 554_400, 558_011] if suffix == ".mp4" else None
    path = write_video(
        tmp_path / f"in{suffix}", frames=7, times=times, time_base=Fraction(1, 90000)
    )
    source = VideoFile(path)
    with av.open(path) as container:
        unit_s = container.streams.video[0].time_base
    assert source.frame_rate and facts_of(source).time_base == unit_s


def test_a_pause_of_a_video_with_an_odd_mean_rate_can_be_written(tmp_path: Path) -> None:
    pytest.importorskip("supervision", reason="draws the boxes")
    steps = np.random.default_rng(0).integers(2900, 3100, 301)
    steps[100] = 120 * 90_000
    times = [int(time) for time in np.cumsum(steps) - steps[0]]
    source = write_video(
        tmp_path / "in.mp4", frames=301, times=times, time_base=Fraction(1, 90_000)
    )
    assert predict(source, "--output", tmp_path / "out.mp4") == 0
    assert times_of(tmp_path / "out.mp4") == [Fraction(time, 90_000) for time in times]


def test_a_stream_without_times_is_written_in_units_of_its_rate(tmp_path: Path) -> None:
    source = VideoFile(write_video(tmp_path / "in.h264", frames=3))
    assert facts_of(source).time_base == Fraction(1, 25)


# Truncation of MP4


@pytest.mark.parametrize("missing", [1, 5])
def test_an_mp4_that_lacks_its_last_frames_is_not_complete(tmp_path: Path, missing: int) -> None:
    pytest.importorskip("supervision", reason="draws the boxes")
    path = tmp_path / "out.mp4"  # index in front, sound and frames by turns
    source = write_video(tmp_path / "in.mp4", frames=100, options={"bf": "2"}, audio="aac")
    assert predict(source, "--output", path) == 0
    assert len(list(open_source(path))) == 100
    with av.open(path) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.pos is not None]
    path.write_bytes(path.read_bytes()[: positions[-missing]])
    message = rf"damaged or truncated after frame .*\(it has {100 - missing} of its 100 frames\)"
    with pytest.raises(ValueError, match=message):
        list(open_source(path))


@pytest.mark.parametrize(
    ("name", "options"),
    [("cut.mp4", {}), ("cut.mov", {}), ("whole.mp4", {"movflags": "frag_keyframe+empty_moov"})],
)
def test_an_mp4_that_shows_a_part_of_its_frames_is_complete(
    tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    source = write_video(tmp_path / "in.mp4", frames=60, options={"g": "10"})
    with av.open(source) as container, av.open(tmp_path / name, "w", options=options) as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.dts is not None:
                packet.pts -= 14 * 512  # begins between two key frames: an edit list
                packet.dts -= 14 * 512
                packet.stream = stream
                output.mux(packet)
    assert len(list(open_source(tmp_path / name))) == (46 if name.startswith("cut") else 60)


def test_an_avi_with_sound_is_complete(tmp_path: Path) -> None:
    path = write_video(tmp_path / "in.avi", frames=50, audio="mp3")
    assert len(list(open_source(path))) == 50
