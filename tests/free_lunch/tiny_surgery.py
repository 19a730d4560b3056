"""Tiny videos, folders of frames and label files in the layouts of the surgical data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.runtime.tiny_videos import pixels_of

WIDTH, HEIGHT = 64, 48


def write_frames(
    folder: Path,
    number: int,
    *,
    first: int = 1,
    step: int = 1,
    prefix: str = "",
    suffix: str = "jpg",
) -> Path:
    """Numbered frames of the moving square."""
    folder.mkdir(parents=True)
    for k in range(number):
        image = Image.fromarray(pixels_of(k))
        image.save(folder / f"{prefix}{first + k * step:06d}.{suffix}")
    return folder


def write_phases(path: Path, phases: Sequence[str | int], *, header: bool = True) -> Path:
    """A phase file with a line per frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["Frame\tPhase"] if header else []
    lines += [f"{k}\t{phase}" for k, phase in enumerate(phases)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_triplets(
    path: Path, phases: Sequence[int | None], names: Sequence[str], **changes: object
) -> Path:
    """A label file of CholecT50: two triplets a frame, none where the phase is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = [-1] * 13
    content = {
        "fps": 1,
        "num_frames": len(phases),
        "categories": {"phase": {str(k): name for k, name in enumerate(names)}},
        "annotations": {
            str(k): [] if phase is None else [[5, *rest, phase], [7, *rest, phase]]
            for k, phase in enumerate(phases)
        },
    }
    path.write_text(json.dumps(content | changes))
    return path


def brightest(path: Path) -> tuple[float, float]:
    """Centre (x, y) of the white square of a frame, px."""
    pixels = np.asarray(Image.open(path).convert("L"))
    y, x = np.nonzero(pixels > 180)
    return float(x.mean()), float(y.mean())
