#!/usr/bin/env python3
"""SUN-SEG -> train.json, val.json, test_easy.json, test_hard.json.

    python datasets/prepare_sunseg.py --source data/SUN-SEG --output data/sunseg

Validation is a part of TrainDataset, by case. Test clips have a `group`: "seen" ones are of cases
of TrainDataset. Boxes come from Detection/bbox_annotation.json: files from before 2023-01-30 have x
and y swapped, so the order is measured against the masks of GT.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2idetr.data.audit import Findings
from v2idetr.data.conversion import (
    Frame,
    Lesion,
    Video,
    even_share,
    evenly_spaced,
    in_threads,
    picture_files,
)
from v2idetr.data.converter_program import check_folder, converter_parser, numbers_of, run_converter
from v2idetr.data.masks import boxes_of_mask, read_mask
from v2idetr.data.sun_names import case_number, in_time, lesion_free_videos

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

# What the four numbers of a box have meant, by file: to x, y, w, h.
ORDERS = {
    "xywh": lambda a, b, c, d: [a, b, c, d],
    "yxwh": lambda a, b, c, d: [b, a, c, d],  # until 2023-01-30
    "yxhw": lambda a, b, c, d: [b, a, d, c],
    "xyxy": lambda a, b, c, d: [a, b, c - a, d - b],  # what the documentation once said
}
SAMPLE = 60  # masks that are compared with boxes to find their order
# Mean IoU of the right order, its lead over the next, and what needs none (boxes on the diagonal).
LEAST_IOU, LEAST_LEAD, SURE_IOU = 0.5, 0.01, 0.8


@dataclass
class Labels:
    """Boxes of one frame, and the (width, height) that they were made for."""

    boxes: list[list[Any]]
    size: tuple[int, int] | None = None


Boxes = dict[tuple[str, str], Labels]  # by (clip, frame stem)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line to namespace."""
    parser = converter_parser(__doc__, source="folder with TrainDataset, TestEasyDataset ...")
    add = parser.add_argument
    add(
        "--boxes",
        choices=("json", "mask"),
        default="json",
        help="from bbox_annotation.json, or one for each connected part of a mask",
    )
    add(
        "--box-order",
        choices=("auto", *ORDERS),
        default="auto",
        help="order in bbox_annotation.json; auto measures it against the masks",
    )
    add("--val-cases", metavar="LIST", help="cases of TrainDataset for validation, such as 3,8-10")
    add(
        "--negatives",
        type=Path,
        metavar="DIR",
        help="SUN's lesion-free part, with case<N> folders (or with folders that have them): an "
        "even tenth of its cases goes to val, a fifth to test_negative.json, the rest to train",
    )
    return parser.parse_args(arguments)


def read_splits(options: argparse.Namespace, notes: Findings) -> dict[str, list[Video]]:
    """The videos of each split; what is left out is noted."""
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
    """Folders of test clips, each with its split; those that are left out are noted."""
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
        ordered = in_time(picture_files(clip), str(root), notes)
        frames = [Frame((root / name).as_posix(), scene_id=scene) for name, scene in ordered]
        if frames:
            videos.append(Video(clip.name, frames))
        else:
            notes.add("clip without frames is left out", str(root))
    where = folder.relative_to(source).as_posix()
    boxes_json = find_boxes(folder) if options.boxes == "json" else None
    if boxes_json is None:
        if options.boxes == "json":
            notes.add("no Detection/bbox_annotation.json: boxes from masks", where)
        boxes = boxes_from_masks(videos, folder / "GT", where, notes)
    else:
        boxes = boxes_from_json(boxes_json, videos, folder / "GT", options.box_order, notes)
    for video in videos:
        video.frames = [frame for frame in video.frames if _key(video, frame) in boxes]
        for frame in video.frames:
            found = boxes[_key(video, frame)]
            frame.boxes_for = found.size
            instance = case_number(video.name) if len(found.boxes) == 1 else None
            frame.lesions = [Lesion(box, instance_id=instance) for box in found.boxes]
    return [video for video in videos if video.frames]


