"""Content of a COCO-VID JSON -> its valid entries and the faults of the others.

Each ``check_*`` takes one list of the file, adds faults to ``problems`` and returns the valid
entries. Boxes are checked by ``audit.audit_boxes``, files by ``frame_files.check_files``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence, Set
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from v2idetr.data.audit import AuditReport, Findings
from v2idetr.data.text_files import read_text

CONVERTERS = ("sun", "sunseg", "buv", "clinicdb", "ldpolyp")
Together = Literal["frame", "scene", "video"]  # frames that can be in one clip
SIZES_IN_A_SCENE = (
    "frames of one scene have different sizes, so a teacher's clip cannot be made of them: give "
    "those of another size a scene_id of their own, or resize them"
)
SIZES_IN_A_VIDEO = (
    "frames of one video have different sizes, so a clip of frames of the whole video cannot be "
    "made of them: make those of another size a video of their own, or resize them"
)
ONE_FRAME = (
    "video of one frame, which has no other one for a clip of frames of the whole video: leave it "
    "out, or take a detector without global references"
)
MAX_QUOTE = 160  # characters of an entry in a message


def read_coco_vid(json_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a COCO-VID JSON with its four lists, each a list of objects, images not empty.

    Raises ValueError that names the file, the fault and the command that makes the file.
    """
    json_path = Path(json_path)
    try:
        text = read_text(json_path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{json_path}: does not exist. {_how_to_make(json_path)}") from error
    except OSError as error:
        raise ValueError(f"{json_path}: cannot be read ({error.strerror})") from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{json_path}: is not JSON ({error}); it may be cut off: make it again. "
            f"{_how_to_make(json_path)}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{json_path}: holds a {type(content).__name__} where COCO-VID has an object with "
            "videos, images, annotations and categories"
        )
    if "annotation" in content and "annotations" not in content:
        raise ValueError(
            f"{json_path}: has the key `annotation`, so it is SUN-SEG's own file, not COCO-VID; "
            "convert it with `python datasets/prepare_sunseg.py --source DIR --output DIR`"
        )
    for key in ("videos", "images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            what = "has no key" if key not in content else "needs a list of objects under"
            raise ValueError(
                f"{json_path}: {what} `{key}`; a COCO-VID file has videos, images, annotations and "
                f"categories. {_how_to_make(json_path)}"
            )
    if not content["images"]:
        raise ValueError(
            f"{json_path}: the split is empty, there are no frames under `images`; make it again "
            "and read the audit report beside it"
        )
    return content


def _how_to_make(json_path: Path) -> str:
    """The command that writes such a file, if its path names the data set."""
    folders = [part.lower() for part in json_path.parts[:-1]]
    output = json_path.parent
    if any("synthetic" in folder for folder in folders):
        return (
            "`python datasets/make_synthetic.py --layout sunseg --output data/synthetic`, then "
            "`python datasets/prepare_sunseg.py --source data/synthetic --negatives "
            f"data/synthetic/SUN-Negative --output {output}` make it."
        )
    known = [folder for folder in folders if folder in CONVERTERS]
    if not known:
        return (
            'datasets/README.md says what such a file holds ("Your own data"), and which data sets '
            "have a converter that writes it."
        )
    return (
        f"`python datasets/prepare_{known[-1]}.py --source DIR --output {output}` makes it "
        "(see datasets/README.md)."
    )


def _quote(key: str, position: int, entry: Mapping[str, Any]) -> str:
    text = str(dict(entry))
    return f"{key}[{position}]: {text[:MAX_QUOTE]}{'...' if text[MAX_QUOTE:] else ''}"


def _without_nulls(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry without nulls, which pandas exports for missing values; a null box stays."""
    return {key: value for key, value in entry.items() if value is not None or key == "bbox"}


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; file names in other encodings cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_categories(categories: list[dict[str, Any]], problems: Findings) -> list[str]:
    """Class names by 0-based index, and checks of their ids and names; none for frames alone."""
    ids: list[Any] = [category.get("id") for category in categories]
    names: list[Any] = [category.get("name") for category in categories]
    if not all(map(_is_int, ids)) or sorted(ids) != list(range(1, len(ids) + 1)):
        problems.add("category ids are not 1..K", f"they are {ids}, not 1..{len(ids)}")
        return [str(name) for name in names]
    if len(set(map(str, names))) < len(names) or not all(isinstance(n, str) and n for n in names):
        problems.add("category names are not distinct words", f"they are {names}")
    return [str(names[ids.index(k)]) for k in range(1, len(ids) + 1)]


def check_model_classes(
    names: list[str], class_names: Sequence[str] | None, problems: Findings
) -> None:
    listed = ", ".join(names)
    if class_names is not None and list(class_names) != names:
        problems.add(
            "classes differ from data.class_names",
            f"the file has {len(names)} ({listed}), the model {len(class_names)} "
            f"({', '.join(class_names)}), and their order counts",
        )


def check_videos(videos: list[dict[str, Any]], problems: Findings) -> dict[int, dict[str, Any]]:
    by_id: dict[int, dict[str, Any]] = {}
    for position, video in enumerate(videos):
        if not _is_int(video.get("id")) or not isinstance(video.get("name"), str):
            problems.add(
                "video without an integer id and a name", _quote("videos", position, video)
            )
        elif not _is_unicode(video["name"]):
            problems.add(
                "video whose name is not UTF-8: rename it", _quote("videos", position, video)
            )
        elif not isinstance(video.get("group"), str | None):
            problems.add(
                "video whose group is not a text: put it in quotes",
                _quote("videos", position, video),
            )
        elif video["id"] in by_id:
            problems.add("video id is used twice", f"{video['id']}")
        else:
            by_id[video["id"]] = _without_nulls(video)
    return by_id


def check_images(
    images: list[dict[str, Any]], videos: Mapping[int, Any], problems: Findings
) -> dict[int, dict[str, Any]]:
    """Valid images by id, with ``frame_index`` and ``scene_id`` set, in temporal order."""
    frames: dict[int, dict[str, Any]] = {}
    seen_places: dict[tuple[int, int], str] = {}
    seen_files: set[str] = set()
    for position, image in enumerate(images):
        frame = {"scene_id": 0, **_without_nulls(image)}
        if "frame_index" not in frame and "frame_id" in frame:
            frame["frame_index"] = frame["frame_id"]
        wrong = _fault_of_image(frame, videos)
        if wrong is not None:
            problems.add(wrong, _quote("images", position, image))
            continue
        name, place = frame["file_name"], (frame["video_id"], frame["frame_index"])
        path = os.path.normpath(name)
        if frame["id"] in frames:
            first = frames[frame["id"]]["file_name"]
            problems.add("image id is used twice", f"{frame['id']} by {first} and {name}")
        elif place in seen_places:
            problems.add(
                "two frames of a video have the same frame_index",
                f"{place[1]} of video {place[0]}: {seen_places[place]} and {name}",
            )
        elif path in seen_files:
            problems.add("file is listed twice", name)
        else:
            frames[frame["id"]] = frame
            seen_places[place] = name
            seen_files.add(path)
    order = sorted(frames.values(), key=lambda f: (f["video_id"], f["frame_index"]))
    return {frame["id"]: frame for frame in order}


def _fault_of_image(frame: Mapping[str, Any], videos: Mapping[int, Any]) -> str | None:
    keys = ("id", "file_name", "width", "height", "video_id", "frame_index")
    missing = [key for key in keys if key not in frame]
    if missing:
        return f"image without {', '.join(missing)}"
    if not isinstance(frame["file_name"], str) or not frame["file_name"]:
        return "image whose file_name is not a name"
    if not _is_unicode(frame["file_name"]):
        return "image whose file_name is not UTF-8: rename the file"
    for key in ("id", "width", "height", "video_id", "frame_index", "scene_id"):
        if not _is_int(frame[key]):
            return f"image whose {key} is not an integer"
    if frame["frame_index"] < 0:
        return "image whose frame_index is negative"
    if frame["width"] <= 0 or frame["height"] <= 0:
        return "image without width or height"
    if frame["video_id"] not in videos:
        return "image of a video that is not under `videos`"
    return None


def check_clips(
    frames: Mapping[int, Mapping[str, Any]], together: Together, report: AuditReport
) -> None:
    """Check that frames of one clip have one size, and that there are others where they must be.

    Args:
        frames: valid frames in temporal order, see `check_images`.
        together: frames that can be in one clip: those of a "scene" or "video" must have one size;
            for "frame" scenes of several sizes are noted.
        report: receives a message for each scene or video of several sizes, and for each video of
            one frame where clips have frames of the whole "video".
    """
    findings = report.notes if together == "frame" else report.problems
    keys, problem = ["video_id", "scene_id"], SIZES_IN_A_SCENE
    if together == "video":
        keys, problem = ["video_id"], SIZES_IN_A_VIDEO
    for _, group in groupby(frames.values(), key=lambda frame: [frame[key] for key in keys]):
        first, *others = group
        if together == "video" and not others:
            report.problems.add(ONE_FRAME, first["file_name"])
        for other in others:
            if (other["width"], other["height"]) != (first["width"], first["height"]):
                findings.add(
                    problem,
                    f"{first['file_name']} is {first['width']} x {first['height']} px, "
                    f"{other['file_name']} is {other['width']} x {other['height']}",
                )
                break


def check_annotations(
    annotations: Sequence[dict[str, Any]],
    frames: Mapping[int, Any],
    content: Mapping[str, Any],
    problems: Findings,
) -> list[dict[str, Any]]:
    """Annotations of valid ``frames`` with a class of ``content``; boxes are not checked."""
    image_ids = {image["id"] for image in content["images"] if _is_int(image.get("id"))}
    class_ids = {c["id"] for c in content["categories"] if _is_int(c.get("id"))}
    kept: list[dict[str, Any]] = []
    ids: set[int] = set()
    for position, entry in enumerate(annotations):
        annotation = _without_nulls(entry)
        wrong = _fault_of_annotation(annotation, image_ids, class_ids, ids)
        if wrong is not None:
            problems.add(wrong, _quote("annotations", position, entry))
            continue
        if "id" in annotation:
            ids.add(annotation["id"])
        if annotation["image_id"] in frames:  # otherwise the frame itself is a problem
            kept.append(annotation)
    return kept


def _fault_of_annotation(
    annotation: Mapping[str, Any], image_ids: Set[int], class_ids: Set[int], ids: Set[int]
) -> str | None:
    missing = [key for key in ("image_id", "category_id", "bbox") if key not in annotation]
    if missing == ["bbox"] and annotation.get("segmentation"):
        return (
            "annotation without bbox, with a mask alone: add the box around it "
            "(pycocotools.mask.toBbox)"
        )
    if missing:
        return f"annotation without {', '.join(missing)}"
    for key in ("id", "image_id", "category_id"):
        if key in annotation and not _is_int(annotation[key]):
            return f"annotation whose {key} is not an integer"
    if annotation.get("instance_id") is not None and not _is_int(annotation["instance_id"]):
        return "annotation whose instance_id is not an integer"
    if annotation.get("id") in ids:
        return "annotation id is used twice"
    if annotation["image_id"] not in image_ids:
        return "annotation of an unknown image"
    if annotation["category_id"] not in class_ids:
        return "annotation whose category_id is not under `categories`"
    if annotation.get("iscrowd", 0) != 0 and isinstance(annotation.get("segmentation"), dict):
        return (
            "annotation with iscrowd and a run-length mask, as some programs export whatever was "
            "drawn with a brush: set iscrowd to 0 where it is one lesion"
        )
    if annotation.get("iscrowd", 0) != 0:
        return (
            "annotation with iscrowd, which marks a region, not one lesion: set it to 0 where it "
            "is one lesion, else leave the annotation out"
        )
    return None
