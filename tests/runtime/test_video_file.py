"""MP4s: what is read back, sound, full disks and killed programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from tests.runtime.tiny_videos import (
    HEIGHT,
    WIDTH,
    SquareFinder,
    pixels_of,
    predict,
    times_of,
    write_video,
)
from v2i_runtime import video_file
from v2i_runtime.video_file import VideoWriter, Written, verify

pytest.importorskip("supervision", reason="draws the boxes")

MS = Fraction(1, 1000)


def write(path: Path, times_ms: list[int]) -> VideoWriter:
    writer = VideoWriter(path, (WIDTH, HEIGHT), time_base=MS, frame_rate=Fraction(25))
    for index, time_ms in enumerate(times_ms):
        writer.write(pixels_of(index), time_ms * MS)
    return writer


def sound_s(path: Path) -> tuple[float, float]:
    """Start and end of the sound that can be decoded."""
    with av.open(path) as container:
        frames = list(container.decode(audio=0))
        last = frames[-1]
        return frames[0].time, last.time + last.samples / last.rate


# Verification


def test_a_video_that_holds_what_was_written_passes(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write(path, [0, 40, 80]).finish(120 * MS)
    verify(path, Written(3, 120, 120), MS)


@pytest.mark.parametrize(
    "expected", [Written(4, 120, 120), Written(3, 121, 120), Written(3, 120, 160)]
)
def test_another_number_of_frames_time_or_end_is_an_error(
    tmp_path: Path, expected: Written
) -> None:
    path = tmp_path / "out.mp4"
    write(path, [0, 40, 80]).finish(120 * MS)
    with pytest.raises(ValueError, match="reading it back gives 3 frames"):
        verify(path, expected, MS)


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.7])
def test_a_truncated_video_does_not_pass(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "out.mp4"
    write(path, list(range(0, 800, 40))).finish(800 * MS)
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(ValueError, match=r"cannot be read back|reading it back gives"):
        verify(path, Written(20, sum(range(0, 800, 40)), 800), MS)


def test_a_run_whose_video_is_broken_does_not_end_well(tmp_path: Path, monkeypatch, capsys) -> None:
    def break_it(video: Path, target: Path, sound: object) -> list[str]:
        target.write_bytes(video.read_bytes()[:1000])
        return []

    monkeypatch.setattr(video_file, "remux", break_it)
    source = write_video(tmp_path / "in.mp4")
    assert predict(source, "--output", tmp_path / "out.mp4") == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'out.mp4'}: was written" in said and "check the disk" in said
    assert len(times_of(tmp_path / "out.mp4")) == 20  # from before


def test_the_index_stands_in_front(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write(path, [0, 40, 80]).finish(120 * MS)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_frames_that_are_not_later_are_moved_behind_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    writer = write(path, [0, 40, 40, 30, 80])
    writer.finish(120 * MS)
    assert writer.late == 2
    assert times_of(path) == [time * MS for time in (0, 40, 41, 42, 80)]


def test_a_pause_that_an_mp4_cannot_hold_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    writer = VideoWriter(path, (WIDTH, HEIGHT), time_base=Fraction(1, 10**9))
    with pytest.raises(ValueError, match=rf"^{path}: FFmpeg cannot write this video \(Invalid"):
        for index, time_s in enumerate((0, 3, 6, 9)):
            writer.write(pixels_of(index), Fraction(time_s))
        writer.finish()
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_without_an_end_the_last_frame_lasts_as_long_as_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write(path, [0, 40, 140]).finish()
    verify(path, Written(3, 180, 240), MS)


# Sound


@pytest.mark.parametrize(
    ("name", "codec"),
    [("in.mp4", "aac"), ("in.ts", "aac"), ("in.mkv", "libopus"), ("in.mp4", "mp3")],
)
def test_sound_is_copied(tmp_path: Path, name: str, codec: str) -> None:
    source = write_video(tmp_path / name, frames=50, audio=codec)
    assert predict(source, "--output", tmp_path / "out.mp4") == 0
    start_s, end_s = sound_s(tmp_path / "out.mp4")
    assert abs(start_s) < 0.05 and abs(end_s - 2) < 0.08
    assert len(times_of(tmp_path / "out.mp4")) == 50


def test_sound_of_an_excerpt_stays_with_its_frames(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=100, audio="aac")
    out = tmp_path / "out.mp4"
    assert predict(source, "--output", out, "--start", 1, "--end", 3) == 0
    start_s, end_s = sound_s(out)
    assert 0 <= start_s < 0.03 and abs(end_s - 2) < 0.03


def test_sound_that_does_not_fit_is_left_out_and_named(tmp_path: Path, capsys) -> None:
    source = write_video(tmp_path / "in.mkv", audio="pcm_s16le")
    assert predict(source, "--output", tmp_path / "out.mp4") == 0
    assert "sound left out: an MP4 with codec pcm_s16le" in capsys.readouterr().err
    with av.open(tmp_path / "out.mp4") as container:
        assert not container.streams.audio


# Full disks and killed programs

PROGRAM = """
import os, resource, signal, sys
from tests.runtime.tiny_videos import SquareFinder, predict

