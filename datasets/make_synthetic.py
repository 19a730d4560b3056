#!/usr/bin/env python3
"""Make procedural lesion video in the on-disk layout of SUN, SUN-SEG or BUV.

    python datasets/make_synthetic.py --layout sunseg --output data/synthetic --seed 0

The same arguments give the same bytes (with the same versions of numpy, scipy and Pillow).  An
interrupted run leaves `<output>.incomplete`, which the next run removes.  A run whose result
exists returns at once; folders of other programs are never touched.  Contents and assumptions of
the layouts: `synthetic/layouts.py`.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image
from synthetic.clips import render_clip
from synthetic.degrade import Degradation
from synthetic.jobs import FrameRecord, Job, Options, write_text
from synthetic.layouts import annotate, plan
from synthetic.output import RECORD, available_cores, is_made
from tqdm import tqdm

from v2idetr.data.text_files import read_text
from v2idetr.output_folder import check_writable, explain_os_error

VERSION = 3  # increase whenever the same arguments would give other bytes
FRAMES = "generator_frames.json"
DEFAULTS: dict[str, dict[str, int]] = {
    "sun": {"train": 40, "easy": 0, "hard": 0, "negative": 8, "frames": 24},
    "sunseg": {"train": 400, "easy": 48, "hard": 32, "negative": 40, "frames": 5},
    "buv": {"train": 40, "easy": 12, "hard": 0, "negative": 0, "frames": 24},
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--layout", choices=sorted(DEFAULTS), required=True, help="folder layout to imitate")
    add("--output", type=Path, required=True, help="output folder")
    add("--seed", type=int, default=0, help="other seeds give other cases")
    add("--size", default="128x96", metavar="WxH", help="image size in pixels (SUN: 1158x1008)")
    add("--train-clips", type=int, help="training clips (sun: positive cases)")
    add("--test-easy-clips", type=int, help="TestEasyDataset, a third Seen (buv: val videos)")
    add("--test-hard-clips", type=int, help="TestHardDataset, a third Seen (sunseg alone)")
    add("--negative-clips", type=int, help="lesion-free clips (not buv: it has none)")
    add("--frames-per-clip", type=int, help="frames of a clip (sun: of a case)")
    add("--difficulty", type=float, default=1.0, help="share of degraded frames, lesion contrast")
    add(
        "--degradation",
        choices=get_args(Degradation),
        default="hide",
        help="degraded frames hide the lesion, leave weak evidence of it, or half of them each",
    )
    add("--defects", action="store_true", help="include known faults of the real annotation files")
    add("--workers", type=int, default=available_cores(), help="processes")
    add("--overwrite", action="store_true", help="replace an existing result")
    return parser.parse_args(arguments)


def options_from(arguments: argparse.Namespace) -> Options:
    """Options with the layout's defaults; ValueError for invalid values."""
    layout, defaults = arguments.layout, DEFAULTS[arguments.layout]

    def value(flag: str, default: str) -> int:
        given = getattr(arguments, flag)
        if given is not None and given < 0:
            raise ValueError(f"--{flag.replace('_', '-')} {given}: must not be negative")
        return defaults[default] if given is None else given

    try:
        width, height = (int(v) for v in arguments.size.lower().split("x"))
    except ValueError:
        raise ValueError(f"--size {arguments.size}: expected WxH, such as 128x96") from None
    if min(width, height) < 32:
        raise ValueError(f"--size {arguments.size}: at least 32 pixels a side")
    if arguments.difficulty < 0:
        raise ValueError(f"--difficulty {arguments.difficulty}: must not be negative")
    options = Options(
        layout=layout,
        seed=arguments.seed,
        size=(width, height),
        train_clips=value("train_clips", "train"),
        test_easy_clips=value("test_easy_clips", "easy"),
        test_hard_clips=value("test_hard_clips", "hard"),
        negative_clips=value("negative_clips", "negative"),
        frames_per_clip=value("frames_per_clip", "frames"),
        difficulty=arguments.difficulty,
        degradation=arguments.degradation,
        defects=arguments.defects,
    )
    if options.frames_per_clip < 1:
        raise ValueError("--frames-per-clip 0: a clip needs at least one frame")
    if layout == "buv" and options.negative_clips:
        raise ValueError("--negative-clips: every BUV frame has a lesion; use sun or sunseg")
    if layout != "sunseg" and options.test_hard_clips:
        raise ValueError(f"--test-hard-clips: {layout} has no hard test set; use sunseg")
    if layout == "sun" and options.test_easy_clips:
        raise ValueError("--test-easy-clips: SUN has no split; its converter makes one by case")
    if layout == "buv" and options.train_clips < 1:
        raise ValueError("--train-clips 0: BUV needs training videos")
    return options


