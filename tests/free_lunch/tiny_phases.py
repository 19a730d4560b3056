"""Operations whose phases are colours, and a config that recognises them in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.tiny_fixtures import ROOT
from v2idetr.data.coco_vid import write_split

TINY_ENCODER = {
    "backbone": {"_target_": "tiny_parts.TinyNormBackbone", "width": 8},
    "weights": "",
    "hidden_dim": 16,
    "dim": 8,
}
PHASES = ["Preparation", "Dissection", "Closing"]
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
STAGES = ("probe", "finetune", "phases")


def write_operations(folder: Path, name: str, *, videos: int, seed: int) -> dict[str, str]:
    """Each video goes through the phases, eight noisy frames each."""
    rng = np.random.default_rng(seed)
    images = []
    for video in range(videos):
        for frame in range(24):
            number, phase = len(images) + 1, frame // 8
            pixels = rng.normal(COLOURS[phase], 60, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            file_name = f"{name}/{number:03d}.png"
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / file_name)
            place = {"video_id": video + 1, "frame_index": frame, "scene_id": 0}
            size = {"width": 64, "height": 64, "phase": PHASES[phase]}
            images.append({"id": number, "file_name": file_name, **size, **place})
    write_split(
        folder / f"{name}.json",
        videos=[{"id": v + 1, "name": f"{name}{v}", "frame_rate": 1.0} for v in range(videos)],
        images=images,
        annotations=[],
        categories=[],
        info={"description": "test"},
        further={"phases": PHASES},
    )
    return {"json": str(folder / f"{name}.json"), "image_root": str(folder)}


def write_phase_config(folder: Path, data: dict) -> Path:
    resize = {"_target_": "v2idetr.data.augmentation.resize_fixed", "width": 64, "height": 64}
    config = {
        "_base_": [str(ROOT / "configs" / p) for p in ("recipes/free_lunch.py", "data/frames.py")],
        "train": {
            "output_dir": str(folder / "run"),
            "device": "cpu",
            "stages": list(STAGES),
            "max_iter": 30,
            "batch_size": 6,
            "eval_period": 15,
            "checkpoint_period": 10,
            "log_period": 10,
            "num_workers": 0,
        },
        "optimizer": {"lr": 0.05},
        "data": {**data, "phases": PHASES, "augmentations": {"test": [resize]}},
        "encoder": TINY_ENCODER,
        "finetune": {"batch_size": None, "optimizer": {"lr": 0.02, "backbone_lr": 0.02}},
        "phases": {"max_iter": 150, "optimizer": {"lr": 0.02}},
        "stages": {"phases": {"num_layers": 3, "width": 8}},
    }
    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
