"""Small videos of a bright square that moves, a detector that finds it, a run of the program."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from v2i_runtime.detections import Detections
from v2i_runtime.predict_video import command_line, run

WIDTH, HEIGHT, SIDE = 64, 48, 12
CODECS = {".avi": "mjpeg", ".webm": "libvpx-vp9", ".gif": "gif"}
PIXEL_FORMATS = {".avi": "yuvj420p", ".gif": "rgb8"}


def square(index: int) -> tuple[int, int]:
    """Upper left corner of the square in a frame, px."""
    return 4 + 2 * (index % 20), 8 + index % 16


def pixels_of(index: int, *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """A frame: red tissue and the square."""
    pixels = np.full((size[1], size[0], 3), (120, 40, 40), np.uint8)
    x, y = square(index)
    pixels[y : y + SIDE, x : x + SIDE] = 250
    return pixels


@dataclass
class SquareFinder:
    """Finds the square: a FrameDetector that counts frames and can fail at one of them."""

    score_threshold: float | None = 0.5
    class_names: list[str] = field(default_factory=lambda: ["polyp"])
    seen: int = 0
    before: Callable[[int], object] = lambda index: None

    def __call__(self, frames: Sequence[np.ndarray]) -> list[Detections]:
        found = []
        for frame in frames:
            self.before(self.seen)
            self.seen += 1
            y, x = np.nonzero(frame.min(-1) > 180)
            box = [[x.min(), y.min(), x.max() + 1, y.max() + 1]] if len(x) else np.zeros((0, 4))
            number = len(box)
            found.append(
                Detections(
                    np.full(number, 0.9, np.float32),
                    np.zeros(number, np.int64),
                    np.asarray(box, np.float32),
                )
            )
        return found


def write_video(
    path: Path,
    *,
    frames: int = 20,
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 1000),
    size: tuple[int, int] = (WIDTH, HEIGHT),
    codec: str = "",
    pixel_format: str = "",
    rotation: int = 0,
    aspect: Fraction | None = None,
    audio: str = "",
    options: dict[str, str] | None = None,
) -> Path:
    """A video of 25 frames/s, or of frames at times in units of `time_base`."""
    suffix = path.suffix
    with av.open(path, "w") as container:
        stream = container.add_stream(
            codec or CODECS.get(suffix, "libx264"), rate=25, options=options or {}
        )
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format or PIXEL_FORMATS.get(suffix, "yuv420p")
        # Without times, in the base of the rate: AVI and GIF know no other.
        base = time_base if times else Fraction(1, 25)
        stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream(audio, rate=48000) if audio else None
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(pixels_of(index, size=size), format="rgb24")
            frame.pts, frame.time_base = times[index] if times else index, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _write_tone(container, sound, seconds=frames / 25)
    return path


def _write_tone(container, stream, *, seconds: float) -> None:
    rate, length = 48000, stream.codec_context.frame_size or 1024
    for start in range(0, round(seconds * rate), length):
        tone = np.sin(np.arange(start, start + length) / rate * 2 * np.pi * 440)
        samples = (tone * 8000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.pts, frame.rate, frame.time_base = start, rate, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def predict(source: Path | str, *arguments: object, detector: SquareFinder | None = None) -> int:
    """Exit code of the program with the square finder as its model."""
    options = command_line().parse_args(["model.onnx", str(source), *map(str, arguments)])
    return run(options, lambda _: detector or SquareFinder())


def rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def times_of(path: Path) -> list[Fraction]:
    """Exact times of the frames of a video, which are decoded, s."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        return [frame.pts * stream.time_base for frame in container.decode(stream)]


def end_of(path: Path) -> Fraction:
    """End of the last frame of a video, s."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        return stream.duration * stream.time_base
