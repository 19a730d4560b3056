"""Small videos in which every frame says what it shows and what is detected on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from v2idetr.data.ground_truth import GroundTruth, read_ground_truth
from v2idetr.evaluation.frames import LabelledFrame
from v2idetr.evaluation.pool import Pool
from v2idetr.evaluation.results_files import read_results

WIDTH, HEIGHT = 100, 80
LESION = [10.0, 10.0, 20.0, 20.0]
BOXES = {"hit": LESION, "wrong": [60.0, 40.0, 15.0, 15.0]}

# A frame: whether it shows a lesion, and (kind of box, score) of each detection.
Frame = tuple[bool, Sequence[tuple[str, float]]]
Videos = Sequence[Sequence[Frame]]


def write_videos(
    folder: Path,
    videos: Videos,
    *,
    name: str = "test",
    info: Mapping[str, Any] | None = None,
    lesion_ids: bool = True,
    step: int = 1,
    file_name: str = "{video}/{frame:06}.png",
) -> tuple[Path, Path]:
    """Ground truth and results as files: NAME.json and NAME_results.json.

    The frames' file names repeat in every video, as those of BUV do. Every ``step``-th frame of a
    video is labelled.
    """
    images, annotations, results = [], [], []
    for v, frames in enumerate(videos, start=1):
        for index, (lesion, found) in enumerate(frames):
            image_id = len(images) + 1
            images.append(
                {
                    "id": image_id,
                    "file_name": file_name.format(video=f"clip{v}", frame=index),
                    "width": WIDTH,
                    "height": HEIGHT,
                    "video_id": v,
                    "frame_index": index * step,
                }
            )
            if lesion:
                box = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1}
                box |= {"bbox": LESION, "area": 400.0, "iscrowd": 0}
                annotations.append(box | ({"instance_id": 7} if lesion_ids else {}))
            for kind, score in found:
                entry = {"image_id": image_id, "category_id": 1, "bbox": BOXES[kind]}
                results.append(entry | {"score": score})
    content = {
        "info": dict(info or {}),
        "videos": [{"id": v, "name": f"clip{v}"} for v in range(1, len(videos) + 1)],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "polyp"}],
    }
    truth, predictions = folder / f"{name}.json", folder / f"{name}_results.json"
    truth.write_text(json.dumps(content))
    predictions.write_text(json.dumps(results))
    return truth, predictions


def labelled(folder: Path, videos: Videos, **settings: Any) -> tuple[Pool, list[LabelledFrame]]:
    """A pool of the videos, and its frames with their detections."""
    truth_file, results_file = write_videos(folder, videos, **settings)
    truth: GroundTruth = read_ground_truth(truth_file)
    pool = Pool({"test": truth})
    return pool, pool.label({"test": read_results(results_file, truth)})["test"]
