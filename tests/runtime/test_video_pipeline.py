"""Threads of the pipeline: order, errors, interruption, memory; cameras."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.tiny_videos import HEIGHT, WIDTH, SquareFinder, pixels_of, predict, times_of
from v2i_runtime import camera
from v2i_runtime.pipeline import FRAMES_WAITING, run_pipeline
from v2i_runtime.sources import SourceFrame
from v2i_runtime.video_run import Settings, predict_video


def numbers(count: int, fail_at: int | None = None) -> Generator[int, None, None]:
    for index in range(count):
        if index == fail_at:
            raise ValueError("no more data")
        yield index


def run(frames, process=lambda x: x, write=None, stop=None, **options) -> list[int]:
    written: list[int] = []
    run_pipeline(
        frames, process, write or written.append, stop=stop or threading.Event(), **options
    )
    return written


def threads() -> int:
    return threading.active_count()


def test_all_frames_come_in_order() -> None:
    assert run(numbers(100), lambda x: 2 * x) == [2 * index for index in range(100)]


def test_frames_before_an_error_of_the_source_are_written() -> None:
    written: list[int] = []
    with pytest.raises(ValueError, match="no more data"):
        run(numbers(100, fail_at=30), write=written.append)
    assert written == list(range(30))


@pytest.mark.parametrize("stage", ["process", "write"])
def test_an_error_stops_everything_and_is_raised_once(stage: str) -> None:
    def fail(item: int) -> int:
        if item == 5:
            raise OSError("broken")
        return item

    before, seen = threads(), []

    def endless() -> Iterator[int]:
        for index in numbers(10**9):
            seen.append(index)
            yield index

    with pytest.raises(OSError, match="broken"):
        run(endless(), **{stage: fail})
    assert threads() == before
    assert len(seen) < 5 + 3 * FRAMES_WAITING


@pytest.mark.parametrize("stage", ["process", "write"])
def test_an_error_ends_a_source_that_does_not_wait(stage: str) -> None:
    def fail(item: int) -> int:
        raise OSError("disk full")

    def camera() -> Iterator[int]:
        for index in numbers(10**9):
            assert index < 1000, "asked for frames that nobody takes"
            time.sleep(0.001)
            yield index

    before = threads()
    with pytest.raises(OSError, match="disk full"):
        run(camera(), on_drop=lambda: None, **{stage: fail})
    assert threads() == before


def test_an_error_while_writing_is_told_before_one_of_the_source_behind_it() -> None:
    def fail(item: int) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(numbers(3, fail_at=2), write=fail)


def test_a_stop_ends_an_endless_source() -> None:
    stop, before = threading.Event(), threads()
    written: list[int] = []

    def write(item: int) -> None:
        written.append(item)
        if item == 20:
            stop.set()

    run(numbers(10**9), write=write, stop=stop)
    assert threads() == before
    assert written == list(range(len(written))) and len(written) < 20 + 3 * FRAMES_WAITING


def test_a_slow_writer_makes_the_source_wait() -> None:
    ahead = []
    done: list[int] = []

    def frames() -> Iterator[int]:
        for index in range(40):
            ahead.append(index - len(done))
            yield index

    def write(item: int) -> None:
        time.sleep(0.002)
        done.append(item)

    run(frames(), write=write)
    assert max(ahead) <= 2 * FRAMES_WAITING + 4


def test_a_slow_detector_drops_frames_of_a_live_source_and_counts_them() -> None:
    def frames() -> Iterator[int]:
        for index in range(60):
            time.sleep(0.001)
            yield index

    def process(item: int) -> int:
        time.sleep(0.01)
        return item

    dropped: list[None] = []
    written = run(frames(), process, on_drop=lambda: dropped.append(None))
    assert dropped and len(written) + len(dropped) == 60


class Endless:
    """Tiny frames without a file."""

    size, frame_rate = (WIDTH, HEIGHT), Fraction(25)

    def __init__(self, number: int) -> None:
        self.num_frames: int | None = number

    def __iter__(self) -> Iterator[SourceFrame]:
        frames = [pixels_of(index) for index in range(20)]
        for index in range(self.num_frames or 0):
            yield SourceFrame(frames[index % 20], index / self.frame_rate, f"frame{index:06d}")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    pytest.importorskip("supervision")
    psutil = pytest.importorskip("psutil")
    resident, process = [], psutil.Process()

    def measure(index: int) -> None:
        if index % 100 == 0:
            resident.append(process.memory_info().rss / 2**20)

    outputs = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv")}
    outputs["video"] = tmp_path / "out.mp4"
    detector = SquareFinder(before=measure)
    outcome = predict_video(
        Endless(10_000), detector, Settings(0.5, smooth=3), outputs, name="endless", model="none"
    )
    assert outcome.error is None and outcome.frames == 10_000
    growth_mib = max(resident[20:]) - resident[10]
    print(
        f"\nmemory after 1000 frames {resident[10]:.0f} MiB, growth until 10000: {growth_mib:.1f}"
    )
    assert growth_mib < 8


# Cameras


class FakeCapture:
    """A camera that delivers 12 frames."""

    def __init__(self, index: int) -> None:
        self.left = 12 if index == 0 else 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (True, pixels_of(self.left)[..., ::-1]) if self.left >= 0 else (False, None)

    def get(self, key: int) -> float:
        return 30.0

    def release(self) -> None:
        self.left = 0


def test_a_camera_is_recorded_with_the_times_of_arrival(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    pytest.importorskip("supervision")
    monkeypatch.setattr(camera.cv2, "VideoCapture", FakeCapture)
    monkeypatch.chdir(tmp_path)
    assert predict("0", "--output", "out.mp4") == 1
    assert "camera 0: no more frames after frame 10" in capsys.readouterr().err
    times = times_of(tmp_path / "out.mp4")
    assert times[0] == 0 and times == sorted(times)


def test_frames_that_a_camera_lost_are_counted_also_when_it_stops(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(camera.cv2, "VideoCapture", FakeCapture)
    monkeypatch.chdir(tmp_path)
    slow = SquareFinder(before=lambda index: time.sleep(0.05))
    assert predict("0", "--csv", "out.csv", detector=slow) == 1
    said = capsys.readouterr().err
    assert "camera 0: no more frames after frame 10" in said
    assert f"{11 - slow.seen} frames of the camera came too fast: dropped" in said
    assert 0 < slow.seen < 11


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_camera_that_does_not_know_its_rate_has_none(monkeypatch, rate: float) -> None:
    monkeypatch.setattr(camera.cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "get", lambda *_: rate)
    assert camera.Camera(0).frame_rate is None


@pytest.mark.parametrize("setting", ["every", "smooth"])
def test_numbers_of_frames_below_one_are_refused_in_python_too(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is 0, but must be at least 1"):
        Settings(0.5, **{setting: 0})


def test_an_excerpt_that_does_not_end_after_its_start_is_refused_in_python_too() -> None:
    with pytest.raises(ValueError, match="end_s is 1, but must be after start_s, 1"):
        Settings(0.5, start_s=Fraction(1), end_s=Fraction(1))


def test_a_camera_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(camera.cv2, "VideoCapture", FakeCapture)
    monkeypatch.chdir(tmp_path)
    assert predict("3", "--output", "out.mp4") == 2
    assert "camera 3: no frame can be read" in capsys.readouterr().err
