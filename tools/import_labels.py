#!/usr/bin/env python3
"""Videos or images and their labels -> train.json, val.json, test.json, and a config to train with.

    python tools/import_labels.py --source my_videos --labels my_labels --output data/own
    python tools/import_labels.py --source my_videos --output data/own \\
        --patients patients.csv --lesion-free listed
    python tools/import_labels.py --source my_images --output data/own \\
        --video-pattern '(?P<video>case[0-9]+)/(?P<frame>[0-9]+)' --rename Polyp=polyp

Labels of CVAT (video and images, XML), Label Studio (JSON), COCO, YOLO, Pascal VOC and LabelMe are
found below --labels, whichever they are. Videos are never divided between the splits, nor are the
patients that --patients or --patient-pattern names. Frames of two splits that show the same are an
error. A frame without a box is used only where --lesion-free says that it is lesion-free.

Frames of videos are decoded once, into OUTPUT/frames; a run that was stopped goes on there.
docs/own_data.md takes you from here to an exported detector.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from v2idetr.atomic_file import write_text_atomically
from v2idetr.child_processes import Interrupted
from v2idetr.data.audit import Findings
from v2idetr.data.text_files import read_text
from v2idetr.output_folder import check_writable, explain_os_error
from v2idetr.prepare.annotations import Conversion, Video, printable
from v2idetr.prepare.labels.assemble import build_videos, choose_frames, density, label_step
from v2idetr.prepare.labels.classes import choose_classes
from v2idetr.prepare.labels.label_files import FORMATS, read_labels
from v2idetr.prepare.labels.matching import match_frames, usable_frames
from v2idetr.prepare.labels.media import find_media
from v2idetr.prepare.labels.splits import SPLITS, patients_of, split_videos
from v2idetr.prepare.labels.suggestion import Machine, as_yaml, facts_of, suggest
from v2idetr.process_setup import ignore_torch_jit
from v2idetr.wording import counted

if TYPE_CHECKING:  # it imports torch
    from v2idetr.prepare.frame_checks import Copies

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "train.yaml"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help="folder of videos or images; or a video")
    add("--labels", type=Path, help="folder of label files, or one (default: --source)")
    add("--output", type=Path, required=True, help="folder for the JSON files and the config")
    add("--format", choices=FORMATS, help="the labels to read, where there are several kinds")
    add("--classes", type=_names, metavar="A,B", help="classes in order (default: of the labels)")
    add(
        "--rename",
        type=_renaming,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="another name for a class; without NEW its boxes are left out",
    )
    add("--yolo-names", type=_names, metavar="A,B", help="YOLO: names by number, without a list")
    add(
        "--lesion-free",
        choices=("none", "listed", "all"),
        default="none",
        help="frames without a box that are lesion-free: none (default), those that the labels "
        "list, or all",
    )
    add("--every", type=int, default=1, metavar="N", help="use every Nth of a video's frames (1)")
    add("--allow-missing", action="store_true", help="leave out labels without video or image")
    _add_places(parser)
    _add_splits(parser)
    return parser.parse_args(arguments)


def _add_places(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("frames").add_argument
    add(
        "--video-pattern",
        metavar="REGEX",
        help="images: its group `video` in a path is the video, `frame` the number (default: "
        "folders, and the name before its last number)",
    )
    add("--frame-rate", type=_rate, metavar="HZ", help="images: frames per second of the videos")
    add(
        "--first-frame",
        type=int,
        default=0,
        metavar="N",
        help="video files: number of their first frame in names such as frame_000000.txt (0)",
    )
    add("--ultrasound", action="store_true", help="config without vertical flips and color changes")


def _add_splits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("splits")
    add = group.add_argument
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument(
        "--patients", type=Path, metavar="CSV", help="columns video and patient: split by patient"
    )
    exclusive.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="split by patient: its group `patient` in a video's name",
    )
    for split in SPLITS[1:]:
        add(f"--{split}-share", type=float, default=0.15, help="share of the frames (0.15)")
        add(
            f"--{split}-videos",
            type=_names,
            metavar="NAMES",
            help="names or patterns of videos, in place of a share",
        )
    add("--seed", type=int, default=0, help="seed of the draw (0)")
    add("--allow-copies", action="store_true", help="keep frames of two splits that are the same")
    add(
        "--check-every",
        type=int,
        default=1,
        metavar="K",
        help="compare every Kth frame of a video: quicker, finds less (1)",
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old.strip(), new.strip()


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate, such as 25 or 30000/1001")
    return rate


def main(arguments: Sequence[str] | None = None) -> int:
    """Import, print and write; returns 2 with the reason of a failure."""
    options = parse(arguments)
    try:
        check_options(options)
        print("\n".join(printable(line) for line in run(options)))
    except OSError as error:
        print(printable(f"import_labels: {explain_os_error(error)}"), file=sys.stderr)
        return 2
    except ValueError as error:
        print(printable(f"import_labels: {error}"), file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        what = "the same command goes on behind the finished videos"
        print(f"import_labels: stopped by {stop or 'Ctrl-C'}; {what}", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    return 0


def check_options(options: argparse.Namespace) -> None:
    """ValueError for values that cannot be used."""
    options.labels = options.labels or options.source
    for name in ("every", "check_every"):
        if getattr(options, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: must be 1 or more"
            )
    shares = [options.val_share, options.test_share]
    if not (min(shares) > 0 and sum(shares) < 1):
        given = f"--val-share {shares[0]} --test-share {shares[1]}"
        raise ValueError(f"{given}: must be above 0 and together below 1")
    renamed = [old for old, _ in options.rename]
    if len(set(renamed)) < len(renamed):
        raise ValueError(f"--rename: {', '.join(renamed)}: one of these is given twice")
    if options.output.resolve() == options.source.resolve():
        raise ValueError(f"--output {options.output}: is the source; choose another folder")
    check_writable(options.output)


def run(options: argparse.Namespace) -> list[str]:
    """Import everything; lines of the report.

    Raises:
        ValueError: bad input; OSError: a file; Interrupted: a signal.
    """
    notes = Findings()
    read = read_videos(options, notes)
    conversion = Conversion(
        name=options.output.name,
        converter=Path(__file__).name,
        output=options.output / ".import",
        image_root=read.image_root,
        class_names=read.class_names,
    )
    conversion.notes.extend(notes)
    shutil.rmtree(conversion.output, ignore_errors=True)
    try:
        conversion.write(read.splits)
        check_copies(conversion, read.image_root, options)
        conversion.write_audit()
        for path in sorted(conversion.output.iterdir()):
            os.replace(path, options.output / path.name)
    finally:
        shutil.rmtree(conversion.output, ignore_errors=True)
    conversion.output = options.output
    return [read.summary, "", *conversion.lines(), "", *write_config(options, read)]


@dataclass(frozen=True)
class Imported:
    """Videos by split, class names, folder of the frames, distance of labelled frames, a line."""

    splits: dict[str, list[Video]]
    class_names: list[str]
    image_root: Path
    step: int
    summary: str


def read_videos(options: argparse.Namespace, notes: Findings) -> Imported:
    """Labels and media -> videos; what is left out is noted."""
    kind, found = read_labels(
        options.labels, leave_out=options.output, only=options.format, yolo_names=options.yolo_names
    )
    class_names = choose_classes(found, options.classes, dict(options.rename))
    clips = find_media(
        options.source,
        notes,
        leave_out=options.output,
        image_rate=options.frame_rate,
        pattern=options.video_pattern,
    )
    labels = match_frames(
        found, clips, first_number=options.first_frame, allow_missing=options.allow_missing
    )
    notes.extend(found.notes)
    usable = usable_frames(labels, clips, options.source, notes)
    chosen = choose_frames(
        labels, usable, clips, notes, lesion_free=options.lesion_free, every=options.every
    )
    patients = patients_of(list(chosen), table=options.patients, pattern=options.patient_pattern)
    named = {s: n for s in SPLITS[1:] if (n := getattr(options, f"{s}_videos")) is not None}
    split_of = split_videos(
        patients,
        {name: sum(map(bool, boxes.values())) for name, boxes in chosen.items()},
        shares={split: getattr(options, f"{split}_share") for split in SPLITS[1:]},
        seed=options.seed,
        named=named,
        notes=notes,
    )
    sizes = {
        name: {number: frame.size for number, frame in frames.items()}
        for name, frames in labels.items()
    }
    summary = f"labels of {kind}: {density(chosen, clips)}"
    by_name, root = build_videos(
        chosen,
        clips,
        source=options.source,
        frames=options.output / "frames",
        class_names=class_names,
        patients=patients,
        sizes=sizes,
    )
    splits = {s: [by_name[v] for v in by_name if split_of[v] == s] for s in SPLITS}
    return Imported(splits, class_names, root, label_step(chosen), summary)


def check_copies(conversion: Conversion, image_root: Path, options: argparse.Namespace) -> None:
    """Note frames of two videos that show the same.

    Raises:
        ValueError: they are in two splits, and that is not allowed; or a frame cannot be read.
    """
    # Imported here, so that --help and wrong options need no torch.
    from v2idetr.data.coco_vid import read_split
    from v2idetr.prepare.frame_checks import check_frames, find_copies

    splits = {name: read_split(conversion.output / f"{name}.json", image_root) for name in SPLITS}
    prints = {n: check_frames(split, every=options.check_every) for n, split in splits.items()}
    problems = Findings()
    for split in splits.values():
        problems.extend(split.report.problems)
    problems.raise_if_any("frames")
    copies = find_copies(splits, prints)
    for pair in copies:
        conversion.notes.add(_kind(pair), _example(pair))
    leaks = [pair for pair in copies if pair.across_splits]
    if leaks and not options.allow_copies:
        lines = [f"  - {_example(pair)}" for pair in leaks[:5]]
        rest = [f"  - and {len(leaks) - 5} more pairs of videos"] if leaks[5:] else []
        number = counted(sum(pair.num_frames for pair in leaks), "frame")
        first = f"{number} of one split are also in another, so that a test would be no test:"
        remedy = (
            "Name the videos of one patient as one (--patients), remove one of two copies, or keep "
            "them with --allow-copies."
        )
        raise ValueError("\n".join([first, *lines, *rest, remedy]))


def _kind(pair: Copies) -> str:
    return "frames are the same in two " + ("splits" if pair.across_splits else "videos")


def _example(pair: Copies) -> str:
    places = (f"{video} ({split})" for split, video in zip(pair.splits, pair.videos, strict=True))
    return f"{counted(pair.num_frames, 'frame')} of {' = '.join(places)}"


def write_config(options: argparse.Namespace, read: Imported) -> list[str]:
    """Write the suggested config; lines that say what it is and what to call next."""
    path: Path = options.output / CONFIG
    train = json.loads(read_text(options.output / "train.json"))
    values = suggest(facts_of(train, read.step), machine(), ultrasound=options.ultrasound)
    text = as_yaml(
        values,
        path=path,
        configs=ROOT / "configs",
        data=options.output,
        image_root=read.image_root,
        run=f"output/{options.output.resolve().name}",
    )
    write_text_atomically(path, text)
    lines = [f"suggested config: {path}"]
    for value in values:
        if value.reason and not isinstance(value.value, dict):
            lines.append(f"  {value.key} = {value.value}: {value.reason}")
        elif value.reason:
            lines.append(f"  {value.key}: {value.reason}")
    lines += ["", f"next: python tools/check_data.py {options.output}/*.json"]
    return [*lines, f"      python train_net.py --config-file {path}"]


def machine() -> Machine:
    """Memory of the device that a training takes."""
    import torch
    from doctor import available_memory_gib

    if torch.cuda.is_available():
        return Machine(torch.cuda.mem_get_info()[0] / 2**30, has_gpu=True)
    return Machine(available_memory_gib(), has_gpu=False)


if __name__ == "__main__":
    ignore_torch_jit()
    raise SystemExit(main())
