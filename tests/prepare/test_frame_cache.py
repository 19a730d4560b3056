"""Videos and folders of frames -> cached frames: which, how large, when again, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from tests.free_lunch.tiny_surgery import brightest, write_frames
from tests.runtime.tiny_videos import SIDE, square, write_video
from v2idetr.child_processes import Interrupted
from v2idetr.data.audit import Findings
from v2idetr.prepare import frame_cache
from v2idetr.prepare.frame_cache import CachedVideo, CacheSettings, cached_frames
from v2idetr.prepare.video_sources import VideoSource, check_numbering, find_videos, numbered_videos

FIVE = CacheSettings(rate=Fraction(5))


def cache(source: Path, output: Path, settings: CacheSettings = FIVE, **options) -> CachedVideo:
    (video,) = cached_frames([VideoSource(source.stem, source)], output, settings, **options)
    return video


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources that are decoded."""
    names: list[str] = []
    decode = frame_cache._decode

    def count(source: VideoSource, *rest: object) -> None:
        names.append(source.name)
        decode(source, *rest)

    monkeypatch.setattr(frame_cache, "_decode", count)
    return names


def centre(index: int) -> tuple[float, float]:
    x, y = square(index)
    return x + (SIDE - 1) / 2, y + (SIDE - 1) / 2


def test_frames_are_those_shown_at_each_moment(tmp_path: Path) -> None:
    video = cache(write_video(tmp_path / "a.mp4", frames=21), tmp_path / "out")
    assert video.source_frames == [0, 5, 10, 15, 20]
    assert video.times_s == [0, 0.2, 0.4, 0.6, 0.8]
    assert video.files[:2] == ["a/000001.jpg", "a/000002.jpg"]
    assert (video.num_source_frames, video.duration_s) == (21, 0.84)
    for file, index in zip(video.files, video.source_frames, strict=True):
        assert brightest(tmp_path / "out" / file) == pytest.approx(centre(index), abs=0.7)


def test_a_variable_frame_rate_gives_the_frames_of_those_times(tmp_path: Path) -> None:
    times = [1000, 1040, 1080, 1120, 1160, 1600, 1640, 1680, 1720, 1760]  # ms
    source = write_video(tmp_path / "a.mp4", frames=10, times=times)
    video = cache(source, tmp_path / "out")
    # Stands still from 1.16 to 1.6 s.
    assert video.source_frames == [0, 4, 4, 5, 9]


def test_frames_are_made_smaller_but_never_larger(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=3)
    for short_side, size in ((24, (32, 24)), (480, (64, 48))):
        out = tmp_path / str(short_side)
        video = cache(source, out, CacheSettings(Fraction(5), short_side))
        assert Image.open(out / video.files[0]).size == size


def test_folders_of_frames_need_their_frame_rate(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "a", 12)
    with pytest.raises(ValueError, match=r"a: is a folder of frames.*--frame-rate"):
        cache(source, tmp_path / "out")
    video = cache(source, tmp_path / "out", CacheSettings(frame_rate=Fraction(5)))
    assert video.source_frames == [0, 5, 10]
    assert video.duration_s == pytest.approx(2.4)


def test_a_rate_above_that_of_the_source_is_refused(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "a", 3)
    with pytest.raises(ValueError, match=r"a: has 1 frames a second.*fewer than --rate 5"):
        cache(source, tmp_path / "out", CacheSettings(Fraction(5), frame_rate=Fraction(1)))


@pytest.mark.parametrize(
    ("name", "value"), [("rate", Fraction(0)), ("short_side", 0), ("frame_rate", Fraction(0))]
)
def test_settings_are_above_zero(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} 0: must be above 0"):
        CacheSettings(**{name: value})


def test_a_second_run_decodes_nothing(tmp_path: Path, decoded: list[str]) -> None:
    source = write_video(tmp_path / "a.mp4")
    first, second = cache(source, tmp_path / "out"), cache(source, tmp_path / "out")
    assert first == second
    assert decoded == ["a"]


