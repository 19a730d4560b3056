"""Frames without labels, and a config that pretrains on them in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.free_lunch.tiny_phases import TINY_ENCODER, write_operations, write_phase_config
from tests.tiny_fixtures import *  # noqa: F403 (fixtures)
from tests.tiny_fixtures import ROOT


@pytest.fixture(scope="session")
def unlabelled_data(tiny_data: dict) -> dict:
    """The frames of tiny_data as lists without classes and boxes."""

    def without_boxes(split: dict[str, str]) -> dict[str, str]:
        path = Path(split["json"])
        content = json.loads(path.read_text()) | {"annotations": [], "categories": []}
        copy = path.with_name(f"{path.stem}_unlabelled.json")
        copy.write_text(json.dumps(content))
        return split | {"json": str(copy)}

    return {name: without_boxes(tiny_data[name]) for name in ("train", "val")}


@pytest.fixture(scope="session")
def operations(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("operations")
    counts = {"train": 3, "val": 2, "test": 2}
    made = {
        name: write_operations(folder, name, videos=count, seed=count)
        for name, count in counts.items()
    }
    return {**made, "test": {"held_out": made["test"]}}


@pytest.fixture
def phase_config(tmp_path: Path, operations: dict) -> Path:
    return write_phase_config(tmp_path, operations)


@pytest.fixture
def pretraining_config(tmp_path: Path, unlabelled_data: dict) -> Path:
    return write_pretraining_config(tmp_path, unlabelled_data)


def write_pretraining_config(folder: Path, data: dict) -> Path:
    """Free Lunch's recipe with tiny encoders: 6 steps a stage, evaluated at 3 and 6."""
    config = {
        "_base_": [str(ROOT / "configs" / p) for p in ("recipes/free_lunch.py", "data/frames.py")],
        "train": {
            "output_dir": str(folder / "run"),
            "device": "cpu",
            "max_iter": 6,
            "batch_size": 4,
            "eval_period": 3,
            "checkpoint_period": 2,
            "log_period": 2,
            "num_workers": 0,
        },
        "optimizer": {"lr": 0.1},
        "data": data,
        "views": {"input_size": 64},
        "encoder": TINY_ENCODER,
        "teacher": {"encoder": TINY_ENCODER},
        "stages": {"teacher": {"queue_size": 8}, "student": {"queue_size": 8}},
    }
    path = folder / "pretraining.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
