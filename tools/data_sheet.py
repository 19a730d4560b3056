"""HTML page of checked splits: counts, problems, copies, sample frames, a table of videos."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from v2i_runtime.image_files import jpeg_thumbnail
from v2idetr.atomic_file import write_text_atomically
from v2idetr.data.audit import FAULT_WORDS, Findings, box_fault, clip_box
from v2idetr.data.coco_vid import SplitData, by_video
from v2idetr.data.frame_files import read_frame
from v2idetr.prepare.annotations import evenly_spaced
from v2idetr.prepare.frame_checks import Copies

THUMBNAIL_WIDTH = 288
JPEG_QUALITY = 78
BINS = 20  # of box sizes, 5 % each
BAD_SHARE, FREE_SHARE = 0.25, 0.25  # of the samples: with bad boxes, lesion-free
MOST_COPIES = 12  # pairs shown with images

Record = dict[str, Any]
BadBox = tuple[list[float] | None, str]  # None where it cannot be drawn


def write_sheet(
    path: Path,
    *,
    splits: Mapping[str, SplitData],
    contents: Mapping[str, Mapping[str, Any]],
    together: Findings,
    notes: Findings,
    copies: Sequence[Copies],
    errors: int,
    every: int,
    num_samples: int,
) -> Path:
    """Write the self-contained page.

    Args:
        splits: splits by name, with their reports.
        contents: raw contents of the files, for bad boxes, which `splits` no longer have.
        together, notes: problems between splits, and notes.
        every: K if every K-th frame was read.
        num_samples: number of sample frames per split.
    """
    sections = [
        {
            "name": name,
            "split": split,
            "report": split.report,
            "sizes": quantiles(sizes_of(split.records)),
            "histogram": histogram(sizes_of(split.records)),
            "groups": sorted({v["group"] for v in split.videos.values() if "group" in v}),
            "samples": samples(split, bad_boxes(contents[name]), num_samples),
            "videos": video_rows(split),
        }
        for name, split in splits.items()
    ]
    findings = [(s.report.problems, s.report.notes, name) for name, s in splits.items()]
    found = [
        {"findings": part, "tone": tone, "name": name}
        for problems, remarks, name in [*findings, (together, notes, "splits")]
        for part, tone in ((problems, "error"), (remarks, "note"))
        if part
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("data_sheet.html.j2").render(
        sections=sections,
        found=found,
        copies=[{"pair": c, "images": copy_images(c, splits)} for c in copies[:MOST_COPIES]],
        more_copies=max(0, len(copies) - MOST_COPIES),
        errors=errors,
        every=every,
    )
    write_text_atomically(path, page)
    return path


def sizes_of(records: Iterable[Record]) -> list[float]:
    """Size of each box: sqrt(box area / frame area), in percent."""
    return [
        100 * (a["bbox"][2] * a["bbox"][3] / (record["width"] * record["height"])) ** 0.5
        for record in records
        for a in record["annotations"]
    ]


def quantiles(sizes: Sequence[float]) -> list[int] | None:
    """5th, 50th and 95th percentile."""
    return np.quantile(sizes, [0.05, 0.5, 0.95]).round().astype(int).tolist() if sizes else None


def histogram(sizes: Sequence[float]) -> list[float]:
    """Histogram of box sizes in BINS bins, relative to the highest bar."""
    counts, _ = np.histogram(sizes, bins=BINS, range=(0, 100))
    return (counts / max(counts.max(), 1)).tolist()


def video_rows(split: SplitData) -> list[dict[str, Any]]:
    """One row per video, also for those without usable frames."""
    clips = by_video(split.records)
    rows = []
    for video_id, video in split.videos.items():
        records = clips.get(video_id, [])
        sizes = sizes_of(records)
        rows.append(
            {
                "name": video["name"],
                "group": video.get("group"),
                "frames": len(records),
                "scenes": len({record["scene_id"] for record in records}),
                "lesion_free": sum(not record["annotations"] for record in records),
                "boxes": len(sizes),
                "median_size_percent": round(float(np.median(sizes)), 1) if sizes else None,
                "picture_sizes": sorted({f"{r['width']} x {r['height']}" for r in records}),
            }
        )
    return rows


def bad_boxes(content: Mapping[str, Any]) -> dict[int, list[BadBox]]:
    """Bad boxes as published, with their faults, by image id."""
    sizes = {
        image["id"]: (image["width"], image["height"])
        for image in content["images"]
        if all(isinstance(image.get(key), int) for key in ("id", "width", "height"))
    }
    found: dict[int, list[BadBox]] = {}
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id")
        if not isinstance(image_id, int) or image_id not in sizes:
            continue
        width, height = sizes[image_id]
        fault = box_fault(annotation.get("bbox"), width=width, height=height)
        if fault is not None:
            drawable = fault not in ("malformed", "not_finite")
            box = list(map(float, annotation["bbox"])) if drawable else None
            found.setdefault(image_id, []).append((box, FAULT_WORDS[fault]))
    return found


def samples(split: SplitData, bad: Mapping[int, list[BadBox]], count: int) -> list[dict[str, Any]]:
    """Sample frames: some with bad boxes, some lesion-free, the others spread over videos."""
    with_bad = [record for record in split.records if record["image_id"] in bad]
    free = [r for r in split.records if not r["annotations"] and r["image_id"] not in bad]
    chosen = evenly_spaced(with_bad, min(len(with_bad), round(BAD_SHARE * count)))
    chosen += evenly_spaced(free, min(len(free), round(FREE_SHARE * count)))
    taken = {record["image_id"] for record in chosen}
    lesions = [
        [r for r in clip if r["annotations"] and r["image_id"] not in taken]
        for clip in by_video(split.records).values()
    ]
    chosen += spread([clip for clip in lesions if clip], max(0, count - len(chosen)))
    chosen.sort(key=lambda record: (record["video_id"], record["frame_index"]))
    cards = [card(record, split, bad.get(record["image_id"], [])) for record in chosen]
    return [found for found in cards if found is not None]


def spread(clips: Sequence[Sequence[Record]], count: int) -> list[Record]:
    """``count`` frames of evenly spaced clips, evenly spaced within each."""
    if not clips or not count:
        return []
    if len(clips) >= count:
        return [clip[len(clip) // 2] for clip in evenly_spaced(clips, count)]
    each, rest = divmod(count, len(clips))
    wanted = [each + (k < rest) for k in range(len(clips))]
    chosen = []
    for clip, number in zip(clips, wanted, strict=True):
        chosen += evenly_spaced(clip, min(number, len(clip)))
    return chosen


def card(record: Record, split: SplitData, bad: Sequence[BadBox]) -> dict[str, Any] | None:
    """A frame with its boxes; None if it is unreadable, which is reported elsewhere."""
    image = thumbnail(record)
    if image is None:
        return None
    width, height = record["width"], record["height"]
    clipped = [clip_box(box, width=width, height=height) for box, _ in bad if box is not None]
    names = dict(enumerate(split.class_names))
    sound = [
        {
            "box": a["bbox"],
            "label": names.get(a["category_id"], "unknown class"),
            "class": a["category_id"],
        }
        for a in record["annotations"]
        if tuple(a["bbox"]) not in clipped
    ]
    return {
        "image": image,
        "width": width,
        "height": height,
        "boxes": sound,
        "bad": [{"box": box and upright(box), "words": words} for box, words in bad],
        "video": split.videos[record["video_id"]]["name"],
        "frame_index": record["frame_index"],
    }


def upright(box: Sequence[float]) -> list[float]:
    """The same box with positive width and height, not clipped."""
    x, y, w, h = box
    return [min(x, x + w), min(y, y + h), abs(w), abs(h)]


def thumbnail(record: Mapping[str, Any]) -> str | None:
    """A frame as a small JPEG in a data URI."""
    try:
        pixels = read_frame(record["file_name"], height=record["height"], width=record["width"])
    except ValueError:
        return None
    data = jpeg_thumbnail(pixels, max_width=THUMBNAIL_WIDTH, quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def copy_images(pair: Copies, splits: Mapping[str, SplitData]) -> list[str | None]:
    """The two example frames of a pair of videos."""
    images = []
    for name, file_name in zip(pair.splits, pair.example, strict=True):
        record = next(r for r in splits[name].records if r["file_name"] == file_name)
        images.append(thumbnail(record))
    return images
