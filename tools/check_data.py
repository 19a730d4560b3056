#!/usr/bin/env python3
"""Check splits before training: the JSON, every frame, copies between splits.

    python tools/check_data.py data/sunseg/*.json --output check
    python tools/check_data.py data/buv_raw/test.json --write-clipped data/buv_raw/test_clipped.json

Prints counts and problems; writes check_data.html, a page with sample frames, boxes and a table of
the videos, and check_data.json. The exit status is 1 after errors: problems of a JSON, bad boxes,
unreadable frames, frames shared by two splits, different classes, no box in a split named train*.
Frames of one scene must have one size; only teachers, which see clips, need this.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from v2idetr.atomic_file import write_text_atomically
from v2idetr.data.audit import AuditReport, Findings, audit_boxes
from v2idetr.data.coco_vid import SplitData, read_split, write_split
from v2idetr.data.schema import check_annotations, check_images, check_videos, read_coco_vid
from v2idetr.data.split_set import check_same_classes, check_shared_files, check_training_boxes
from v2idetr.output_folder import check_writable, explain_os_error
from v2idetr.process_setup import ignore_torch_jit
from v2idetr.wording import counted

# Other files of converters and of this program, which data/sunseg/*.json includes.
NO_SPLITS = ("audit.json", "check_data.json")

if TYPE_CHECKING:  # it imports torch
    from v2idetr.prepare.frame_checks import Copies


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("json", type=Path, nargs="+", metavar="JSON", help="splits of one data set")
    add(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="folder of the frames (default: image_root_hint of each JSON)",
    )
    add("--output", type=Path, metavar="DIR", help="output folder (default: of the first JSON)")
    add(
        "--every",
        type=int,
        default=1,
        metavar="K",
        help="read only every K-th frame of a video: quicker, finds less (default 1)",
    )
    add("--samples", type=int, default=24, metavar="N", help="frames per split on the page (24)")
    add(
        "--write-clipped",
        type=Path,
        metavar="OUT.json",
        help="write a copy of the one JSON with boxes clipped to their frames",
    )
    options = parser.parse_args(arguments)
    others = [path for path in options.json if path.name in NO_SPLITS]
    options.json = [path for path in options.json if path not in others]
    if not options.json:
        parser.error(f"{others[0]} is not a split")
    if others:
        print(f"Ignored, not a split: {', '.join(map(str, others))}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Check, print and write; returns 1 after errors in the data, 2 if nothing can be read."""
    options = parse(arguments)
    ignore_torch_jit()
    try:
        return check(options)
    except ValueError as error:
        print(f"check_data: {error}", file=sys.stderr)
    except OSError as error:
        print(f"check_data: {explain_os_error(error)}", file=sys.stderr)
    return 2


def check(options: argparse.Namespace) -> int:
    """Exit code; ValueError or OSError if nothing can be checked or written."""
    # Imported here, as below, so that --help and usage errors need no torch.
    from data_sheet import write_sheet

    from v2idetr.prepare.frame_checks import check_frames, find_copies

    output = check_options(options)
    together = Findings()
    splits = read(options, together)
    notes = check_together(splits, together)
    fingerprints = {name: check_frames(s, every=options.every) for name, s in splits.items()}
    copies = find_copies(splits, fingerprints)
    errors = len(together) + sum(len(split.report.problems) for split in splits.values())
    errors += sum(c.num_frames for c in copies if c.across_splits)
    page = write_sheet(
        output / "check_data.html",
        splits=splits,
        contents={name: read_coco_vid(split.json_path) for name, split in splits.items()},
        together=together,
        notes=notes,
        copies=copies,
        errors=errors,
        every=options.every,
        num_samples=options.samples,
    )
    found = as_json(splits, together, notes, copies)
    write_text_atomically(output / "check_data.json", json.dumps(found, indent=1) + "\n")
    print("\n".join(lines(splits, together, notes, copies, errors)))
    print(f"{page} ({page.stat().st_size / 2**20:.1f} MiB)")
    if options.write_clipped is not None:
        print(write_clipped(options.json[0], options.write_clipped))
    return 1 if errors else 0


def check_options(options: argparse.Namespace) -> Path:
    """The output folder; ValueError for invalid options."""
    if options.every < 1 or options.samples < 0:
        raise ValueError("--every must be 1 or more, --samples 0 or more")
    if options.write_clipped is not None:
        if len(options.json) != 1:
            raise ValueError("--write-clipped takes one JSON at a time")
        if options.write_clipped.exists():
            raise ValueError(
                f"--write-clipped {options.write_clipped}: exists already; choose another name"
            )
        check_writable(options.write_clipped, "--write-clipped", is_file=True)
    output = options.output or options.json[0].parent
    if options.output is not None or output.is_dir():  # else the JSON is missing, see `read`
        check_writable(output)
    return output


