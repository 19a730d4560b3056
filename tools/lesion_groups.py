#!/usr/bin/env python3
"""Recall of detectors by groups of lesions, and the share of the teacher's gain in its student.

    python tools/lesion_groups.py --split test \\
        --plain output/run/plain --teacher output/run/teacher \\
        --other "teacher alone" output/alone/teacher --other "V2I student" output/run/student \\
        --output output/groups

Every FOLDER is that of an evaluated stage, with config.yaml, evaluation.json and predictions. Give
one folder per seed, the same number for each detector; counts are summed over seeds. For "teacher
alone", first evaluate the teacher without neighbouring frames (train_net.py --eval-only
data.window=0 --output output/alone).

Groups: all lesions; thirds by size, sharpness, glare and motion; videos; with --events,
degradations of the frame by the synthetic generator. Reported are the recall of each detector at
its own threshold and, of the lesions that the teacher finds and the plain detector misses, the
share that each other detector finds. Compare the student's share with that of a second plain
detector, which has no teacher. Writes lesion_groups.md and lesion_groups.json into --output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2idetr.output_folder import check_writable, explain_os_error
from v2idetr.process_setup import ignore_torch_jit
from v2idetr.wording import counted

if TYPE_CHECKING:  # they import torch
    import numpy as np

    from v2idetr.data.coco_vid import SplitData

NAME = "lesion_groups"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    for name in ("plain", "teacher"):
        add(f"--{name}", type=Path, nargs="+", required=True, metavar="FOLDER", help="one per seed")
    add(
        "--other",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "FOLDER"),
        help="name and folders of a further detector; may be given several times",
    )
    add("--split", required=True, metavar="NAME", help="val, or the name of a test split")
    add("--rule", default="iou50", metavar="NAME", help="rule for a found lesion (default iou50)")
    add("--events", type=Path, metavar="FILE", help="generator_frames.json of synthetic video")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the two files")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; returns 2 after a user's error."""
    options = parse(arguments)
    ignore_torch_jit()
    try:
        detectors = named_folders(options)
        check_writable(options.output)
        content = compare(detectors, options.split, options.rule, options.events)
        options.output.mkdir(parents=True, exist_ok=True)
        from v2idetr.atomic_file import write_text_atomically

        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
        write_text_atomically(options.output / f"{NAME}.json", text + "\n")
        write_text_atomically(options.output / f"{NAME}.md", to_markdown(content))
    except ValueError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{NAME}: {explain_os_error(error)}", file=sys.stderr)
        return 1
    print((options.output / f"{NAME}.md").read_text(encoding="utf-8"))
    return 0


def named_folders(options: argparse.Namespace) -> dict[str, list[Path]]:
    """Folders by detector, the plain one and the teacher first.

    Raises:
        ValueError: a name is missing or repeated, or the numbers of folders differ.
    """
    found = {"plain": options.plain, "teacher": options.teacher}
    for name, *folders in options.other:
        if name in found or not folders:
            raise ValueError(f"--other {name}: give a new name, followed by folders.")
        found[name] = [Path(folder) for folder in folders]
    counts = {name: len(folders) for name, folders in found.items()}
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"Give the same number of folders (seeds) for all detectors, not {given}.")
    return found


