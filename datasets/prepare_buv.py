#!/usr/bin/env python3
"""BUV (breast ultrasound, MICCAI 2022) -> train.json, val.json, test.json, one video a folder.

    python datasets/prepare_buv.py --source data/BUV --output data/buv

Test is the published validation set, which the literature reports on. Validation, for score
thresholds and the best checkpoint, is an even tenth of the published training videos. Negative
widths and heights are swapped corners and are corrected. Known duplicates and mislabelled videos
are left out. For results comparable with the literature, keep both faults:

    python datasets/prepare_buv.py --source data/BUV --output data/buv_raw --raw --val-share 0
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from v2i_runtime.image_files import natural_key
from v2idetr.data.audit import Findings
from v2idetr.data.text_files import read_text
from v2idetr.prepare.annotations import Frame, Lesion, Video, even_share
from v2idetr.prepare.command_line import check_folder, converter_parser, run_converter

LAYOUT = """\
  rawframes/benign/<id>/000000.png ...   rawframes/malignant/<id>/000000.png ...
  imagenet_vid_train_15frames.json and imagenet_vid_val.json (or the same in annotations/, with
  instances_ before; or trainval.json and test.json)"""
ANNOTATIONS = (
    ("imagenet_vid_train_15frames.json", "imagenet_vid_val.json"),
    (
        "annotations/instances_imagenet_vid_train_15frames.json",
        "annotations/instances_imagenet_vid_val.json",
    ),
    ("trainval.json", "test.json"),
)
CLASSES = ["benign", "malignant"]

# Ids without the leading x of some folders. Sources: the README of CVA-Net, which published the
# data (2023-03-25), reports of its users, and audits of the pixels by others.
MISLABELLED = "labelled benign, correct is malignant (the authors' README)"
EXCLUDED = {
    "66ef02e7f1b9a0ef": "the same video as malignant/x3b88488853e8b7d1 (the authors' README)",
    "63c9ba1377f35bf6": MISLABELLED,
    "5a1c46ec6377e946": MISLABELLED,
    "1282311c38f808f": "106 of 110 frames are those of malignant/x9c1c965d274c457, a test video",
    "786ebd9dada09453": "frames are those of malignant/3f88a121e5e77ebe (report of a user)",
}
# One patient: never on both sides of a split.
SAME_PATIENT = ("63c9ba1377f35bf6", "5a1c46ec6377e946", "2390fbea047347b", "7a39ab5d4970bf89")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    parser = converter_parser(__doc__, source="folder with rawframes/ and the JSON files")
    add = parser.add_argument
    add(
        "--val-share",
        type=float,
        default=0.1,
        help="share of the training videos of each class for validation (default 0.1; 0: none)",
    )
    add(
        "--raw",
        action="store_true",
        help="keep all published boxes and videos, to reproduce results of the literature",
    )
    return parser.parse_args(arguments)


def read_splits(options: argparse.Namespace, notes: Findings) -> dict[str, list[Video]]:
    """Videos by split; omissions are noted."""
    if not 0 <= options.val_share < 1:
        raise ValueError(f"--val-share {options.val_share}: must lie in [0, 1)")
    source: Path = options.source
    bases = [source, *sorted(p for p in source.glob("*") if p.is_dir())]
    found = [
        (base, base / train, base / test)
        for base in bases
        for train, test in ANNOTATIONS
        if (base / train).is_file() and (base / test).is_file() and (base / "rawframes").is_dir()
    ]
    check_folder(source, found, LAYOUT)
    base, train_json, test_json = found[0]
    root = (base / "rawframes").relative_to(source)
    train, test = (read_videos(path, root, notes) for path in (train_json, test_json))
    both = {video.name for video in train} & {video.name for video in test}
    for name in sorted(both):
        notes.add("video is in the training and in the published validation file", name)
    if not options.raw:
        train, test = exclude(train, test, notes)
    val_names = choose_val(train, options.val_share)
    splits = {
        "train": [video for video in train if video.name not in val_names],
        "val": [video for video in train if video.name in val_names],
        "test": test,
    }
    if not splits["val"]:
        del splits["val"]
        notes.add("no validation split", "thresholds and the best checkpoint need another")
    return splits


def read_videos(path: Path, root: Path, notes: Findings) -> list[Video]:
    """Videos of a published file; a video is a folder in rawframes, which is ``root``."""
    text = read_text(path)
    try:
        content = json.loads(text)
        categories = {c["id"]: CLASSES.index(c["name"]) + 1 for c in content["categories"]}
        lesions: dict[Any, list[Lesion]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            lesion = read_lesion(annotation, categories)
            if annotation["image_id"] in lesions:
                lesions[annotation["image_id"]].append(lesion)
            else:
                notes.add("box of an unknown image is not used", f"{path.name}: {annotation}")
        frames = [
            (image["file_name"], lesions[image["id"]], (image["width"], image["height"]))
            for image in content["images"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is not BUV's annotation file ({type(error).__name__}: {error})"
        ) from None
    videos: dict[str, Video] = {}
    for file_name, boxes, size in sorted(frames, key=lambda frame: natural_key(frame[0])):
        folder = Path(file_name).parent
        name = "/".join(folder.parts[-2:])
        digits = re.search(r"(\d+)$", Path(file_name).stem)
        if digits is None:
            raise ValueError(f"{path}: file_name {file_name!r} has no frame number at its end")
        video = videos.setdefault(name, Video(name, []))
        video.frames.append(
            Frame((root / file_name).as_posix(), boxes, frame_index=int(digits[1]), boxes_for=size)
        )
        if not boxes:  # every frame of BUV has a lesion
            notes.add("frame without a box counts as lesion-free", file_name)
        for lesion in boxes:
            if CLASSES[lesion.category_id - 1] != name.split("/")[0]:
                notes.add("box of another class than its video's folder", file_name)
    return list(videos.values())


def read_lesion(annotation: Mapping[str, Any], categories: Mapping[Any, int]) -> Lesion:
    """A box with the published area, which is negative for a negative width or height."""
    return Lesion(
        annotation["bbox"],
        category_id=categories[annotation["category_id"]],
        instance_id=annotation.get("instance_id"),
        area=annotation.get("area"),
    )


def bare_id(name: str) -> str:
    """``benign/x66ef02e7f1b9a0ef`` -> ``66ef02e7f1b9a0ef``."""
    return name.rpartition("/")[2].lower().removeprefix("x")


def exclude(
    train: Sequence[Video], test: Sequence[Video], notes: Findings
) -> tuple[list[Video], list[Video]]:
    """Videos without known faults, and training videos without patients of the test set."""
    for split, videos in (("train", train), ("test", test)):
        for video in videos:
            if bare_id(video.name) in EXCLUDED:
                notes.add(
                    "video with a known fault is left out",
                    f"{video.name} ({split}, {len(video.frames)} frames): "
                    f"{EXCLUDED[bare_id(video.name)]}",
                )
    test = [video for video in test if bare_id(video.name) not in EXCLUDED]
    train = [video for video in train if bare_id(video.name) not in EXCLUDED]
    tested = {bare_id(video.name) for video in test}
    kept = []
    for video in train:
        same = set(SAME_PATIENT) & tested if bare_id(video.name) in SAME_PATIENT else set()
        if video.name in {v.name for v in test} or same:
            reason = "same patient as a test video" if same else "in test too"
            notes.add("training video is left out", f"{video.name}: {reason}")
        else:
            kept.append(video)
    return kept, test


def choose_val(train: Sequence[Video], share: float) -> set[str]:
    """Names of an even share of the training videos of each class; patients are not split."""
    chosen: set[str] = set()
    if not share:
        return chosen
    for label in CLASSES:
        names = sorted(
            video.name
            for video in train
            if video.name.startswith(f"{label}/") and bare_id(video.name) not in SAME_PATIENT
        )
        chosen |= set(even_share(names, share))
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, or exit with the reason for a failure."""
    options = parse(arguments)
    boxes = "raw" if options.raw else "clip"
    print(run_converter(__file__, options, read_splits, "BUV", CLASSES, boxes))


if __name__ == "__main__":
    main()
