"""Ground truth of a COCO-VID or plain COCO JSON, for the evaluation of any detector's results.

Unlike ``coco_vid.load_split`` it needs no frame files, and adds what video metrics ask for: which
boxes are one lesion, and the frame rate. A plain COCO file, without ``videos``, is read as well:

    videos          text matched by a pattern in ``file_name``; else the folder of ``file_name``, if
                    there are several; else every image is a video of its own
    frame_index     number at the end of the file name, if all images of the video have one of their
                    own; else the position in the file
    category ids    any integers
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from v2idetr.data.audit import BoxPolicy, Findings, is_number
from v2idetr.data.coco_vid import SplitData, by_video, split_of_content
from v2idetr.data.schema import read_coco_vid
from v2idetr.data.text_files import read_text

# Which boxes are one lesion: keys of REAL-Colon, of ours and mmtracking, of TAO.
LESION_KEYS = ("unique_id", "instance_id", "track_id")
RATE_KEYS = ("fps", "frame_rate")
HIGHEST_RATE_HZ = 1000.0
NUMBER_AT_END = re.compile(r"(\d{1,15})$")


@dataclass(frozen=True)
class GroundTruth:
    """A split, and what its file says beyond it.

    Attributes:
        split: the checked split; the files of its frames may be missing.
        category_ids: category id in the file by 0-based class.
        frame_rates_hz: frames a second by video id; None where unknown.
        lesion_names: name in the file by (video id, ``instance_id`` of the split's annotations).
        notes: how the file was read, in sentences.
    """

    split: SplitData
    category_ids: list[int]
    frame_rates_hz: dict[int, float | None]
    lesion_names: dict[tuple[int, int], str]
    notes: list[str] = field(default_factory=list)

    def minutes(self) -> dict[int, float | None]:
        """Length by video id, in minutes; None where the frame rate is unknown.

        A frame stands for the usual distance to the next one in ``frame_index``: a video labelled
        on every fifth frame is as long as one labelled on all.
        """
        lengths: dict[int, float | None] = {}
        for video_id, records in by_video(self.split.records).items():
            rate = self.frame_rates_hz[video_id]
            frames = len(records) * self.steps[video_id]
            lengths[video_id] = None if rate is None else frames / rate / 60
        return lengths

    @cached_property
    def steps(self) -> dict[int, float]:
        """Usual distance of labelled frames in ``frame_index``, by video id."""
        return {
            video_id: float(median(_distances(own) or [1]))
            for video_id, own in by_video(self.split.records).items()
        }


def read_ground_truth(
    json_path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    *,
    on_bad_box: BoxPolicy = "raise",
    fps: float | None = None,
    video_pattern: str = "",
) -> GroundTruth:
    """Read the ground truth of one split.

    Args:
        json_path: COCO-VID or plain COCO JSON.
        image_root: base folder of ``file_name``; None: ``info.image_root_hint``, else the folder of
            the JSON.
        on_bad_box: see ``coco_vid.load_split``.
        fps: frames a second, in units of ``frame_index``; None: that of the file.
        video_pattern: regular expression that finds the video's name in ``file_name``, for a file
            without ``videos``; its first group, if it has one.

    Raises:
        ValueError: the file is not COCO, has problems (all are listed), or a frame rate or the
            pattern is unusable.
    """
    json_path = Path(json_path)
    content, notes = _read(json_path, video_pattern)
    category_ids = _number_classes(content, json_path)
    content, names = _with_instances(content, json_path)
    info = content.get("info")
    info = info if isinstance(info, dict) else {}
    if image_root is None:
        hint = info.get("image_root_hint")
        image_root = hint if isinstance(hint, str) and hint else json_path.parent
    split = split_of_content(
        content,
        json_path,
        Path(image_root),
        on_bad_box=on_bad_box,
        together="frame",
        with_files=False,
    )
    split.report.problems.raise_if_any(
        str(json_path), "--on-bad-box clip or drop is for bad boxes." * bool(split.report.bad_boxes)
    )
    if split.report.bad_boxes:
        notes.append(
            f"{sum(split.report.bad_boxes.values())} bad boxes: {split.report.clipped} clipped, "
            f"{split.report.dropped} dropped (policy {on_bad_box})."
        )
    rates: dict[int, float | None] = dict.fromkeys(split.videos, fps)
    if fps is None:
        whole = _rate(content, str(json_path)) or _rate(info, f"{json_path}: info")
        rates = {
            video_id: _rate(video, f"{json_path}: video {video_id}") or whole
            for video_id, video in split.videos.items()
        }
    return GroundTruth(split, category_ids, rates, names, notes)


def _read(json_path: Path, video_pattern: str) -> tuple[dict[str, Any], list[str]]:
    """Content with videos, and how they were found."""
    try:
        content = json.loads(read_text(json_path)) if json_path.is_file() else None
    except ValueError:
        content = None  # the reader of COCO-VID says what is wrong
    except RecursionError as error:
        raise ValueError(f"{json_path}: is nested too deeply to be COCO.") from error
    lists = ("images", "annotations", "categories")
    if (
        not isinstance(content, dict)
        or "videos" in content
        or not all(_is_list_of_objects(content.get(key)) for key in lists)
        or not content["images"]
    ):
        unused = ["The video pattern is not used: the file has videos."] if video_pattern else []
        return read_coco_vid(json_path), unused
    return _with_videos(content, json_path, video_pattern)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _with_videos(
    content: dict[str, Any], json_path: Path, pattern: str
) -> tuple[dict[str, Any], list[str]]:
    """A plain COCO file's content with videos and frame indexes."""
    images = content["images"]
    files = [str(image.get("file_name", "")).replace("\\", "/") for image in images]
    if pattern:
        names, how = _matches(files, pattern, json_path), f"matches of {pattern!r} in file_name"
    elif len({os.path.dirname(file) for file in files}) > 1:
        names, how = [os.path.dirname(file) for file in files], "the folders of file_name"
    else:
        names, how = files, "single images, each by itself"
    members: defaultdict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        members[name].append(position)
    videos, placed = [], [dict(image) for image in images]
    for video_id, (name, positions) in enumerate(members.items(), start=1):
        videos.append({"id": video_id, "name": name or "."})
        found = [NUMBER_AT_END.search(os.path.splitext(files[p])[0]) for p in positions]
        numbers = [int(match.group(1)) for match in found if match]
        if len(set(numbers)) < len(positions):
            numbers = list(range(len(positions)))
        for position, number in zip(positions, numbers, strict=True):
            placed[position] |= {"video_id": video_id, "frame_index": number}
    note = f"The file has no videos: taken as {len(videos)} videos, {how}."
    return {**content, "videos": videos, "images": placed}, [note]


def _matches(files: Sequence[str], pattern: str, json_path: Path) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"--video-pattern {pattern!r}: is no regular expression: {error}"
        ) from error
    found = [compiled.search(file) for file in files]
    for match, file in zip(found, files, strict=True):
        if match is None:
            raise ValueError(
                f"--video-pattern {pattern!r}: finds nothing in {file!r} of {json_path}."
            )
    return [(m.group(1) if compiled.groups else m.group(0)) or "" for m in found if m is not None]


