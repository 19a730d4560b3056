"""Find lesions in a video, folder of images or camera, and draw them.

    v2i-predict-video student.onnx colonoscopy.mp4 --output boxes.mp4
    v2i-predict-video student.xml frames/ --image-rate 25 --json boxes.json --csv boxes.csv
    v2i-predict-video student.onnx 0 --output live.mp4 --end 60      # camera 0, one minute

INPUT is a video file, a folder of images, a pattern ("frames/*.png", quoted), or the number of a
camera, which runs until Ctrl-C or --end. The program keeps every frame and its exact time, also at
variable rates, and copies the sound, but no subtitles. Times are those of the source; its first
frame need not be at 0 s. The video of --output begins at 0 s. Interlaced video is not deinterlaced.

Ctrl-C and SIGTERM complete the files up to there. Exit code: 0 done, 1 stopped by an error such as
a damaged input (the files are complete up to there), 2 nothing done, 130 or 143 interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from tqdm import tqdm

from v2i_runtime.camera import Camera
from v2i_runtime.detections import FrameDetector
from v2i_runtime.loading import load_detector
from v2i_runtime.output_files import check_outputs
from v2i_runtime.sources import DEFAULT_RATE, FrameSource, ImageFiles, open_source
from v2i_runtime.video_file import check_encoder
from v2i_runtime.video_run import NoFrameError, Outcome, Settings, predict_video


def command_line(description: str | None = __doc__) -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=Path, help="exported detector: .onnx or .xml (OpenVINO)")
    add("input", metavar="INPUT", help="video file, folder of images, pattern or camera number")
    outputs = parser.add_argument_group("outputs, at least one")
    outputs.add_argument("--output", type=Path, metavar="FILE.mp4", help="video with boxes")
    outputs.add_argument("--json", type=Path, metavar="FILE", help="detections as COCO results")
    outputs.add_argument("--csv", type=Path, metavar="FILE", help="detections as a table")
    add("--overwrite", action="store_true", help="replace existing files")
    add("--threshold", type=_score, metavar="S", help="least score (default: the model's own)")
    add("--every", type=_count, default=1, metavar="N", help="detect on every Nth frame only")
    add("--start", type=_fraction, metavar="S", help="first time, s")
    add("--end", type=_fraction, metavar="S", help="time before which to stop, s")
    add("--image-rate", type=_rate, metavar="HZ", help="rate of image files (default 25)")
    add("--track", action="store_true", help="number the lesions (ByteTrack; package trackers)")
    add(
        "--smooth",
        type=_count,
        default=1,
        metavar="N",
        help="average a lesion's boxes over N frames, drawn and written (default 1: raw boxes)",
    )
    add("--show-time", action="store_true", help="show each frame's time in the video")
    add("--device", metavar="NAME", help="where to compute, such as cpu, gpu or cuda")
    add("--threads", type=_count, metavar="N", help="threads of the detector")
    return parser


def load_exported(options: argparse.Namespace) -> FrameDetector:
    """The exported detector of a command line; raises ValueError, see `load_detector`."""
    return load_detector(options.model, device=options.device, threads=options.threads)


def run(
    options: argparse.Namespace,
    load: Callable[[argparse.Namespace], FrameDetector] = load_exported,
) -> int:
    """Predict the video of a command line; returns the exit code."""
    try:
        outputs = _outputs(options)
        source = _source(options)
        detector = load(options)
        settings = _settings(options, detector)
        outcome = predict_video(
            source,
            detector,
            settings,
            outputs,
            name=os.path.basename(os.path.normpath(options.input)),
            model=options.model.name,
        )
    except (ValueError, OSError) as error:
        _say(f"predict_video: {_explained(error)}")
        return 2
    except KeyboardInterrupt:
        _say("Interrupted: nothing written.")
        return 130
    return _report(outcome)


def main(arguments: Sequence[str] | None = None) -> int:
    """Program v2i-predict-video; returns the exit code."""
    return run(command_line().parse_args(arguments))


def _report(outcome: Outcome) -> int:
    for note in outcome.notes:
        _say(f"Note: {note}.")
    error = outcome.error
    if isinstance(error, NoFrameError):
        _say(f"predict_video: {error}")
        return 2
    if isinstance(error, (ValueError, OSError)):
        _say(f"predict_video: stopped: {_explained(error)}")
    elif error is not None:
        _say("".join(traceback.format_exception(error)))
    if outcome.stopped_by is not None:
        state = "the files are complete up to here" if outcome.files else "nothing was written"
        _say(f"Interrupted: {state}.")
    tqdm.write(outcome.summary())
    if error is not None:
        return 1
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


def _outputs(options: argparse.Namespace) -> dict[str, Path]:
    """Output files by kind."""
    given = {"--output": options.output, "--json": options.json, "--csv": options.csv}
    given = {option: path for option, path in given.items() if path is not None}
    if not given:
        raise ValueError("nothing to write: give --output, --json or --csv")
    if options.output is not None:
        if options.output.suffix.lower() != ".mp4":
            raise ValueError(f"--output {options.output}: must end in .mp4")
        check_encoder()
    inputs = {"input": options.input, "model": str(options.model)}
    if options.model.suffix.lower() == ".xml":
        inputs["model's weights"] = str(options.model.with_suffix(".bin"))
    checked = check_outputs(given, inputs, overwrite=options.overwrite)
    kinds = {"--output": "video", "--json": "json", "--csv": "csv"}
    return {kinds[option]: path for option, path in checked.items()}


def _source(options: argparse.Namespace) -> FrameSource:
    if options.input.isdecimal() and not os.path.exists(options.input):
        source = Camera(int(options.input))
    else:
        source = open_source(options.input, image_rate=options.image_rate or DEFAULT_RATE)
    if options.image_rate is not None and not isinstance(source, ImageFiles):
        raise ValueError("--image-rate is for image files; this input has times of its own")
    return source


def _settings(options: argparse.Namespace, detector: FrameDetector) -> Settings:
    threshold = detector.score_threshold if options.threshold is None else options.threshold
    if threshold is None:
        raise ValueError(f"{options.model}: has no score threshold of its own: give --threshold")
    if None not in (options.start, options.end) and options.end <= options.start:
        raise ValueError(f"--end {float(options.end)}: must be after --start")
    return Settings(
        score_threshold=threshold,
        every=options.every,
        start_s=options.start,
        end_s=options.end,
        track=options.track,
        smooth=options.smooth,
        show_time=options.show_time,
    )


def _explained(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _score(text: str) -> float:
    value = float(_fraction(text))
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1]")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 or more")
    return int(text)


def _fraction(text: str) -> Fraction:
    """A number, exactly as it is written; also 30000/1001."""
    try:
        # As a float first: a fraction with a large exponent takes all memory.
        if "/" not in text and math.isinf(float(text)):
            raise OverflowError
        value = Fraction(text)
        float(value)  # as which it is reported
        return value
    except OverflowError as error:
        raise argparse.ArgumentTypeError(f"{text} is too large") from error
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no number") from error


def _rate(text: str) -> Fraction:
    value = _fraction(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