def read(options: argparse.Namespace, problems: Findings) -> dict[str, SplitData]:
    """Splits by name. Unreadable ones are added to `problems`; ValueError if all are."""
    stems = [path.stem for path in options.json]
    names = [
        path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}"
        for path in options.json
    ]
    if len(set(names)) < len(names):
        raise ValueError(f"a JSON is given twice: {', '.join(map(str, options.json))}")
    splits: dict[str, SplitData] = {}
    unreadable = []
    for name, path in zip(names, options.json, strict=True):
        try:
            splits[name] = read_split(path, image_root(path, options.image_root))
        except ValueError as error:
            unreadable.append(str(error))
            problems.add("split cannot be read", str(error))
    if not splits:
        raise ValueError("\n".join(unreadable))
    return splits


def check_together(splits: Mapping[str, SplitData], problems: Findings) -> Findings:
    """Add problems between splits to `problems`; returns notes."""
    notes = Findings()
    for split in splits.values():
        if split.json_path.stem.startswith("train") and split.class_names:
            check_training_boxes(split, problems, notes)
    check_same_classes(splits, problems)
    check_shared_files(splits, problems)
    return notes


def image_root(path: Path, given: Path | None) -> Path:
    """Folder of the frames: `given`, else the converter's hint, else that of the JSON."""
    if given is not None:
        return given
    info = read_coco_vid(path).get("info")
    hint = info.get("image_root_hint") if isinstance(info, dict) else None
    return Path(hint) if isinstance(hint, str) else path.parent


def lines(
    splits: Mapping[str, SplitData],
    together: Findings,
    notes: Findings,
    copies: list[Copies],
    errors: int,
) -> list[str]:
    """Printed lines: a table of the splits, then problems and notes."""
    rows = []
    for name, split in splits.items():
        report = split.report
        rows.append(
            {
                "split": name,
                "videos": report.videos,
                "frames": report.frames,
                "lesion-free": report.lesion_free_frames,
                **{f"boxes: {label}": n for label, n in report.boxes_per_class.items()},
                "bad boxes": sum(report.bad_boxes.values()),
                "missing frames": len(report.missing_frames),
                "frames read": report.frames_decoded,
            }
        )
    text = tabulate(rows, headers="keys", disable_numparse=True).splitlines()
    for name, split in splits.items():
        text += [f"error: {name}: {line}" for line in split.report.problems.lines()]
        text += [f"note: {name}: {line}" for line in split.report.notes.lines()]
    text += [f"error: {line}" for line in together.lines()]
    text += [f"note: {line}" for line in notes.lines()]
    for c in copies:
        places = " = ".join(f"{s}: {v}" for s, v in zip(c.splits, c.videos, strict=True))
        kind = "error" if c.across_splits else "note"
        same = f"{counted(c.num_frames, 'frame')} {'is' if c.num_frames == 1 else 'are'} the same"
        text.append(f"{kind}: {same} in two videos: {places}")
    return [*text, counted(errors, "error") if errors else "no errors"]


def as_json(
    splits: Mapping[str, SplitData], together: Findings, notes: Findings, copies: list[Copies]
) -> dict[str, Any]:
    """Content of check_data.json."""
    from data_sheet import video_rows

    return {
        "splits": {
            name: {
                **split.report.as_dict(),
                "missing": split.report.missing_frames,
                "per_video": video_rows(split),
            }
            for name, split in splits.items()
        },
        "together": {"problems": together.as_dict(), "notes": notes.as_dict()},
        "copies": [{**vars(c), "across_splits": c.across_splits} for c in copies],
    }


def write_clipped(source: Path, target: Path) -> str:
    """Write a copy with clipped boxes; returns a summary.

    Raises ValueError if the file has other errors than bad boxes.
    """
    content = read_coco_vid(source)
    report = AuditReport(source=str(target))
    frames = check_images(
        content["images"], check_videos(content["videos"], report.problems), report.problems
    )
    known = check_annotations(content["annotations"], frames, content, report.problems)
    report.problems.raise_if_any(str(source))
    clipped = audit_boxes(known, frames, report, "clip")
    write_split(
        target,
        videos=content["videos"],
        images=content["images"],
        annotations=clipped,
        categories=content["categories"],
        info={**(content.get("info") or {}), "box_policy": "clip"},
    )
    boxes = counted(len(clipped), "box", "boxes")
    return f"{target}: {boxes}, {report.clipped} clipped, {report.dropped} dropped"


if __name__ == "__main__":
    raise SystemExit(main())
