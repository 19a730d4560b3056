"""Checked splits -> one HTML page: counts, problems, copies, sample frames, a table of videos."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from v2idetr.atomic_file import write_text_atomically
from v2idetr.data.audit import FAULT_WORDS, Findings, box_fault, clip_box
from v2idetr.data.coco_vid import SplitData, by_video
from v2idetr.data.image_files import jpeg_thumbnail, read_frame
from v2idetr.prepare.annotations import evenly_spaced
from v2idetr.prepare.frame_checks import Copies

THUMBNAIL_WIDTH = 288
JPEG_QUALITY = 78
BINS = 20  # of box sizes, 5 % each
BAD_SHARE, FREE_SHARE = 0.25, 0.25  # of the samples: with bad boxes, lesion-free
MOST_COPIES = 12  # pairs shown with pictures

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
    """Write the page; nothing outside of it is needed to look at it.

    Args:
        splits: by name, with reports.
        contents: the files as they are, for the bad boxes that the splits no longer hold.
        together, notes: what is wrong between splits, and what else should be known of them.
        every: which share of the frames was read.
        num_samples: frames of a split to show.
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
        copies=[{"pair": c, "pictures": copy_pictures(c, splits)} for c in copies[:MOST_COPIES]],
        more_copies=max(0, len(copies) - MOST_COPIES),
        errors=errors,
        every=every,
    )
    write_text_atomically(path, page)
    return path


def sizes_of(records: Iterable[Record]) -> list[float]:
    """Size of every box: sqrt(its area / the frame's), in percent."""
    return [
        100 * (a["bbox"][2] * a["bbox"][3] / (record["width"] * record["height"])) ** 0.5
        for record in records
        for a in record["annotations"]
    ]


def quantiles(sizes: Sequence[float]) -> list[int] | None:
    """5th, 50th and 95th percentile."""
    return np.quantile(sizes, [0.05, 0.5, 0.95]).round().astype(int).tolist() if sizes else None


def histogram(sizes: Sequence[float]) -> list[float]:
    """Share of the highest bar for each of BINS ranges of box size."""
    counts, _ = np.histogram(sizes, bins=BINS, range=(0, 100))
    return (counts / max(counts.max(), 1)).tolist()


def video_rows(split: SplitData) -> list[dict[str, Any]]:
    """One row for each video of the file, also for those without usable frames."""
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
    """Box as published and what is wrong with it, by image id."""
    sizes = {
        image["id"]: (image["width"], image["height"])
        for image in content["images"]
        if all(isinstance(image.get(key), int) for key in ("id", "width", "height"))
    }
    found: dict[int, list[BadBox]] = {}
    for annotation in content["annotations"]:
        if annotation.get("image_id") not in sizes:
            continue
        width, height = sizes[annotation["image_id"]]
        fault = box_fault(annotation.get("bbox"), width=width, height=height)
        if fault is not None:
            drawable = fault not in ("malformed", "not_finite")
            box = list(map(float, annotation["bbox"])) if drawable else None
            found.setdefault(annotation["image_id"], []).append((box, FAULT_WORDS[fault]))
    return found


def samples(split: SplitData, bad: Mapping[int, list[BadBox]], count: int) -> list[dict[str, Any]]:
    """Frames to look at: some with bad boxes, some lesion-free, the others spread over videos."""
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
    """``count`` frames from evenly spaced clips, and evenly spaced within each."""
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
    """A frame with its boxes for the page; None when it cannot be read, which is reported above."""
    picture = thumbnail(record)
    if picture is None:
        return None
    width, height = record["width"], record["height"]
    mended = [clip_box(box, width=width, height=height) for box, _ in bad if box is not None]
    sound = [
        {"box": a["bbox"], "label": split.class_names[a["category_id"]], "class": a["category_id"]}
        for a in record["annotations"]
        if tuple(a["bbox"]) not in mended
    ]
    return {
        "picture": picture,
        "width": width,
        "height": height,
        "boxes": sound,
        "bad": [{"box": box and upright(box), "words": words} for box, words in bad],
        "video": split.videos[record["video_id"]]["name"],
        "frame_index": record["frame_index"],
    }


def upright(box: Sequence[float]) -> list[float]:
    """The same box with positive width and height, not cut."""
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


def copy_pictures(pair: Copies, splits: Mapping[str, SplitData]) -> list[str | None]:
    """The two example frames of a pair of videos."""
    pictures = []
    for name, file_name in zip(pair.splits, pair.example, strict=True):
        record = next(r for r in splits[name].records if r["file_name"] == file_name)
        pictures.append(thumbnail(record))
    return pictures
