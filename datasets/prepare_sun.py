#!/usr/bin/env python3
"""SUN Colonoscopy Video Database -> train.json, val.json, test.json, one video a case.

    python datasets/prepare_sun.py --source data/SUN --output data/sun

SUN has no official split. The default is by case: test is every fifth case (20 %) in order of
number, validation an even tenth of all, from the others; lesion-free cases likewise. Class 0 of
SUN's rows is the polyp; rows of class 1 (non-polyp) give no box and are counted. For the clips of
the paper, see prepare_sunseg.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from v2i_runtime.image_files import image_names
from v2idetr.data.audit import Findings
from v2idetr.data.text_files import read_text
from v2idetr.prepare.annotations import Frame, Lesion, Video, even_share
from v2idetr.prepare.command_line import check_folder, converter_parser, numbers_of, run_converter
from v2idetr.prepare.sun_names import case_folders, in_temporal_order, lesion_free_videos

LAYOUT = """\
  sundatabase_positive_part1/case<N>/*.jpg   (and _part2; or one folder sundatabase_positive)
  sundatabase_positive_part1/annotation_txt/case<N>.txt
  sundatabase_negative_part1/case<N>/*.jpg   (_part1 to _part4; may be missing)"""
POLYP, NON_POLYP = 0, 1
TEST_SHARE, VAL_SHARE = 0.2, 0.1

Cases = dict[int, list[Video]]
Boxes = dict[str, list[Lesion]]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    parser = converter_parser(__doc__, source="folder with sundatabase_positive_part1/ ...")
    add = parser.add_argument
    add(
        "--val-cases",
        metavar="LIST",
        help="cases for validation, such as 4,14-16,n2: numbers or ranges, lesion-free ones with n "
        "(default: an even tenth)",
    )
    add(
        "--test-cases",
        metavar="LIST",
        help="cases for test, in the same form (default: an even fifth)",
    )
    add("--no-negatives", action="store_true", help="leave the lesion-free part out")
    return parser.parse_args(arguments)


def read_splits(options: argparse.Namespace, notes: Findings) -> dict[str, list[Video]]:
    """Videos by split; omissions are noted."""
    source: Path = options.source
    folders = sorted(source.iterdir()) if source.is_dir() else []
    folders = [folder for folder in folders if folder.is_dir()]
    positive = [folder for folder in folders if "positive" in folder.name.lower()]
    negative = [folder for folder in folders if "negative" in folder.name.lower()]
    texts = [folder / "annotation_txt" for folder in positive]
    check_folder(source, (path for text in texts for path in text.glob("case*.txt")), LAYOUT)
    cases = positive_cases(positive, texts, source, notes)
    free: Cases = {}
    if not options.no_negatives:
        free = lesion_free_videos(negative, source, notes)
    if not free:
        notes.add("no lesion-free cases", "false alarms on lesion-free video cannot be measured")
    return choose(cases, free, options.val_cases, options.test_cases)


def positive_cases(
    folders: Sequence[Path], texts: Sequence[Path], source: Path, notes: Findings
) -> Cases:
    """One video per case by case number, with the boxes of its text file."""
    files = {path.stem: path for text in texts for path in sorted(text.glob("case*.txt"))}
    cases: Cases = {}
    for folder in folders:
        for number, case in case_folders(folder).items():
            text = files.pop(case.name, None)
            if number in cases:
                raise ValueError(f"{case}: {case.name} is in two folders; remove one of them")
            if text is None:
                notes.add("case without a text file is left out", str(case.relative_to(source)))
                continue
            video = read_case(number, case, read_rows(text, notes), source, notes)
            if video.frames:
                cases[number] = [video]
    for name in files:
        notes.add("case with a text file, but no frames (is a part not unpacked?)", name)
    return dict(sorted(cases.items()))


def read_case(number: int, folder: Path, boxes: Boxes, source: Path, notes: Findings) -> Video:
    """Frames of a case in temporal order; a case of SUN has one polyp, its instance."""
    root = folder.relative_to(source)
    frames = []
    for name, scene in in_temporal_order(image_names(folder), folder.name, notes):
        lesions = boxes.pop(name, None)
        if lesions is None:
            notes.add("frame of a positive case without a row is left out", f"{root / name}")
            continue
        for lesion in lesions:
            lesion.instance_id = number
        frames.append(Frame((root / name).as_posix(), lesions, scene_id=scene))
    for name in boxes:
        notes.add("row of a frame that is not on disk", f"{root / name}")
    return Video(folder.name, frames)


def read_rows(path: Path, notes: Findings) -> Boxes:
    """Lesions by frame name of rows ``name min_x,min_y,max_x,max_y,class [more boxes]``."""
    boxes: Boxes = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name, *fields = line.split()
        where = f"{path.name} line {number}"
        if not fields:
            notes.add("row without a box is not used", f"{where}: {line.strip()}")
        for field in fields:
            add_box(boxes, name, field, where, notes)
    return boxes


def add_box(boxes: Boxes, name: str, field: str, where: str, notes: Findings) -> None:
    """Add a frame and its box ``min_x,min_y,max_x,max_y,class``, if that is a lesion."""
    try:
        left, top, right, bottom, label = (int(float(value)) for value in field.split(","))
    except (ValueError, OverflowError):
        notes.add("row that cannot be read is not used", f"{where}: {name} {field}")
        return
    lesions = boxes.setdefault(name, [])
    if label == NON_POLYP:
        notes.add("box of class 1 (non-polyp) is no lesion", f"{where}: {field}")
    elif label != POLYP:
        notes.add("box of a class that SUN does not have is not used", f"{where}: {field}")
    elif any(lesion.bbox == [left, top, right - left, bottom - top] for lesion in lesions):
        notes.add("box is listed twice", f"{where}: {name} {field}")
    else:
        lesions.append(Lesion([left, top, right - left, bottom - top]))


def choose(
    cases: Cases, free: Cases, val_text: str | None, test_text: str | None
) -> dict[str, list[Video]]:
    """Splits by case, separately for positive and lesion-free cases: as given or evenly spaced."""
    splits: dict[str, list[Video]] = {"train": [], "val": [], "test": []}
    asked_val, asked_test = case_list(val_text, "--val-cases"), case_list(test_text, "--test-cases")
    for kind, known in ((0, cases), (1, free)):
        if not known:
            continue
        val, test = asked_val[kind], asked_test[kind]
        unknown = sorted({*val, *test} - known.keys())
        if unknown or set(val) & set(test):
            what = f"{unknown} do not exist" if unknown else f"{sorted(set(val) & set(test))} twice"
            raise ValueError(
                f"--val-cases, --test-cases: {('cases', 'lesion-free cases')[kind]} {what}; "
                f"there are {sorted(known)}"
            )
        if not test:
            test = even_share(sorted(known.keys() - set(val)), TEST_SHARE, len(known))
        if not val:
            val = even_share(sorted(known.keys() - set(test)), VAL_SHARE, len(known))
        for number, videos in known.items():
            split = "test" if number in test else "val" if number in val else "train"
            splits[split] += videos
    return splits


def case_list(text: str | None, flag: str) -> tuple[list[int], list[int]]:
    """``"4,14-16,n2"`` -> ([4, 14, 15, 16], [2]): positive and lesion-free cases."""
    parts = [part.strip() for part in (text or "").split(",")]
    try:
        positive = numbers_of(",".join(part for part in parts if not part.startswith("n")))
        free = numbers_of(",".join(part[1:] for part in parts if part.startswith("n")))
    except ValueError as error:
        raise ValueError(f"{flag} {text}: {error}") from None
    return positive, free


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, or exit with the reason for a failure."""
    print(run_converter(__file__, parse(arguments), read_splits, "SUN", ["polyp"]))


if __name__ == "__main__":
    main()
