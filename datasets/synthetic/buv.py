"""Files of the breast ultrasound videos (BUV); assumptions: `layouts`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .clips import Box
from .jobs import LAYOUT_CODE, Job, Options, Results, make_spec, under, write_text

# Known faults of the published files, reproduced by `--defects` under their real names.
DUPLICATES = (
    ("train", "benign/x66ef02e7f1b9a0ef", "train", "malignant/x3b88488853e8b7d1"),
    ("train", "benign/x1282311c38f808f", "val", "malignant/x9c1c965d274c457"),
)
MISLABELLED = "benign/63c9ba1377f35bf6"
TRAIN_FRAMES = 15
BUV_JSON = {"train": "imagenet_vid_train_15frames.json", "val": "imagenet_vid_val.json"}


def plan(options: Options) -> list[Job]:
    """Training and validation videos, alternately benign and malignant; known faults by option."""
    jobs = []
    rng = np.random.default_rng([options.seed, LAYOUT_CODE["buv"], 5])
    for split, count in (("train", options.train_clips), ("val", options.test_easy_clips)):
        for index in range(count):
            malignant = index % 2 == 1
            name = f"{('benign', 'malignant')[malignant]}/{rng.bytes(8).hex()}"
            jobs.append(_job(options, len(jobs) + 1, split, name, malignant))
    if options.defects:
        for number, (split, copy, split_of_source, source) in enumerate(DUPLICATES):
            jobs.append(_job(options, 9001 + number, split_of_source, source, True))
            jobs.append(_job(options, 9001 + number, split, copy, True))
        jobs.append(_job(options, 9101, "train", MISLABELLED, True))
    return jobs


def _job(options: Options, case: int, split: str, name: str, malignant: bool) -> Job:
    spec = make_spec(options, case, 1, shots=(options.frames_per_clip,), malignant=malignant)
    frames = tuple(f"{i:06d}" for i in range(options.frames_per_clip))
    return Job(spec, split, name, under(f"rawframes/{name}", frames, "png"))


def annotate(options: Options, jobs: Sequence[Job], results: Results, root: Path) -> None:
    """One JSON per split; at most 15 frames of each training video are listed."""
    width, height = options.size
    for split, file_name in BUV_JSON.items():
        videos, images, annotations = [], [], []
        for job, records in zip(jobs, results, strict=True):
            if job.split != split:
                continue
            indices = range(len(records))
            if split == "train" and len(records) > TRAIN_FRAMES:
                indices = np.linspace(0, len(records) - 1, TRAIN_FRAMES).round().astype(int)
            video = {"id": len(videos) + 1, "name": job.name}
            video["vid_train_frames"] = [int(i) for i in indices] if split == "train" else []
            videos.append(video)
            for index in map(int, indices):
                image = {
                    "id": len(images) + 1,
                    "file_name": records[index].file.removeprefix("rawframes/"),
                    "height": height,
                    "width": width,
                    "frame_id": index,
                    "video_id": video["id"],
                    "is_vid_train_frame": split == "train",
                }
                images.append(image)
                box = records[index].box
                if box is not None:
                    label = 2 if job.name.startswith("malignant") else 1
                    annotations.append(_annotation(len(annotations) + 1, image, label, box))
        if options.defects:
            _break_boxes(annotations)
        categories = [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]
        document = {
            "categories": categories,
            "videos": videos,
            "images": images,
            "annotations": annotations,
        }
        write_text(root / file_name, json.dumps(document))


def _annotation(number: int, image: Mapping[str, object], label: int, box: Box) -> dict:
    x0, y0, x1, y1 = box
    return {
        "id": number,
        "video_id": image["video_id"],
        "image_id": image["id"],
        "category_id": label,
        "instance_id": image["video_id"],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": False,
        "occluded": False,
        "generated": False,
    }


def _break_boxes(annotations: list[dict]) -> None:
    """One box in a hundred (at least one) gets a negative width, the first reaches outside."""
    for annotation in annotations[1::100]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"], annotation["area"] = [x + w, y, -w, h], -w * h
    x, y, w, h = annotations[0]["bbox"]
    annotations[0]["bbox"] = [-5, y, x + w + 5, h]
    annotations[0]["area"] = (x + w + 5) * h