def _clip_key(clip: Path) -> list[int]:
    return [case_number(clip.name), *map(int, clip.name.split("_")[1:])]


def _key(video: Video, frame: Frame) -> tuple[str, str]:
    return video.name, Path(frame.file_name).stem


def find_boxes(folder: Path) -> Path | None:
    """bbox_annotation.json of a folder; the first release has it above Seen and Unseen."""
    for parent in (folder, folder.parent):
        path = parent / "Detection" / "bbox_annotation.json"
        if path.is_file():
            return path
    return None


# ---------------------------------------------------------------- boxes from the JSON


def boxes_from_json(
    path: Path, videos: Sequence[Video], masks: Path, order: str, notes: Findings
) -> Boxes:
    """Boxes xywh of every frame of ``videos``; a frame that the file does not list is noted.

    A frame under ``images`` without an entry under ``annotation`` is lesion-free.
    """
    listed = read_json(path, notes)
    wanted = [_key(video, frame) for video in videos for frame in video.frames]
    where = f"{path.parent.parent.name}/Detection/bbox_annotation.json"
    for key in [key for key in wanted if key not in listed]:
        notes.add("frame that the JSON does not list is left out", f"{where}: {'/'.join(key)}")
    boxes = {key: listed[key] for key in wanted if key in listed}
    if order == "auto":
        order = measure_order(path, boxes, masks, notes)
    to_xywh = ORDERS[order]
    for labels in boxes.values():
        labels.boxes = [to_xywh(*box) if len(box) == 4 else box for box in labels.boxes]
    return boxes


def read_json(path: Path, notes: Findings) -> Boxes:
    """Boxes as the file has them, by (clip, frame stem); its key is ``annotation``, singular."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {image["id"]: image for image in content["images"]}
        key = "annotation" if "annotation" in content else "annotations"
        boxes: Boxes = {
            _image_key(image): Labels([], (int(image["width"]), int(image["height"])))
            for image in images.values()
        }
        for annotation in content[key]:
            image = images.get(annotation["id"])
            if image is None:
                notes.add("box of a frame that the JSON does not list", str(annotation))
                continue
            boxes[_image_key(image)].boxes.append(list(annotation["bbox"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is not SUN-SEG's bbox_annotation.json ({type(error).__name__}: {error}); "
            "unpack it again, or take the boxes from the masks with --boxes mask"
        ) from None
    return boxes


def _image_key(image: Mapping[str, str]) -> tuple[str, str]:
    return image["case_name"], image["file_name"].removesuffix(".jpg")


def measure_order(path: Path, boxes: Boxes, masks: Path, notes: Findings) -> str:
    """The order of the four numbers that fits the masks best.

    Raises ValueError when there are no masks to compare with, or none of the orders fits.
    """
    keys = [key for key, found in boxes.items() if [len(box) for box in found.boxes] == [4]]
    sample = [key for key in keys if (masks / key[0] / f"{key[1]}.png").is_file()]
    sample = evenly_spaced(sample, min(SAMPLE, len(sample)))
    scores = dict.fromkeys(ORDERS, 0.0)
    compared = 0
    for clip, stem in sample:
        parts, _ = boxes_of_mask(read_mask(masks / clip / f"{stem}.png"))
        if len(parts) == 1:
            compared += 1
            for order, to_xywh in ORDERS.items():
                scores[order] += _iou(to_xywh(*boxes[clip, stem].boxes[0]), parts[0])
    way_out = "say which with --box-order, or take the boxes from the masks with --boxes mask"
    if not compared:
        if not keys:
            return "xywh"
        raise ValueError(
            f"{path}: whether its boxes are [x, y, w, h] or [y, x, w, h] depends on the release, "
            f"and there are no masks under {masks} to tell: {way_out}"
        )
    (order, best), (_, second) = sorted(scores.items(), key=lambda item: -item[1])[:2]
    iou, lead = best / compared, (best - second) / compared
    if iou < LEAST_IOU or (iou < SURE_IOU and lead < LEAST_LEAD):
        found = ", ".join(f"{name} {score / compared:.2f}" for name, score in scores.items())
        raise ValueError(
            f"{path}: the order of the numbers of its boxes is not clear from {compared} masks "
            f"(mean IoU: {found}): {way_out}"
        )
    notes.add(
        f"order of the boxes is {order}{'' if order == 'xywh' else ': put right'}",
        f"{path.parent.parent.name}: mean IoU with {compared} masks {iou:.2f}, "
        f"of the next order {iou - lead:.2f}",
    )
    return order


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / max(a[2] * a[3] + b[2] * b[3] - common, 1e-9) if a[2] > 0 < a[3] else 0.0


# ---------------------------------------------------------------- boxes from the masks


def boxes_from_masks(videos: Sequence[Video], masks: Path, where: str, notes: Findings) -> Boxes:
    """One box for each connected part of a frame's mask; frames without a mask are noted."""
    keys = [_key(video, frame) for video in videos for frame in video.frames]

    def read(key: tuple[str, str]) -> tuple[Labels, int] | str:
        try:
            mask = read_mask(masks / key[0] / f"{key[1]}.png")
        except FileNotFoundError:
            return "frame without a mask is left out"
        except (OSError, SyntaxError, ValueError):
            return "frame with a mask that cannot be read is left out"
        found, specks = boxes_of_mask(mask)
        return Labels(found, (mask.shape[1], mask.shape[0])), specks

    boxes: Boxes = {}
    for key, found in zip(keys, in_threads(read, keys, f"masks of {where}"), strict=True):
        if isinstance(found, str):
            notes.add(found, f"{where}/{'/'.join(key)}")
            continue
        boxes[key], specks = found
        if specks:
            notes.add("mask with specks, which give no box", f"{where}/{'/'.join(key)}: {specks}")
    return boxes