@pytest.mark.parametrize("change", ["rate", "size", "source", "lost frame"])
def test_a_changed_source_or_setting_is_decoded_again(
    tmp_path: Path, decoded: list[str], change: str
) -> None:
    source, out, settings = write_video(tmp_path / "a.mp4"), tmp_path / "out", FIVE
    before = cache(source, out)
    if change == "rate":
        settings = CacheSettings(Fraction(1))
    elif change == "size":
        settings = CacheSettings(Fraction(5), 24)
    elif change == "source":
        write_video(source, frames=30)
    else:
        (out / before.files[-1]).unlink()
    after = cache(source, out, settings)
    assert decoded == ["a", "a"]
    assert all((out / file).is_file() for file in after.files)
    assert len(list((out / "a").glob("*.jpg"))) == len(after.files)


def test_the_record_says_what_the_frames_were_made_of(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=6)
    cache(source, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "a" / "cache.json").read_text())
    stat = source.stat()
    assert (record["source"], record["bytes"]) == ("a.mp4", stat.st_size)
    assert record["mtime_ns"] == stat.st_mtime_ns
    assert (record["rate"], record["short_side"], record["num_frames"]) == ("5", 256, 2)
    assert (record["source_frames"], record["times_s"]) == ([0, 5], [0.0, 0.2])