source, how, number, *arguments = sys.argv[1:]

def before(index):
    if (how, index) in (("full from the start", -1), ("full", 0)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.RLIM_INFINITY))
    if how == "kill" and index == int(number):
        os.kill(os.getpid(), signal.SIGKILL)

before(-1)
sys.exit(predict(source, *arguments, detector=SquareFinder(before=before)))
"""


def run_apart(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(os.name != "posix", reason="limits the size of a file")
def test_on_a_full_disk_what_was_written_is_kept(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=400)
    out = tmp_path / "out.mp4"
    done = run_apart(source, "full", 60_000, "--output", out)
    assert done.returncode == 1, done.stderr
    assert f"{out}: File too large" in done.stderr and "kept as far as" in done.stderr
    frames = len(times_of(out))
    assert 50 <= frames < 400 and f"without sound: {frames} of " in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4"}


@pytest.mark.skipif(os.name != "posix", reason="limits the size of a file")
@pytest.mark.parametrize(("how", "code"), [("full from the start", 2), ("full", 1)])
def test_on_a_disk_without_any_room_the_program_ends_in_words(
    tmp_path: Path, how: str, code: int
) -> None:
    source, out = write_video(tmp_path / "in.mp4", frames=60), tmp_path / "out.mp4"
    done = run_apart(source, how, 10, "--output", out)
    assert done.returncode == code, done.stderr
    assert f"{out}: File too large" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


class FullDisk:
    """A container that takes no packet."""

    asked = 0

    def mux(self, packet: av.Packet) -> None:
        self.asked += 1
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        pass


def test_a_container_that_failed_is_not_used_again(tmp_path: Path) -> None:
    path, full = tmp_path / "out.mp4", FullDisk()
    writer: Any = VideoWriter(path, (WIDTH, HEIGHT), time_base=MS)
    writer._container.close()
    writer._container = full
    with pytest.raises(OSError, match="No space left"):
        for index in range(200):
            writer.write(pixels_of(index), index * 40 * MS)
    with pytest.raises(OSError, match="No space left"):
        writer.finish()
    assert (full.asked, writer.kept, list(tmp_path.iterdir())) == (1, 0, [])


@pytest.mark.skipif(os.name != "posix", reason="limits the size of a file")
@pytest.mark.parametrize("room", [1000, 6000])
def test_a_table_without_room_does_not_take_others_with_it(tmp_path: Path, room: int) -> None:
    source = write_video(tmp_path / "in.mp4", frames=30)
    table, results = tmp_path / "out.csv", tmp_path / "out.json"
    done = run_apart(source, "full", room, "--json", results, "--csv", table)
    assert done.returncode == 1, done.stderr
    assert f"{results}: not written (File too large)" in done.stderr
    left = {"in.mp4", *(["out.csv"] if room == 6000 else [])}  # 1.1 kB, and 7 kB of JSON
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_program_leaves_a_video_that_can_be_played(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", frames=400)
    done = run_apart(source, "kill", 300, "--output", tmp_path / "out.mp4")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = tmp_path.glob(".out.mp4.*.tmp")
    assert len(times_of(left)) >= 150


def test_a_build_without_h264_is_an_error_before_the_work(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    def missing(name: str, mode: str) -> None:
        raise av.codec.codec.UnknownCodecError(name)

    source, detector = write_video(tmp_path / "in.mp4", frames=2), SquareFinder()
    monkeypatch.setattr(av, "Codec", missing)
    assert predict(source, "--output", tmp_path / "out.mp4", detector=detector) == 2
    assert "no encoder libx264" in capsys.readouterr().err and detector.seen == 0