# ---------------------------------------------------------------- splits


def name_groups(train: list[Video], tests: Mapping[str, list[Video]], notes: Findings) -> None:
    """Set ``group`` of the test clips: as the folder says, else by whether the case is trained on.

    A clip in Unseen whose case is in TrainDataset would be a leak: noted.
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
    """Cases of TrainDataset for validation: those asked for, else an even tenth.

    Cases without a Seen test clip come first, so that what is called seen was trained on.
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
        free = cases
        notes.add(
            "validation cases that have test clips in Seen: these were not trained on",
            f"only {len(free)} of {len(cases)} training cases have none",
        )
    if len(cases) < 2:
        raise ValueError("TrainDataset has one case only: nothing is left to validate with")
    chosen = evenly_spaced(free, wanted)
    notes.add("cases of TrainDataset for validation", ", ".join(map(str, chosen)))
    return set(chosen)


def add_negatives(
    splits: dict[str, list[Video]], folder: Path, source: Path, notes: Findings
) -> None:
    """Spread SUN's lesion-free cases over train, val and a split ``test_negative``."""
    parents = [folder, *sorted(p for p in folder.glob("*") if p.is_dir())]
    cases = lesion_free_videos(parents, source, notes)
    check_folder(folder, cases, "  case<N>/*.jpg, or sundatabase_negative_part1/case<N>/*.jpg ...")
    numbers = list(cases)
    if len(numbers) < 3:
        raise ValueError(
            f"{folder}: {len(numbers)} lesion-free cases, but train, val and test need one each; "
            "give more, or leave --negatives away"
        )
    test = even_share(numbers, TEST_SHARE)
    rest = [number for number in numbers if number not in test]
    val = even_share(rest, VAL_SHARE, len(numbers))
    for number, videos in cases.items():
        split = "test_negative" if number in test else "val" if number in val else "train"
        splits.setdefault(split, []).extend(videos)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert; exit with the reason when that is not possible."""
    print(run_converter(__file__, parse(arguments), read_splits, "SUN-SEG", ["polyp"]))


if __name__ == "__main__":
    main()