def write_clip(task: tuple[Path, Job]) -> list[FrameRecord]:
    """Render one clip and write its frames and masks under the root."""
    root, job = task
    for folder in {Path(name).parent for name in (*job.frames, *job.masks)}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    records = []
    for index, frame in enumerate(render_clip(job.spec)):
        name = job.frames[index]
        is_jpeg = name.endswith(".jpg")
        settings = {"quality": 92} if is_jpeg else {"compress_level": 4}
        save(Image.fromarray(frame.image).convert("RGB"), root / name, **settings)
        if job.masks:
            mask = Image.fromarray(frame.mask.astype(np.uint8) * 255)
            save(mask, root / job.masks[index], compress_level=4)
        records.append(FrameRecord(name, frame.box, frame.shot, frame.event, frame.decoy))
    return records


def save(image: Image.Image, path: Path, **settings: Any) -> None:
    """Write an image; an OSError names the file, even for a full disk."""
    try:
        image.save(path, **settings)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def render_all(root: Path, jobs: Sequence[Job], workers: int) -> Iterator[list[FrameRecord]]:
    """Records of every clip, in the order of `jobs`, for any number of processes."""
    tasks = [(root, job) for job in jobs]
    if workers <= 1 or len(jobs) < 4:
        yield from map(write_clip, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(write_clip, tasks, chunksize=2)


def summary(jobs: Sequence[Job], results: Sequence[Sequence[FrameRecord]]) -> dict:
    """Counts for generator.json."""
    records = [record for clip in results for record in clip]
    lesions = [record for record in records if record.box]
    return {
        "clips": len(jobs),
        "frames": len(records),
        "frames_with_lesion": len(lesions),
        "frames_spoiled": sum(bool(record.event) for record in lesions),
        "frames_with_decoy": sum(record.decoy for record in records),
    }


def make(options: Options, output: Path, *, workers: int, overwrite: bool) -> dict:
    """Make the data set at `output` unless it exists; return the content of its generator.json."""
    arguments = asdict(options)
    arguments["size"] = list(options.size)
    description = {"program": "make_synthetic", "version": VERSION, "arguments": arguments}
    since = {"degradation": "hide"}
    if is_made(output, description, overwrite=overwrite, added_later=since):
        print(f"{output}: already made with these arguments")
        return json.loads(read_text(output / RECORD))
    check_writable(output)
    staging = output.with_name(output.name + ".incomplete")
    check_writable(staging)
    if staging.exists():
        if not (staging / FRAMES).is_file():
            raise ValueError(f"{staging} exists and was not made by this program: move it")
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    write_text(staging / FRAMES, "[]")
    jobs = plan(options)
    total = sum(len(job.frames) for job in jobs)
    results = []
    with tqdm(total=total, unit="frame", desc=f"rendering {options.layout}") as progress:
        for records in render_all(staging, jobs, workers):
            results.append(records)
            progress.update(len(records))
    annotate(options, jobs, results, staging)
    frames = [
        {"split": job.split, "clip": job.name, **asdict(record)}
        for job, records in zip(jobs, results, strict=True)
        for record in records
    ]
    write_text(staging / FRAMES, json.dumps(frames))
    description |= {"summary": summary(jobs, results)}
    write_text(staging / RECORD, json.dumps(description, indent=2) + "\n")
    if output.exists():
        shutil.rmtree(output)
    staging.rename(output)
    print(f"{output}: {json.dumps(description['summary'])}")
    return description


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; exit status 2 for errors of the user."""
    parsed = parse(arguments)
    try:
        make(
            options_from(parsed), parsed.output, workers=parsed.workers, overwrite=parsed.overwrite
        )
    except OSError as error:
        print(f"make_synthetic: {explain_os_error(error)}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"make_synthetic: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
