"""A run of three tiny detectors with predictions written by hand, so that all metrics are known.

Test split "held_out": three videos of six frames, one lesion on each but the last. What a detector
finds there stands in ``FOUND``: score of the box on the lesion, score of a box beside it; None for
none. On validation data the highest F1 is at the score 0.5.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml

from tests.tiny_fixtures import make_split, write_tiny_config
from tests.tiny_runs import make_run, write_weights
from v2idetr.config.load import save_config
from v2idetr.data.coco_vid import read_split
from v2idetr.evaluation.evaluator import evaluate_predictions, write_evaluation
from v2idetr.evaluation.predictions import FramePrediction, write_predictions

STAGES = ("teacher", "plain", "student")
RULES = ("endovis_center", "iou50")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
VIDEOS, FRAMES = 3, 6
WIDTH, HEIGHT = 64, 48
THRESHOLD = 0.5

Found = tuple[float | None, float | None]
NOTHING: Found = (None, None)
FOUND: dict[str, list[list[Found]]] = {
    "teacher": [[(0.9, None)] * 5 + [NOTHING]] * 3,
    "plain": [
        [(0.9, None), (0.9, None), (0.3, None), NOTHING, (0.8, 0.7), (None, 0.6)],
        [(0.9, None), (0.9, 0.2), (0.9, None), (0.9, None), (0.9, None), NOTHING],
        [NOTHING, (0.9, None), (0.9, None), (0.6, 0.95), (0.9, None), NOTHING],
    ],
    "student": [[(0.9, None)] * 5 + [NOTHING], [(0.4, None)] * 5 + [NOTHING], [NOTHING] * 6],
}
ON_VAL: list[list[Found]] = [[(0.9, None), (0.7, 0.45), (0.5, None), NOTHING]]


def tiny_splits(folder: Path) -> dict[str, Any]:
    """Splits with a frame rate, and a video whose name is HTML."""
    data = {
        "train": make_split(folder, "train", videos=1, frames=4, seed=0),
        "val": make_split(folder, "val", videos=1, frames=4, seed=1),
        "test": {"held_out": make_split(folder, "held_out", videos=VIDEOS, frames=FRAMES, seed=2)},
    }
    path = Path(data["test"]["held_out"]["json"])
    content = json.loads(path.read_text())
    content["videos"][1]["name"] = HOSTILE
    for video in content["videos"]:
        video["fps"] = 25
    path.write_text(json.dumps(content))
    return data


def write_run(folder: Path, data: dict[str, Any], kind: str = "deformable_detr") -> Path:
    """A finished run, and its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = write_tiny_config(folder, data)
    if kind != "deformable_detr":
        content = yaml.safe_load(config.read_text())
        content["_base_"] = [b.replace("deformable_detr", kind) for b in content["_base_"]]
        shared = ("backbone", "weights")
        own = {k: v for k, v in content["model"]["net"].items() if k not in shared}
        content["teacher"]["model"]["net"] |= own
        config.write_text(yaml.safe_dump(content))
    run = make_run(config)
    paths = {"val": data["val"], **data["test"]}
    splits = {n: read_split(entry["json"], entry["image_root"]) for n, entry in paths.items()}
    for stage in STAGES:
        write_weights(run, stage)
        write_stage(run.stage_folder(stage), stage, splits)
        save_config(run.config, run.stage_folder(stage) / "config.yaml")
    save_config(run.config, run.folder / "config.yaml")
    (run.folder / "run.json").write_text(json.dumps({"starts": []}))
    return run.folder


def write_stage(folder: Path, stage: str, splits: dict[str, Any]) -> None:
    """Predictions and evaluation of a stage."""
    found = {"val": ON_VAL, "held_out": FOUND[stage]}
    predicted = {name: predictions(split, found[name]) for name, split in splits.items()}
    for name, split in splits.items():
        write_predictions(folder / f"predictions_{name}.json.gz", split, predicted[name])
    result = evaluate_predictions(
        val=(splits["val"], predicted["val"]),
        tests={"held_out": (splits["held_out"], predicted["held_out"])},
        rules=RULES,
        coco_ap=False,
    )
    write_evaluation(folder / "evaluation.json", {"checkpoint": "best.pth", **result})


def predictions(split: Any, found: list[list[Found]]) -> list[FramePrediction]:
    """Boxes on the lesions and in the corner opposite to them."""
    first = min(record["video_id"] for record in split.records)
    result = []
    for record in split.records:
        hit, false = found[record["video_id"] - first][record["frame_index"]]
        boxes, scores = [], []
        if hit is not None:
            x, y, w, h = record["annotations"][0]["bbox"]
            boxes.append([x, y, x + w, y + h])
            scores.append(hit)
        if false is not None:
            boxes.append([54.0, 40.0, 62.0, 47.0])  # lesions end at 39
            scores.append(false)
        corners = np.array(boxes, float).reshape(-1, 4)
        classes = np.zeros(len(boxes), np.int64)
        result.append(
            FramePrediction(record["image_id"], corners, np.array(scores, float), classes)
        )
    return result


def write_video(path: Path, frames: int = 30, size: tuple[int, int] = (64, 48)) -> Path:
    """A video whose frame k is of the grey value 4 k."""
    with av.open(os.fspath(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for k in range(frames):
            pixels = np.full((size[1], size[0], 3), 4 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
