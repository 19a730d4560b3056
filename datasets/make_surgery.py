#!/usr/bin/env python3
"""Make procedural video of gallbladder operations, with their phases, in the layout of Cholec80.

    python datasets/make_surgery.py --output data/surgery --seed 0

It writes `phase_annotations/video01-phase.txt`, a line per frame at 25 Hz, and either one frame a
second, `frames/video01/video01_000001.jpg`, or with `--mp4` all frames, `videos/video01.mp4`. The
same arguments give the same bytes (with the same versions of numpy, OpenCV and FFmpeg). A run that
was interrupted goes on behind its finished operations; a run whose result exists returns at once.
What the operations are like: `synthetic/surgery.py`.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
from synthetic.jobs import write_text
from synthetic.output import RECORD, available_cores, description_of, is_made
from synthetic.surgery import LABEL_RATE, Operation, phase_lines, plan_operation
from synthetic.surgery_view import Theatre
from tqdm import tqdm

from v2idetr.output_folder import check_writable, explain_os_error

VERSION = 1  # increase whenever the same arguments would give other bytes
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Options:
    """Arguments that determine the result; see `make_surgery.py --help`."""

    seed: int
    size: tuple[int, int]
    operations: int
    seconds: tuple[int, int]
    mp4: bool


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="output folder")
    add("--seed", type=int, default=0, help="other seeds give other operations")
    add("--size", default="160x120", metavar="WxH", help="image size in pixels")
    add("--operations", type=int, default=30, help="number of videos")
    add("--seconds", default="60-120", metavar="MIN-MAX", help="duration of an operation")
    add("--mp4", action="store_true", help="videos of 25 frames/s (slow) instead of frames at 1/s")
    add("--workers", type=int, default=available_cores(), help="processes")
    add("--overwrite", action="store_true", help="replace an existing result")
    return parser.parse_args(arguments)


def options_from(arguments: argparse.Namespace) -> Options:
    """Options; ValueError for invalid values."""
    width, height = _two_numbers(arguments.size.lower(), "x", "--size", "WxH, such as 160x120")
    if min(width, height) < 32 or width % 2 or height % 2:
        raise ValueError(f"--size {arguments.size}: even numbers, at least 32 pixels a side")
    shortest, longest = _two_numbers(arguments.seconds, "-", "--seconds", "MIN-MAX, such as 60-120")
    if not 7 <= shortest <= longest:
        raise ValueError(
            f"--seconds {arguments.seconds}: at least 7, one for each phase, and MIN up to MAX"
        )
    if not 1 <= arguments.operations <= 99:
        raise ValueError(f"--operations {arguments.operations}: expected 1 to 99")
    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed}: must not be negative")
    size, seconds = (width, height), (shortest, longest)
    return Options(arguments.seed, size, arguments.operations, seconds, arguments.mp4)


def _two_numbers(text: str, between: str, flag: str, expected: str) -> tuple[int, int]:
    try:
        first, second = (int(part) for part in text.split(between))
    except ValueError:
        raise ValueError(f"{flag} {text}: expected {expected}") from None
    return first, second


def write_operation(task: tuple[Path, Options, int]) -> int:
    """Render one operation below a folder; return its number of frames.

    Its labels are written last and mark it as finished.
    """
    root, options, number = task
    cv2.setNumThreads(1)
    operation = plan_operation(options.seed, number, options.seconds)
    labels = root / "phase_annotations" / f"video{number:02d}-phase.txt"
    frames = operation.duration_s * (LABEL_RATE if options.mp4 else 1)
    if labels.is_file():
        return frames
    theatre = Theatre(operation, options.size)
    if options.mp4:
        _write_video(root / "videos" / f"video{number:02d}.mp4", theatre)
    else:
        _write_frames(root / "frames" / f"video{number:02d}", operation, theatre)
    incomplete = labels.with_suffix(".incomplete")
    write_text(incomplete, phase_lines(operation))
    incomplete.rename(labels)
    return frames


def _write_frames(folder: Path, operation: Operation, theatre: Theatre) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for second in range(operation.duration_s):
        path = folder / f"{folder.name}_{second + 1:06d}.jpg"
        pixels = cv2.cvtColor(theatre.frame(float(second)), cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        try:
            path.write_bytes(data.tobytes())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _write_video(path: Path, theatre: Theatre) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        # One thread, so that the bytes do not depend on the machine.
        stream = container.add_stream("libx264", rate=LABEL_RATE, options={"threads": "1"})
        stream.width, stream.height = theatre.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, LABEL_RATE)
        for index in range(theatre.operation.duration_s * LABEL_RATE):
            pixels = theatre.frame(index / LABEL_RATE)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, LABEL_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def render_all(root: Path, options: Options, workers: int) -> Iterator[int]:
    """Number of frames of every operation, as they are finished."""
    tasks = [(root, options, number) for number in range(1, options.operations + 1)]
    if workers <= 1 or len(tasks) == 1:
        yield from map(write_operation, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(tasks))) as pool:
        yield from pool.imap_unordered(write_operation, tasks)


def make(options: Options, output: Path, *, workers: int, overwrite: bool) -> None:
    """Make the data set at `output`, unless it exists."""
    arguments = json.loads(json.dumps(asdict(options)))
    description = {"program": "make_surgery", "version": VERSION, "arguments": arguments}
    if is_made(output, description, overwrite=overwrite):
        print(f"{output}: already made with these arguments")
        return
    check_writable(output)
    staging = output.with_name(output.name + ".incomplete")
    check_writable(staging)
    if description_of(staging) not in (None, description):
        shutil.rmtree(staging)
    write_text(staging / RECORD, json.dumps(description, indent=2) + "\n")
    frames = 0
    with tqdm(total=options.operations, unit="operation", desc="rendering") as progress:
        for number in render_all(staging, options, workers):
            frames += number
            progress.update()
    if output.exists():
        shutil.rmtree(output)
    staging.rename(output)
    print(f"{output}: {options.operations} operations, {frames} frames")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; exit status 2 for errors of the user."""
    parsed = parse(arguments)
    try:
        options = options_from(parsed)
        make(options, parsed.output, workers=parsed.workers, overwrite=parsed.overwrite)
    except OSError as error:
        print(f"make_surgery: {explain_os_error(error)}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"make_surgery: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
