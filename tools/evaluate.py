#!/usr/bin/env python3
"""Deployment report of a detector, from its results on labelled videos.

    python tools/evaluate.py predictions.json test.json --fps 30 --output output/deployment \\
        --validation predictions_val.json val.json

PREDICTIONS is a COCO results list of any detector (.json or .json.gz), as train_net.py writes it
into the folder of a stage; GROUND_TRUTH a COCO-VID or plain COCO JSON. Several pairs are pooled,
such as SUN-SEG's easy, hard and negative test videos. --against compares with further detectors:

    python tools/evaluate.py \\
        run/student/predictions_easy.json.gz easy.json \\
        run/student/predictions_hard.json.gz hard.json \\
        --against run/plain/predictions_easy.json.gz run/plain/predictions_hard.json.gz \\
        --validation run/student/predictions_val.json.gz val.json \\
        --against-validation run/plain/predictions_val.json.gz --output output/deployment

Writes deployment.html, one page with everything inside, and deployment.json: AP; precision, recall
and F1 by two rules; false alarms a minute; the TRUE-Colon protocol (false-alert rate, sensitivity,
persistence, latency, FROC, AFROC); by video, lesion and size; intervals over videos; a paired
comparison with p-values; the worst frames.

The score threshold is chosen on the validation data, by the highest F1 unless an option says
otherwise. Without validation data and --threshold it is chosen on the evaluated data, and the page
says so. The ground truth gives the frame rate (fps of info or of its videos), or --fps. Lesions are
told apart by unique_id, instance_id or track_id of their annotations.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2idetr.evaluation.rule_names import RULE_NAMES
from v2idetr.output_folder import check_folder, check_writable, explain_os_error
from v2idetr.process_setup import ignore_torch_jit

if TYPE_CHECKING:  # they import torch
    from v2idetr.evaluation.deployment import Detector
    from v2idetr.evaluation.operating_point import Choice
    from v2idetr.evaluation.pool import Pool

PAGE, RECORD = "deployment.html", "deployment.json"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "pairs",
        type=Path,
        nargs="+",
        metavar="PREDICTIONS GROUND_TRUTH",
        help="one or more pairs of files",
    )
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder for the two files")
    add(
        "--against",
        type=Path,
        nargs="+",
        action="append",
        default=[],
        metavar="OTHER",
        help="predictions of another detector, one file per ground truth; may be repeated",
    )
    add("--names", nargs="+", metavar="NAME", help="names of the detectors, in their order")
    add(
        "--validation",
        type=Path,
        nargs=2,
        metavar=("VAL_PREDICTIONS", "VAL_GROUND_TRUTH"),
        help="data on which the threshold is chosen",
    )
    add(
        "--against-validation",
        type=Path,
        action="append",
        default=[],
        metavar="VAL_PREDICTIONS",
        help="those of the other detectors, in the order of --against",
    )
    add_thresholds(parser)
    add(
        "--rule",
        choices=RULE_NAMES,
        default=RULE_NAMES[0],
        help="its threshold is that of TRUE-Colon and of the tables (default %(default)s)",
    )
    add(
        "--matched-alert-rate",
        type=share,
        metavar="SHARE",
        help="lesion-free frames with an alert where TRUE-Colon compares (default 0.045)",
    )
    add("--fps", type=rate, metavar="N", help="frames a second, in units of frame_index")
    add(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="base folder of the frames (default: as the JSON says)",
    )
    add(
        "--on-bad-box",
        choices=("raise", "clip", "drop"),
        default="raise",
        help="boxes outside frames",
    )
    add(
        "--video-pattern",
        default="",
        metavar="REGEX",
        help="the video's name in file_name, for a file without videos: '^([0-9]+-[0-9]+)_'",
    )
    add(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="of the bootstrap (default %(default)s)",
    )
    return parser.parse_args(arguments)


def add_thresholds(parser: argparse.ArgumentParser) -> None:
    """Options that choose the score threshold, at most one of them."""
    how = parser.add_argument_group(
        "threshold", "the highest F1, or one of"
    ).add_mutually_exclusive_group()
    add = how.add_argument
    add("--threshold", type=share, nargs="+", metavar="SCORE", help="fixed: one, or one a detector")
    add("--recall", type=share, metavar="SHARE", help="the highest with at least this recall")
    add("--false-alarms", type=rate, metavar="RATE", help="the lowest with so many a minute")
    add(
        "--alert-rate",
        type=share,
        metavar="SHARE",
        help="the lowest with detections on at most this share of the lesion-free frames",
    )


def share(text: str) -> float:
    """A number above 0, at most 1."""
    value = rate(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is above 1")
    return value


def rate(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; returns 2 after a user's error."""
    options = parse(arguments)
    ignore_torch_jit()
    try:
        check(options)
        check_writable(options.output)
        check_folder(options.output, RECORD, "deployment report", first=[PAGE])
        content = report(options)
    except ValueError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"evaluate: {explain_os_error(error)}", file=sys.stderr)
        return 1
    from v2idetr.report.deployment_words import choice_words, summary, undefined, warnings

    for line in [*summary(content), choice_words(content), *undefined(content)]:
        print(line)
    for line in warnings(content):
        print(f"warning: {line}")
    print(options.output / PAGE)
    return 0


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not fit together, before files are read.

    Raises:
        ValueError: names the option.
    """
    if len(options.pairs) % 2:
        raise ValueError(
            f"give pairs of PREDICTIONS and GROUND_TRUTH, not {len(options.pairs)} files; "
            f"{options.pairs[-1]} has no partner."
        )
    truths, others = len(options.pairs) // 2, len(options.against)
    for files in options.against:
        if len(files) != truths:
            raise ValueError(
                f"--against: needs one file per ground truth ({truths}), not {len(files)}."
            )
    if options.names is not None and len(options.names) != others + 1:
        raise ValueError(f"--names: needs {others + 1}, one a detector, not {len(options.names)}.")
    if options.threshold is not None and len(options.threshold) not in (1, others + 1):
        raise ValueError(f"--threshold: needs one, or one a detector ({others + 1}).")
    if options.validation is not None and options.threshold is not None:
        raise ValueError("--validation: is not used with a fixed --threshold; leave one out.")
    if options.validation is None and options.against_validation:
        raise ValueError("--against-validation: needs --validation with its ground truth.")
    if options.validation is not None and len(options.against_validation) != others:
        raise ValueError(
            f"--against-validation: give it {others} times, once per --against, so that each "
            "detector's threshold is chosen on the same validation data."
        )
    if options.resamples < 100:
        raise ValueError(f"--resamples {options.resamples}: needs at least 100.")


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Read, assess, write both files; returns the content of the JSON.

    Raises:
        ValueError: a file or an option cannot be used.
    """
    from v2idetr.atomic_file import write_text_atomically
    from v2idetr.evaluation.deployment import Settings, assess
    from v2idetr.evaluation.true_colon_protocol import TARGET_ALERT_RATE
    from v2idetr.report.deployment_page import MOST_DETECTORS, render

    if len(options.against) >= MOST_DETECTORS:
        raise ValueError(f"--against: at most {MOST_DETECTORS - 1} further detectors.")
    pool, val_pool = read_pools(options)
    detectors = read_detectors(options, pool, val_pool)
    settings = Settings(
        choice(options),
        options.rule,
        options.matched_alert_rate or TARGET_ALERT_RATE,
        options.resamples,
    )
    content = assess(detectors, pool, val_pool, settings, with_progress)
    page = render(content, pool, detectors, RECORD)
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    write_text_atomically(options.output / PAGE, page)
    write_text_atomically(options.output / RECORD, text + "\n")
    return content