def compare(
    detectors: dict[str, list[Path]], split_name: str, rule: str, events_file: Path | None
) -> dict[str, Any]:
    """Counts by group, summed over the seeds.

    Raises:
        ValueError: a folder has no evaluation of this split or rule, detectors were evaluated on
            different data, or frames cannot be read.
    """
    import numpy as np

    from v2idetr.data.frame_files import read_frame
    from v2idetr.evaluation.lesion_groups import describe_lesions, group_lesions, read_events

    split = split_of(next(iter(detectors.values()))[0], split_name)
    events = None if events_file is None else read_events(events_file)

    def read(record: Any) -> Any:
        return read_frame(record["file_name"], height=record["height"], width=record["width"])

    lesions = describe_lesions(split, read, events)
    if not lesions:
        raise ValueError(f"--split {split_name}: has no lesions.")
    found = {
        name: np.stack([hits(folder, split, split_name, rule) for folder in folders])
        for name, folders in detectors.items()
    }
    won = found["teacher"] & ~found["plain"]
    rows = []
    for measure, groups in group_lesions(lesions).items():
        for title, members in groups.items():
            rows.append(
                {
                    "measure": measure,
                    "group": title,
                    "lesions": int(members.sum()),
                    "found": {name: int(hit[:, members].sum()) for name, hit in found.items()},
                    "won_by_teacher": int(won[:, members].sum()),
                    "of_these": {
                        name: int((hit & won)[:, members].sum())
                        for name, hit in found.items()
                        if name not in ("plain", "teacher")
                    },
                }
            )
    folders = {name: [str(path) for path in paths] for name, paths in detectors.items()}
    seeds = len(detectors["plain"])
    return {"split": split_name, "rule": rule, "seeds": seeds, "detectors": folders, "rows": rows}


def split_of(folder: Path, name: str) -> SplitData:
    """A split on which a stage was evaluated.

    Raises:
        ValueError: its config has no split with this name.
    """
    from v2idetr.config.load import load_config
    from v2idetr.data.coco_vid import load_split

    config = folder / "config.yaml"
    if not config.exists():  # of --eval-only, beside the stage
        config = folder.parent / "config.yaml"
    if not config.exists():
        raise ValueError(f"{folder}: is not the folder of a stage: it has no config.yaml.")
    data = load_config(config).data
    splits = {"val": data.val, **data.test}
    if name not in splits:
        raise ValueError(f"--split {name}: the splits of {config} are {', '.join(splits)}.")
    return load_split(
        splits[name].json,
        splits[name].image_root,
        on_bad_box=data.on_bad_box,
        class_names=list(data.class_names),
        together="frame",
    )


def hits(folder: Path, split: SplitData, name: str, rule: str) -> np.ndarray:
    """Mask of the lesions that a detector finds at the threshold of its evaluation.

    Raises:
        ValueError: see `compare`.
    """
    from v2idetr.atomic_file import read_record
    from v2idetr.evaluation.frames import label_frames
    from v2idetr.evaluation.lesion_groups import found_lesions
    from v2idetr.evaluation.predictions import read_predictions

    try:
        thresholds = read_record(folder / "evaluation.json")["thresholds"]
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: has no evaluation.json; evaluate it first.") from error
    if rule not in thresholds:
        raise ValueError(f"--rule {rule}: {folder} was evaluated by {', '.join(thresholds)}.")
    predictions = read_predictions(folder / f"predictions_{name}.json.gz", split)
    return found_lesions(label_frames(split, predictions, name=name), rule, thresholds[rule])


def to_markdown(content: dict[str, Any]) -> str:
    """The tables as Markdown."""
    from tabulate import tabulate

    def table(rows: Sequence[dict[str, Any]]) -> str:
        lines = [_line(row, content) for row in rows]
        return tabulate(lines, headers="keys", tablefmt="pipe", disable_numparse=True)

    videos = [row for row in content["rows"] if row["measure"] == "video"]
    others = [row for row in content["rows"] if row["measure"] != "video"]
    return (
        f"# Found lesions: {content['split']}\n\n"
        f"Rule {content['rule']}, each detector at its own threshold; "
        f"{counted(content['seeds'], 'seed')}. In percent of the lesions, or of those that the "
        "teacher finds and the plain detector misses.\n\n"
        f"{table(others)}\n\n## By video\n\n{table(videos)}\n"
    )


def _line(row: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Cells of a row by heading."""
    total = row["lesions"] * content["seeds"]
    line = {"": row["measure"], "group": row["group"], "lesions": row["lesions"]}
    line |= {f"recall, {name}": _percent(n, total) for name, n in row["found"].items()}
    line["teacher finds, plain misses"] = row["won_by_teacher"]
    won = row["won_by_teacher"]
    return line | {f"of these, {name}": _percent(n, won) for name, n in row["of_these"].items()}


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


if __name__ == "__main__":
    sys.exit(main())
