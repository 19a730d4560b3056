"""COCO-VID JSON of one split <-> checked records, one Detectron2 dataset dict a frame.

    load_split      JSON and image folder -> SplitData, or one ValueError with all problems
    write_split     checked JSON of a converter, written completely or not at all

The file: ``info``, ``videos [{id, name, group?}]``, ``images [{id, file_name, width, height,
video_id, frame_index, scene_id?}]``, ``annotations [{id, image_id, category_id, bbox [x, y, w, h]
px, area?, iscrowd?, instance_id?}]``, ``categories [{id: 1..K, name}]``. ``frame_id``, as in
mmtracking's files, is read as ``frame_index``. Images without annotations are lesion-free frames;
without categories, frames that nobody has looked for lesions on. Further keys are left alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from v2idetr.atomic_file import write_text_atomically
from v2idetr.data.audit import AuditReport, BoxPolicy, audit_boxes
from v2idetr.data.frame_files import check_files
from v2idetr.data.schema import (
    Together,
    check_annotations,
    check_categories,
    check_clips,
    check_images,
    check_model_classes,
    check_videos,
    read_coco_vid,
)
from v2idetr.wording import counted

logger = logging.getLogger(__name__)

# Most frames decoded before a run starts, one per video.
MAX_FRAMES_DECODED = 40
# Value of info.box_policy in files that keep published boxes, bad ones included.
RAW = "raw"

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class SplitData:
    """One split after reading and checking.

    Attributes:
        class_names: class names by 0-based index.
        videos: video id -> entry of the JSON (``name`` and, optionally, ``group``).
        records: Detectron2 dataset dicts sorted by (video_id, frame_index): ``file_name`` absolute,
            ``height``, ``width``, ``image_id``, ``video_id``, ``frame_index``, ``scene_id`` and
            ``annotations`` [{bbox xywh px, bbox_mode, category_id 0-based, iscrowd, instance_id}].
        report: counts, and the treatment of bad boxes.
    """

    json_path: Path
    image_root: Path
    class_names: list[str]
    videos: dict[int, dict[str, Any]]
    records: list[dict[str, Any]]
    report: AuditReport


def load_split(
    json_path: PathLike,
    image_root: PathLike,
    *,
    on_bad_box: BoxPolicy = "raise",
    class_names: Sequence[str] | None = None,
    together: Together = "scene",
) -> SplitData:
    """Read one split; check its JSON, the existence of its files and a few frames.

    Args:
        json_path: COCO-VID JSON.
        image_root: base folder of each ``file_name``.
        on_bad_box: policy for boxes that are negative, empty, not finite or outside the frame.
        class_names: class names of the model, in order, if known.
        together: frames that can be in one clip and must have one size: "frame" for none, those of
            a "scene" or of a "video".

    Raises:
        ValueError: lists all problems by kind, with counts and the first few examples.
    """
    split = read_split(
        json_path,
        image_root,
        on_bad_box=on_bad_box,
        class_names=class_names,
        together=together,
    )
    if not split.report.problems:
        _decode_some(split)
    hint = ""
    if on_bad_box == "raise" and split.report.bad_boxes:
        hint = (
            "Bad boxes: set data.on_bad_box to clip or drop, or write a corrected copy with "
            "`python tools/check_data.py JSON --write-clipped OUT.json`."
        )
    split.report.problems.raise_if_any(str(json_path), hint)
    logger.info("%s", split.report.summary())
    if split.report.frames_left_without_box:
        logger.warning(
            "%s: %s lost all boxes to on_bad_box=%s: lesion-free from now on",
            json_path,
            counted(split.report.frames_left_without_box, "frame"),
            on_bad_box,
        )
    return split


def read_split(
    json_path: PathLike,
    image_root: PathLike,
    *,
    on_bad_box: BoxPolicy = "raise",
    class_names: Sequence[str] | None = None,
    together: Together = "scene",
) -> SplitData:
    """As ``load_split``, but problems stay in ``report.problems`` and no frame is decoded.

    Frames and annotations with problems are left out of the records. Raises ValueError only if
    nothing can be read: no file, no JSON, no such folder, missing keys, no frames.
    """
    json_path, image_root = Path(json_path), Path(image_root)
    _check_policy(on_bad_box)
    content = read_coco_vid(json_path)
    if not image_root.is_dir():
        raise ValueError(
            f"{image_root}: no such folder, but the frames of {json_path} should be in it "
            "(data.<split>.image_root in training); see datasets/README.md for the layout"
        )
    return split_of_content(
        content,
        json_path,
        image_root,
        on_bad_box=on_bad_box,
        class_names=class_names,
        together=together,
    )


def split_of_content(
    content: Mapping[str, Any],
    json_path: Path,
    image_root: Path,
    *,
    on_bad_box: BoxPolicy = "raise",
    class_names: Sequence[str] | None = None,
    together: Together = "scene",
    with_files: bool = True,
) -> SplitData:
    """As ``read_split``, from the content of the file.

    Args:
        content: what ``read_coco_vid`` returns.
        json_path, image_root: where it is from; ``image_root`` need not exist without files.
        on_bad_box, class_names, together: see ``load_split``.
        with_files: whether to check that the frames' files exist.
    """
    _check_policy(on_bad_box)
    report = AuditReport(source=str(json_path), policy=on_bad_box)
    names = check_categories(content["categories"], report.problems)
    check_model_classes(names, class_names, report.problems)
    videos = check_videos(content["videos"], report.problems)
    frames = check_images(content["images"], videos, report.problems)
    check_clips(frames, together, report)
    if with_files:
        check_files(frames, image_root, report)
    annotations = check_annotations(content["annotations"], frames, content, report.problems)
    annotations = audit_boxes(annotations, frames, report, on_bad_box)
    _count(report, videos, frames, annotations, names)
    records = _records(frames, annotations, image_root)
    return SplitData(json_path, image_root, names, videos, records, report)


def _check_policy(on_bad_box: str) -> None:
    if on_bad_box not in get_args(BoxPolicy):
        raise ValueError(f"on_bad_box={on_bad_box!r} is none of {', '.join(get_args(BoxPolicy))}")


def write_split(path: PathLike, **content: Any) -> None:
    """Check one split and write its JSON, completely or not at all; see :func:`split_text`.

    Raises:
        ValueError: lists all problems; nothing is written.
    """
    write_text_atomically(path, split_text(path, **content))


def split_text(
    path: PathLike,
    *,
    videos: Sequence[Mapping[str, Any]],
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
    info: Mapping[str, Any],
    further: Mapping[str, Any] | None = None,
) -> str:
    """The JSON of one split, checked.

    With ``info["box_policy"] == "raw"`` bad boxes are written as they are. ``further`` keys of the
    file follow its lists.

    Raises:
        ValueError: lists all problems, and `path` as where the file would be.
    """
    content: dict[str, Any] = {
        "info": dict(info),
        "videos": [dict(video) for video in videos],
        "images": [dict(image) for image in images],
        "annotations": [dict(annotation) for annotation in annotations],
        "categories": [dict(category) for category in categories],
        **(further or {}),
    }
    report = AuditReport(source=str(path))
    check_categories(content["categories"], report.problems)
    by_id = check_videos(content["videos"], report.problems)
    frames = check_images(content["images"], by_id, report.problems)
    if not frames and not report.problems:
        report.problems.add("no frames", "the split is empty")
    known = check_annotations(content["annotations"], frames, content, report.problems)
    if info.get("box_policy") != RAW:
        audit_boxes(known, frames, report, "raise")
    report.problems.raise_if_any(str(path))
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def _count(
    report: AuditReport,
    videos: Mapping[int, Any],
    frames: Mapping[int, Any],
    annotations: Sequence[Mapping[str, Any]],
    names: Sequence[str],
) -> None:
    labels = Counter(annotation["category_id"] for annotation in annotations)
    report.frames = len(frames)
    report.lesion_free_frames = len(frames) - len({a["image_id"] for a in annotations})
    report.boxes_per_class = {name: labels[k] for k, name in enumerate(names, start=1)}
    used = {frame["video_id"] for frame in frames.values()}
    report.videos = len(used)
    for video_id in videos.keys() - used:
        report.notes.add("video without frames", str(videos[video_id]["name"]))


def _records(
    frames: Mapping[int, Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    image_root: Path,
) -> list[dict[str, Any]]:
    from detectron2.structures import BoxMode

    lesions: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        lesions[annotation["image_id"]].append(
            {
                "bbox": list(annotation["bbox"]),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": annotation["category_id"] - 1,
                "iscrowd": 0,
                "instance_id": annotation.get("instance_id"),
            }
        )
    keys = ("height", "width", "video_id", "frame_index", "scene_id")
    root = image_root.resolve()
    return [
        {
            "file_name": os.path.join(root, frame["file_name"]),
            "image_id": image_id,
            **{key: frame[key] for key in keys},
            "annotations": lesions[image_id],
        }
        for image_id, frame in frames.items()
    ]


def by_video(records: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Records by video id, in their given order."""
    videos: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        videos[record["video_id"]].append(record)
    return dict(videos)


def _decode_some(split: SplitData) -> None:
    """Read the middle frame of some videos; add their faults to the report's problems."""
    from v2idetr.data.clip_mapper import read_frame

    clips = list(by_video(split.records).values())
    step = -(-len(clips) // MAX_FRAMES_DECODED)
    for clip in clips[::step]:
        record = clip[len(clip) // 2]
        split.report.frames_decoded += 1
        try:
            read_frame(record["file_name"], height=record["height"], width=record["width"])
        except ValueError as error:
            split.report.problems.add("frame cannot be used", str(error))