def choice(options: argparse.Namespace) -> Choice:
    """What thresholds are chosen by."""
    from v2idetr.evaluation.operating_point import Choice

    if options.recall is not None:
        return Choice("recall", options.recall)
    if options.false_alarms is not None:
        return Choice("false_alarms", options.false_alarms)
    if options.alert_rate is not None:
        return Choice("alert_rate", options.alert_rate)
    return Choice()


def read_pools(options: argparse.Namespace) -> tuple[Pool, Pool | None]:
    """The ground truths of the tests and of the validation data."""
    from v2idetr.data.ground_truth import read_ground_truth
    from v2idetr.evaluation.pool import Pool

    def read(path: Path) -> Any:
        return read_ground_truth(
            path,
            options.image_root,
            on_bad_box=options.on_bad_box,
            fps=options.fps,
            video_pattern=options.video_pattern,
        )

    names = split_names(options.pairs)
    truths = {name: read(path) for name, path in zip(names, options.pairs[1::2], strict=True)}
    if options.validation is None:
        return Pool(truths), None
    val = read(options.validation[1])
    Pool({**truths, "val": val})  # the same classes
    return Pool(truths), Pool({"val": val})


def read_detectors(
    options: argparse.Namespace, pool: Pool, val_pool: Pool | None
) -> list[Detector]:
    """All detectors with their predictions."""
    from v2idetr.evaluation.deployment import Detector
    from v2idetr.evaluation.results_files import read_results

    files = [options.pairs[::2], *options.against]
    names = options.names or detector_names([paths[0] for paths in files])
    if len(set(names)) < len(names):
        raise ValueError(f"--names: {', '.join(names)} are not all different.")
    thresholds = options.threshold or [None]
    thresholds = thresholds * len(files) if len(thresholds) == 1 else thresholds
    val_files = [None] * len(files)
    if options.validation is not None:
        val_files = [options.validation[0], *options.against_validation]
    detectors = []
    for name, paths, val_file, threshold in zip(names, files, val_files, thresholds, strict=True):
        pairs = with_progress(list(zip(pool.truths, paths, strict=True)), f"{name}: reading")
        predictions = {split: read_results(path, pool.truths[split]) for split, path in pairs}
        val = None
        if val_pool is not None and val_file is not None:
            val = val_pool.label({"val": read_results(val_file, val_pool.truths["val"])})["val"]
        used = [*paths, *([val_file] if val_file is not None else [])]
        detectors.append(
            Detector(name, list(map(str, used)), pool.label(predictions), val, threshold)
        )
    return detectors