def test_folders_of_other_programs_are_not_touched(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4")
    write_frames(tmp_path / "out" / "a", 1)
    with pytest.raises(ValueError, match=r"out/a: was not made by this program"):
        cache(source, tmp_path / "out")
    assert (tmp_path / "out" / "a" / "000001.jpg").is_file()


@pytest.fixture
def truncated(tmp_path: Path) -> Path:
    path = write_video(tmp_path / "truncated.mkv", frames=100)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def test_a_truncated_video_is_an_error_and_leaves_nothing(tmp_path: Path, truncated: Path) -> None:
    with pytest.raises(ValueError, match=r"truncated\.mkv: is damaged or truncated after frame"):
        cache(truncated, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_unreadable_videos_can_be_left_out_but_not_silently(
    tmp_path: Path, truncated: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    good = write_video(tmp_path / "good.mp4")
    sources = [VideoSource(path.stem, path) for path in (broken, truncated, good)]
    errors: list[ValueError] = []
    videos = list(cached_frames(sources, tmp_path / "out", FIVE, on_unreadable=errors.append))
    assert [video.name for video in videos] == ["good"]
    assert [str(error).split(":")[0].rpartition("/")[2] for error in errors] == [
        "broken.mp4",
        "truncated.mkv",
    ]


def test_unreadable_videos_are_found_before_any_is_decoded(
    tmp_path: Path, decoded: list[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    sources = [
        VideoSource("good", write_video(tmp_path / "good.mp4")),
        VideoSource("broken", tmp_path / "broken.mp4"),
    ]
    with pytest.raises(ValueError, match=r"broken\.mp4: cannot be read as a video"):
        list(cached_frames(sources, tmp_path / "out", FIVE))
    assert not decoded


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_finished_videos(tmp_path: Path, number: int, code: int) -> None:
    sources = [
        VideoSource(name, write_video(tmp_path / f"{name}.mp4")) for name in ("one", "two", "three")
    ]
    videos = cached_frames(sources, tmp_path / "out", FIVE)
    next(videos)
    os.kill(os.getpid(), number)
    with pytest.raises(Interrupted) as stop:
        next(videos)
    assert stop.value.exit_code == code
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one"]
    names = [video.name for video in cached_frames(sources, tmp_path / "out", FIVE)]
    assert names == ["one", "two", "three"]


def test_a_signal_within_a_video_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_video(tmp_path / "a.mp4", frames=50)
    write = frame_cache._write_jpeg

    def stop_at_the_third(path: Path, *rest: object) -> None:
        write(path, *rest)
        if path.name == "000003.jpg":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(frame_cache, "_write_jpeg", stop_at_the_third)
    with pytest.raises(Interrupted):
        cache(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_killed_run_is_taken_up_again(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4")
    write_frames(tmp_path / "out" / ".a.incomplete", 9)
    video = cache(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert len(list((tmp_path / "out" / "a").glob("*.jpg"))) == len(video.files)


def test_videos_are_found_at_any_depth_and_the_rest_is_noted(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "case2").mkdir(parents=True)
    write_video(root / "case10.mp4", frames=2)
    write_video(root / "case2" / "b.mp4", frames=2).rename(root / "case2" / "b.MP4")
    write_frames(root / "stills" / "case3", 2)
    write_frames(root / "out" / "frames" / "case3", 2)
    (root / "labels.csv").write_text("")
    notes = Findings()
    videos = find_videos(root, notes, leave_out=root / "out")
    assert [video.name for video in videos] == ["case2__b", "case10", "stills__case3"]
    assert notes.lines() == ["file is neither video nor image: 1 (labels.csv)"]
    (single,) = find_videos(root / "case10.mp4", notes, leave_out=root / "out")
    assert single.name == "case10"


def test_folders_that_hold_no_videos_are_refused(tmp_path: Path) -> None:
    notes, out = Findings(), tmp_path / "out"
    with pytest.raises(ValueError, match=r"missing: no such folder \(--source\)"):
        find_videos(tmp_path / "missing", notes, leave_out=out)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes: holds no videos"):
        find_videos(tmp_path / "notes", notes, leave_out=out)


def test_a_video_without_frames_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data" / "case1").mkdir(parents=True)
    sources = find_videos(tmp_path / "data", Findings(), leave_out=tmp_path / "out")
    settings = CacheSettings(frame_rate=Fraction(1))
    with pytest.raises(ValueError, match=r"case1: no images in this folder"):
        list(cached_frames(sources, tmp_path / "out", settings))


def test_two_videos_of_one_name_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=2)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "a.mkv")
    with pytest.raises(ValueError, match=r"a\.mkv and .*a\.mp4 are both a video 'a'"):
        find_videos(tmp_path, Findings(), leave_out=tmp_path / "out")
    (tmp_path / "1.mp4").write_bytes(b"")
    (tmp_path / "01.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"01\.mp4 and .*/1\.mp4 are both video 1"):
        numbered_videos(tmp_path)


def test_frames_that_are_missing_in_between_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "video01", 6, first=0, step=25)
    check_numbering(VideoSource("video01", folder))
    (folder / "000075.jpg").unlink()
    with pytest.raises(ValueError, match=r"missing between 000050\.jpg and 000100\.jpg"):
        check_numbering(VideoSource("video01", folder))


def by_number(source: Path, output: Path, frames: list[int]) -> CachedVideo:
    settings = CacheSettings(rate=None, short_side=None)
    chosen = {source.stem: frames}
    return cache(source, output, settings, chosen=chosen)


def test_frames_by_number_are_those_of_the_video_at_its_own_size(tmp_path: Path) -> None:
    video = by_number(write_video(tmp_path / "a.mp4", frames=21), tmp_path / "out", [0, 7, 19])
    assert video.files == ["a/000000.jpg", "a/000007.jpg", "a/000019.jpg"]
    for file, index in zip(video.files, [0, 7, 19], strict=True):
        assert brightest(tmp_path / "out" / file) == pytest.approx(centre(index), abs=0.7)
    with Image.open(tmp_path / "out" / "a" / "000007.jpg") as image:
        assert image.size == (64, 48)


def test_fewer_frames_by_number_are_taken_from_the_cache_and_others_decoded(
    tmp_path: Path, decoded: list[str]
) -> None:
    source = write_video(tmp_path / "a.mp4", frames=9)
    by_number(source, tmp_path / "out", [1, 3, 5])
    assert by_number(source, tmp_path / "out", [3]).files == ["a/000003.jpg"]
    assert decoded == ["a"]
    assert by_number(source, tmp_path / "out", [3, 4]).files == ["a/000003.jpg", "a/000004.jpg"]
    assert decoded == ["a", "a"]


def test_a_number_beyond_the_video_is_refused(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=9)
    with pytest.raises(ValueError, match=r"a\.mp4: has 9 frames, but frame 9 \(from 0\)"):
        by_number(source, tmp_path / "out", [2, 9])
    assert not (tmp_path / "out" / "a").exists()
