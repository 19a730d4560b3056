"""Two tiny videos with a moving lesion, and their labels in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv
from PIL import Image

from v2idetr.prepare.labels.classes import choose_classes
from v2idetr.prepare.labels.label_files import read_labels
from v2idetr.prepare.labels.label_set import LabelledFrame, LabelSet
from v2idetr.prepare.labels.matching import match_frames, usable_frames
from v2idetr.prepare.labels.media import find_media

WIDTH, HEIGHT = 64, 48
Truth = dict[str, dict[int, list[float]]]  # video -> frame -> box xywh px
TRUTH: Truth = {
    "case1": {0: [4, 6, 20, 10], 1: [6, 7, 20, 10], 5: [14, 11, 20, 10]},
    "case2": {3: [30, 20, 12, 16]},
}


def write_images(folder: Path, truth: Truth = TRUTH) -> Path:
    """``<video>_<frame>.png`` for each frame."""
    folder.mkdir(parents=True, exist_ok=True)
    for video, frames in truth.items():
        for number in frames:
            pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{video}_{number:06d}.png")
    return folder


def dataset(images: Path, truth: Truth = TRUTH) -> sv.DetectionDataset:
    """The truth as supervision's data set, whose writers are those of other people's tools."""
    annotations = {}
    for video, frames in truth.items():
        for number, (x, y, w, h) in frames.items():
            annotations[str(images / f"{video}_{number:06d}.png")] = sv.Detections(
                xyxy=np.array([[x, y, x + w, y + h]], dtype=float), class_id=np.array([0])
            )
    return sv.DetectionDataset(["polyp"], list(annotations), annotations)


def imported(
    source: Path, labels: Path, notes: LabelSet | None = None, **options: Any
) -> tuple[Truth, LabelSet]:
    """Boxes as imported, and what was read."""
    media = {key: options.pop(key) for key in ("pattern", "image_rate") if key in options}
    matching = {k: options.pop(k) for k in ("first_number", "allow_missing") if k in options}
    nowhere = source / "no such output"
    _, found = read_labels(labels, leave_out=nowhere, **options)
    choose_classes(found, None, {})
    clips = find_media(source, found.notes, leave_out=nowhere, **media)
    usable = usable_frames(match_frames(found, clips, **matching), clips, source, found.notes)
    boxes = {
        video: {number: frame.boxes[0].xywh for number, frame in frames.items() if frame.boxes}
        for video, frames in usable.items()
    }
    return {video: frames for video, frames in boxes.items() if frames}, found


def frames_of(text: str, path: Path, **options: Any) -> list[LabelledFrame]:
    """Frames of one label file with this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return read_labels(path, leave_out=path.parent / "no such output", **options)[1].frames


def cvat_video(tracks: str, *, frames: int = 20, source: str = "case1.mp4", meta: str = "") -> str:
    """CVAT's XML of a video task."""
    return f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><name>exam 7</name><size>{frames}</size>
<mode>interpolation</mode><start_frame>0</start_frame><stop_frame>{frames - 1}</stop_frame>{meta}
<labels><label><name>polyp</name></label></labels>
<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size>
<source>{source}</source></task></meta>{tracks}</annotations>"""


def cvat_box(frame: int, xywh: list[float], *, outside: int = 0, further: str = "") -> str:
    """A box of a track."""
    x, y, w, h = xywh
    return (
        f'<box frame="{frame}" outside="{outside}" keyframe="1" xtl="{x}" ytl="{y}" '
        f'xbr="{x + w}" ybr="{y + h}" {further}/>'
    )


def cvat_images(truth: Truth = TRUTH, shapes: str = "") -> str:
    """CVAT's XML of images, with further shapes on the first."""
    images = []
    for video, frames in truth.items():
        for number, (x, y, w, h) in frames.items():
            box = (
                f'<box label="polyp" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>'
                + shapes * (not images)
            )
            images.append(
                f'<image id="{len(images)}" name="{video}_{number:06d}.png" width="{WIDTH}" '
                f'height="{HEIGHT}">{box}</image>'
            )
    labels = "<labels><label><name>polyp</name></label><label><name>tool</name></label></labels>"
    return f"<annotations><meta><task>{labels}</task></meta>{''.join(images)}</annotations>"


def label_studio(truth: Truth = TRUTH, **value: Any) -> str:
    """Label Studio's JSON of images as uploaded, with further keys of the first value."""
    tasks = []
    for video, frames in truth.items():
        for number, (x, y, w, h) in frames.items():
            box = {"x": x / WIDTH * 100, "y": y / HEIGHT * 100, "rectanglelabels": ["polyp"]}
            box |= {"width": w / WIDTH * 100, "height": h / HEIGHT * 100, "rotation": 0}
            box |= value if not tasks else {}
            region = {"id": "r1", "type": "rectanglelabels", "value": box}
            region |= {"original_width": WIDTH, "original_height": HEIGHT}
            image = f"/data/upload/3/0a1b2c3d-{video}_{number:06d}.png"
            annotation = {"result": [region], "was_cancelled": False}
            tasks.append({"id": number, "data": {"image": image}, "annotations": [annotation]})
    return json.dumps(tasks)


def labelme(video: str, number: int, shapes: list[dict[str, Any]]) -> str:
    """LabelMe's JSON of one image."""
    return json.dumps(
        {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"..\\images\\{video}_{number:06d}.png",
            "imageData": None,
            "imageWidth": WIDTH,
            "imageHeight": HEIGHT,
        }
    )