def split_names(pairs: Sequence[Path]) -> list[str]:
    """Names of the tests: NAME of predictions_NAME.json.gz, else the name of the ground truth."""
    found = [re.fullmatch(r"predictions_(.+?)\.json(\.gz)?", path.name) for path in pairs[::2]]
    names = [
        match.group(1) if match else path.stem
        for match, path in zip(found, pairs[1::2], strict=True)
    ]
    taken = {"val", "all tests"}
    for index, name in enumerate(names):
        while name in taken or "/" in name:
            name = f"{name.replace('/', '_')}_{index + 1}"
        taken.add(name)
        names[index] = name
    return names


def detector_names(paths: Sequence[Path]) -> list[str]:
    """Names of detectors: the first part of their paths, from the end, that tells all apart."""
    parts = [
        [path.name.removesuffix(".gz").removesuffix(".json"), *path.resolve().parent.parts[::-1]]
        for path in paths
    ]
    if len(parts) == 1:
        own, folder = parts[0][0], parts[0][1]
        return [folder if own.startswith("predictions_") else own]
    for candidates in zip(*parts, strict=False):
        if len(set(candidates)) == len(candidates):
            return list(candidates)
    return [f"{number}: {path.name}" for number, path in enumerate(paths, start=1)]


def with_progress(items: Iterable[Any], title: str) -> Iterable[Any]:
    """The items, with their progress and the remaining time."""
    from v2i_runtime.progress import progress_bar

    return progress_bar(items, desc=title, unit="item")


if __name__ == "__main__":
    sys.exit(main())
