"""Frames of folders, patterns, images and videos; the videos are made here."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.runtime import tiny_videos
from v2i_runtime.sources import FrameSource, VideoFile, open_source

WIDTH, HEIGHT = 64, 48


def write_video(path: Path, *, frames: int = 40, rotation: int = 0, times=None, **options) -> Path:
    """Frame i has grey level 5 * i, a white and a noisy quarter; times count 1/100 s."""
    rng = np.random.default_rng(0)
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=100)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, 100)
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(frames):
            pixels = np.full((HEIGHT, WIDTH, 3), 5 * index, np.uint8)
            pixels[: HEIGHT // 2, : WIDTH // 2] = 255
            noise = rng.integers(0, 256, (HEIGHT // 2, WIDTH // 2, 3), dtype=np.uint8)
            pixels[: HEIGHT // 2, WIDTH // 2 :] = noise
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[index] if times else 4 * index
            frame.time_base = Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for level, name in enumerate(names):
        Image.new("RGB", (WIDTH, HEIGHT), (level,) * 3).save(folder / name)


def names_of(source: FrameSource) -> list[str]:
    return [frame.name for frame in source]


# Images


def test_a_folder_is_read_in_natural_order_with_even_times(tmp_path) -> None:
    write_images(tmp_path, "frame10.png", "frame2.png", "frame1.jpg", ".hidden.png")
    (tmp_path / "notes.txt").write_text("no frame")
    rate = Fraction(30000, 1001)
    source = open_source(tmp_path, image_rate=rate)
    assert isinstance(source, FrameSource)
    assert (source.size, source.frame_rate, source.num_frames) == ((64, 48), rate, 3)
    frames = list(source)
    assert [f.name for f in frames] == ["frame1.jpg", "frame2.png", "frame10.png"]
    assert [f.time_s for f in frames] == [0, 1 / rate, 2 / rate]
    assert [int(f.pixels[0, 0, 0]) for f in frames] == [2, 1, 0]
    assert names_of(source) == [f.name for f in frames], "it starts again"


def test_a_pattern_and_a_single_image_are_sources_too(tmp_path) -> None:
    write_images(tmp_path / "a[1]", "2.png", "10.png", "9.jpg")
    write_images(tmp_path / "b", "1.png")
    assert names_of(open_source(f"{tmp_path}/*/*.png")) == ["2.png", "10.png", "1.png"]
    assert names_of(open_source(f"{tmp_path}/**/9.*")) == ["9.jpg"]
    assert names_of(open_source(tmp_path / "a[1]")) == ["2.png", "9.jpg", "10.png"]
    assert names_of(open_source(tmp_path / "b" / "1.png")) == ["1.png"]


def test_an_image_of_another_size_is_named(tmp_path) -> None:
    write_images(tmp_path, "1.png", "2.png")
    Image.new("RGB", (32, 48)).save(tmp_path / "3.png")
    seen = []
    with pytest.raises(ValueError, match=r"3\.png is 32 x 48 px, but .*1\.png is 64 x 48"):
        seen.extend(frame.name for frame in open_source(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone", "gone: no such file or folder"),
        ("gone.mp4", r"gone\.mp4: no such file or folder"),
        ("empty", r"empty: no images in this folder \(\.jpg,"),
        ("*.jpg", r"\*\.jpg: no file matches this pattern"),
        ("text.*", r"text\.\*: matches .*text\.mp4, but a pattern is for images .*one by one"),
        ("text.mp4", r"text\.mp4: cannot be read as a video"),
        ("text.txt", r"text\.txt: holds no video"),
        ("sound.wav", r"sound\.wav: holds no video"),
        ("text.png", r"text\.png: cannot be read as an image"),
    ],
)
def test_a_source_that_leads_to_nothing_is_named(tmp_path, source, message) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("text.mp4", "text.txt", "text.png"):
        (tmp_path / name).write_text("no video\n" * 200)
    with av.open(tmp_path / "sound.wav", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / source)


# Video


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_frames_of_a_video_come_in_order_with_their_pixels(tmp_path, suffix) -> None:
    source = open_source(write_video(tmp_path / f"clip{suffix}"))
    assert isinstance(source, FrameSource) and source.size == (WIDTH, HEIGHT)
    frames = list(source)
    assert [f.name for f in frames] == [f"clip_{i:06d}" for i in range(40)]
    assert all(f.pixels.shape == (HEIGHT, WIDTH, 3) for f in frames)
    grey = [int(f.pixels[40, 50, 1]) for f in frames]
    assert np.abs(np.array(grey) - 5 * np.arange(40)).max() < 12
    assert len(list(source)) == 40, "it starts again"


def test_times_are_exact_also_where_they_are_uneven(tmp_path) -> None:
    times = [0, 4, 9, 10, 30, 31]
    path = write_video(tmp_path / "uneven.mkv", frames=6, times=times)
    assert [f.time_s for f in open_source(path)] == [Fraction(t, 100) for t in times]


def test_a_stream_without_times_counts_frames(tmp_path) -> None:
    source = open_source(write_video(tmp_path / "bare.h264", frames=5))
    assert source.frame_rate
    assert [f.time_s for f in source] == [i / source.frame_rate for i in range(5)]


@pytest.mark.parametrize(
    ("rotation", "white"), [(90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))], ids=str
)
def test_a_turned_video_is_upright(tmp_path, rotation, white) -> None:
    source = open_source(write_video(tmp_path / "turned.mp4", frames=3, rotation=rotation))
    assert source.size == ((HEIGHT, WIDTH) if rotation != 180 else (WIDTH, HEIGHT))
    for frame in source:
        assert frame.pixels.shape[:2] == source.size[::-1]
        corners = {(y, x): int(frame.pixels[y, x, 1]) for y in (0, -1) for x in (0, -1)}
        assert max(corners, key=lambda corner: corners[corner]) == white


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("cut.mp4", {"movflags": "faststart"}, 0.3),
        ("cut.mp4", {"movflags": "faststart"}, 0.7),
        ("cut.mp4", {"movflags": "frag_keyframe+empty_moov"}, 0.5),
        ("cut.mkv", {}, 0.3),
        ("cut.mkv", {}, 0.7),
        ("cut.avi", {}, 0.6),
    ],
)
def test_a_truncated_video_gives_its_intact_frames_and_then_an_error(
    tmp_path, name, options, share
) -> None:
    path = write_video(tmp_path / name, frames=51, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    frames = []
    with pytest.raises(
        ValueError, match=r"cut\.\w+: is damaged or truncated after frame"
    ) as caught:
        frames.extend(open_source(path))
    assert f"after frame {len(frames) - 1}, at" in str(caught.value)
    assert 5 < len(frames) < 45
    # Frame 25 t is shown at t s. Of those that came out of order the last ones may be missing.
    grey = [int(f.pixels[40, 50, 1]) - 5 * 25 * f.time_s for f in frames]
    assert max(map(abs, grey)) < 12


def test_a_video_without_its_index_is_an_error(tmp_path) -> None:
    path = write_video(tmp_path / "cut.mp4")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.mp4: cannot be read as a video .*truncated"):
        open_source(path)


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path) -> None:
    source = open_source(write_video(tmp_path / "long.mp4", frames=50))
    tracemalloc.start()
    for _ in source:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * HEIGHT * WIDTH * 3


def test_a_clock_that_begins_anew_is_told_after_the_frames_before_it(tmp_path: Path) -> None:
    part = tiny_videos.write_video(tmp_path / "part.mpg", frames=60, codec="mpeg2video")
    joined = tmp_path / "joined.mpg"
    joined.write_bytes(2 * part.read_bytes())
    frames = []
    with pytest.raises(ValueError, match=r"its clock goes back from 2\.\d+ s to 0\.\d+ s at frame"):
        frames.extend(VideoFile(joined))
    times = [frame.time_s for frame in VideoFile(part)]
    assert 50 < len(frames) <= 60  # a B-frame or two may be lost where the parts meet
    assert [frame.time_s for frame in frames][:50] == times[:50]
