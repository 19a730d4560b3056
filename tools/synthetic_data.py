"""Synthetic data: command lines that make it, and overrides with its paths."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
CLIPS = ("--train-clips", "--test-easy-clips", "--test-hard-clips", "--negative-clips")


def make_command(
    layout: str, data: Path, *, seed: int = 0, size: str = "", clips: Sequence[int] = ()
) -> list[str]:
    """Program and arguments that render the video.

    Args:
        layout: "sunseg" or "buv".
        data: output folder.
        seed: random seed.
        size: size of the images, "WxH"; "" for the default.
        clips: number of clips for training, easy and hard test, and without lesion, as far as the
            layout has them; () for the default numbers.
    """
    command = [_program("make_synthetic.py"), "--layout", layout, "--output", str(data)]
    command += ["--seed", str(seed)]
    command += ["--size", size] if size else []
    for name, count in zip(CLIPS, clips, strict=False):
        command += [name, str(count)]
    return command


def prepare_command(
    layout: str, data: Path, annotations: Path, *, negatives: bool = False
) -> list[str]:
    """Program and arguments that write one JSON per split.

    Args:
        layout, data: see `make_command`.
        annotations: folder of the JSON files.
        negatives: whether there are clips without lesion.
    """
    command = [_program(f"prepare_{layout}.py"), "--source", str(data)]
    command += ["--output", str(annotations)]
    return command + (["--negatives", str(data / "SUN-Negative")] if negatives else [])


def split_overrides(data: Path, annotations: Path, tests: Mapping[str, str]) -> list[str]:
    """Overrides with the paths of this data.

    Args:
        data, annotations: see `prepare_command`.
        tests: file name without suffix, by name of the test split.
    """

    def paths(name: str) -> dict[str, str]:
        return {"json": str(annotations / f"{name}.json"), "image_root": str(data)}

    overrides = [
        f"data.{name}.{key}={json.dumps(value)}"
        for name in ("train", "val")
        for key, value in paths(name).items()
    ]
    return [*overrides, f"data.test={json.dumps({k: paths(v) for k, v in tests.items()})}"]


def _program(name: str) -> str:
    return os.path.relpath(DATASETS / name)
