#!/usr/bin/env python3
"""SUN-SEG -> train.json, val.json, test_easy.json, test_hard.json, one video per clip.

    python datasets/prepare_sunseg.py --source data/SUN-SEG --output data/sunseg

Test is as published; a clip's `group` is "seen" for cases of TrainDataset, else "unseen".
Validation is an even tenth of the cases of TrainDataset. Boxes come from
Detection/bbox_annotation.json: files from before 2023-01-30 have x and y swapped, so the order is
measured against the masks of GT.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from v2i_runtime.image_files import image_names
from v2idetr.data.audit import Findings
from v2idetr.prepare.annotations import Frame, Video, even_share, evenly_spaced
from v2idetr.prepare.command_line import check_folder, converter_parser, numbers_of, run_converter
from v2idetr.prepare.sun_names import case_number, in_temporal_order, lesion_free_videos
from v2idetr.prepare.sunseg_boxes import ORDERS, add_boxes

LAYOUT = """\
  TrainDataset/Frame/<clip>/*.jpg                       clips case<N> or case<N>_<M>
  TrainDataset/GT/<clip>/*.png
  TrainDataset/Detection/bbox_annotation.json
  TestEasyDataset/Seen/..., TestEasyDataset/Unseen/..., TestHardDataset/...   the same
The frames are SUN's: SUN-SEG's reorganize script puts them into Frame/."""
TRAIN = "TrainDataset"
TESTS = {"test_easy": "TestEasyDataset", "test_hard": "TestHardDataset"}
VAL_SHARE = 0.1  # of the cases of TrainDataset, or of the lesion-free cases
TEST_SHARE = 0.2  # of the lesion-free cases


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    parser = converter_parser(__doc__, source="folder with TrainDataset/, TestEasyDataset/ ...")
    add = parser.add_argument
    add(
        "--boxes",
        choices=("json", "mask"),
        default="json",
        help="from bbox_annotation.json (default), or one for each connected part of a mask",
    )
    add(
        "--box-order",
        choices=("auto", *ORDERS),
        default="auto",
        help="order in bbox_annotation.json (default auto: measured against the masks)",
    )
    add(
        "--val-cases",
        metavar="LIST",
        help="cases of TrainDataset for validation, such as 3,8-10 (default: an even tenth)",
    )
    add(
        "--negatives",
        type=Path,
        metavar="DIR",
        help="SUN's lesion-free part, with case<N> folders in it or in its subfolders: an "
        "even tenth of its cases goes to val, a fifth to test_negative.json, the rest to train",
    )
    return parser.parse_args(arguments)


def read_splits(options: argparse.Namespace, notes: Findings) -> dict[str, list[Video]]:
    """Videos by split; omissions are noted."""
    source: Path = options.source
    check_folder(source, [(source / TRAIN / "Frame").is_dir()], LAYOUT)
    folders = find_folders(source, notes)
    tests = {part: read_folder(source / part, source, options, notes) for part in folders}
    train = read_folder(source / TRAIN, source, options, notes)
    name_groups(train, tests, notes)
    val_cases = choose_val(train, tests, options.val_cases, notes)
    ordered = {
        "train": [v for v in train if case_number(v.name) not in val_cases],
        "val": [v for v in train if case_number(v.name) in val_cases],
    }
    for folder, videos in tests.items():
        ordered.setdefault(folders[folder], []).extend(videos)
    if options.negatives is not None:
        add_negatives(ordered, options.negatives, source, notes)
    return ordered


def find_folders(source: Path, notes: Findings) -> dict[str, str]:
    """Folders of test clips with their splits; omissions are noted."""
    folders: dict[str, str] = {}
    for split, name in TESTS.items():
        for part in (f"{name}/Seen", f"{name}/Unseen", name):
            if not (source / part / "Frame").is_dir():
                if (source / part / "GT").is_dir():
                    notes.add("folder with GT, but without Frame, is left out", part)
            elif part == name and split in folders.values():
                notes.add("Frame beside Seen and Unseen, of the first release, is left out", part)
            else:
                folders[part] = split
    return folders


def read_folder(
    folder: Path, source: Path, options: argparse.Namespace, notes: Findings
) -> list[Video]:
    """The clips of one of SUN-SEG's folders, each a video, with boxes."""
    clips = sorted((p for p in (folder / "Frame").iterdir() if p.is_dir()), key=_clip_key)
    videos = []
    for clip in clips:
        root = clip.relative_to(source)
        ordered = in_temporal_order(image_names(clip), str(root), notes)
        frames = [Frame((root / name).as_posix(), scene_id=scene) for name, scene in ordered]
        if frames:
            videos.append(Video(clip.name, frames))
        else:
            notes.add("clip without frames is left out", str(root))
    where = folder.relative_to(source).as_posix()
    add_boxes(videos, folder, where, kind=options.boxes, order=options.box_order, notes=notes)
    return [video for video in videos if video.frames]


def _clip_key(clip: Path) -> list[int]:
    return [case_number(clip.name), *map(int, clip.name.split("_")[1:])]


def name_groups(train: list[Video], tests: Mapping[str, list[Video]], notes: Findings) -> None:
    """Set ``group`` of the test clips, from the folder or else from the cases of TrainDataset.

    A clip in Unseen with a case of TrainDataset would be a leak and is noted.
    """
    trained = {case_number(video.name) for video in train}
    for folder, videos in tests.items():
        for video in videos:
            known = case_number(video.name) in trained
            by_case = "seen" if known else "unseen"
            video.group = by_case if folder in TESTS.values() else Path(folder).name.lower()
            if video.group != by_case:
                notes.add(
                    f"clip in {video.group.capitalize()}, but its case is "
                    f"{'in' if known else 'not in'} TrainDataset",
                    f"{folder}: {video.name}",
                )


def choose_val(
    train: list[Video], tests: Mapping[str, list[Video]], text: str | None, notes: Findings
) -> set[int]:
    """Cases of TrainDataset for validation, as given or else an even tenth.

    Cases without a Seen test clip are preferred, so that seen cases are trained on.
    """
    cases = sorted({case_number(video.name) for video in train})
    if text is not None:
        chosen = set(numbers_of(text))
        if not chosen or not chosen < set(cases):
            raise ValueError(
                f"--val-cases {text}: choose some, not all, of TrainDataset's cases {cases}"
            )
        return chosen
    tested = {case_number(video.name) for videos in tests.values() for video in videos}
    wanted = max(1, round(VAL_SHARE * len(cases)))
    free = [case for case in cases if case not in tested]
    if len(free) < wanted:
        notes.add(
            "validation cases that have test clips in Seen: these were not trained on",
            f"only {len(free)} of {len(cases)} training cases have none",
        )
        free = cases
    if len(cases) < 2:
        raise ValueError("TrainDataset has one case only: none is left for validation")
    chosen = evenly_spaced(free, wanted)
    notes.add("cases of TrainDataset for validation", ", ".join(map(str, chosen)))
    return set(chosen)


def add_negatives(
    splits: dict[str, list[Video]], folder: Path, source: Path, notes: Findings
) -> None:
    """Spread SUN's lesion-free cases over train, val and a split ``test_negative``."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder (--negatives)")
    parents = [folder, *sorted(p for p in folder.glob("*") if p.is_dir())]
    cases = lesion_free_videos(parents, source, notes)
    check_folder(folder, cases, "  case<N>/*.jpg, or sundatabase_negative_part1/case<N>/*.jpg ...")
    numbers = list(cases)
    if len(numbers) < 3:
        raise ValueError(
            f"{folder}: {len(numbers)} lesion-free cases, but train, val and test need one each; "
            "give more, or omit --negatives"
        )
    test = even_share(numbers, TEST_SHARE)
    rest = [number for number in numbers if number not in test]
    val = even_share(rest, VAL_SHARE, len(numbers))
    for number, videos in cases.items():
        split = "test_negative" if number in test else "val" if number in val else "train"
        splits.setdefault(split, []).extend(videos)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, or exit with the reason for a failure."""
    print(run_converter(__file__, parse(arguments), read_splits, "SUN-SEG", ["polyp"]))


if __name__ == "__main__":
    main()