def _number_classes(content: dict[str, Any], json_path: Path) -> list[int]:
    """Category ids of the file in ascending order; in ``content`` they become 1..K.

    Raises ValueError for annotations with another id: it could be a class after the renumbering.
    """
    ids = [category.get("id") for category in content["categories"]]
    integers = sorted({i for i in ids if type(i) is int})
    if len(integers) < len(ids):  # checked, and reported, with the rest
        return list(range(1, len(ids) + 1))
    number = {category_id: k for k, category_id in enumerate(integers, start=1)}
    content["categories"] = [{**c, "id": number[c["id"]]} for c in content["categories"]]
    problems, annotations = Findings(), []
    for annotation in content["annotations"]:
        old = annotation.get("category_id")
        if type(old) is not int:  # checked, and reported, with the rest
            annotations.append(annotation)
        elif old in number:
            annotations.append({**annotation, "category_id": number[old]})
        else:
            problems.add(
                "annotation whose category_id is not under `categories`",
                f"annotation {annotation.get('id')} has {old}, the categories have {integers}",
            )
    problems.raise_if_any(str(json_path))
    content["annotations"] = annotations
    return integers


def _with_instances(
    content: dict[str, Any], json_path: Path
) -> tuple[dict[str, Any], dict[tuple[int, int], str]]:
    """Content whose ``instance_id`` counts the lesions of the file, and the lesions' names."""
    annotations = content["annotations"]
    key = next((k for k in LESION_KEYS if any(a.get(k) is not None for a in annotations)), None)
    video_of = {
        image["id"]: image.get("video_id")
        for image in content["images"]
        if isinstance(image.get("id"), int)
    }
    numbers: dict[str, int] = {}
    names: dict[tuple[int, int], str] = {}
    numbered = []
    for annotation in annotations:
        value = annotation.get(key) if key else None
        entry = {k: v for k, v in annotation.items() if k != "instance_id"}
        if value is not None:
            if not isinstance(value, int | str) or isinstance(value, bool):
                raise ValueError(
                    f"{json_path}: annotation {annotation.get('id')} has {key} {value!r:.40}; it "
                    "needs an integer or a text, the same one for all boxes of a lesion."
                )
            entry["instance_id"] = numbers.setdefault(str(value), len(numbers))
            image_id = annotation.get("image_id")
            video_id = video_of.get(image_id) if isinstance(image_id, int) else None
            if isinstance(video_id, int):
                names[video_id, entry["instance_id"]] = str(value)
        numbered.append(entry)
    return {**content, "annotations": numbered}, names


def _distances(records: Sequence[Mapping[str, Any]]) -> list[int]:
    return [b["frame_index"] - a["frame_index"] for a, b in pairwise(records)]


def _rate(entry: Mapping[str, Any], where: str) -> float | None:
    for key in RATE_KEYS:
        value = entry.get(key)
        if value is None:
            continue
        if not is_number(value) or not math.isfinite(value) or not 0 < value <= HIGHEST_RATE_HZ:
            raise ValueError(
                f"{where}: {key} is {value!r:.40}; it needs frames a second, above 0 and at most "
                f"{HIGHEST_RATE_HZ:.0f}. --fps replaces it."
            )
        return float(value)
    return None
