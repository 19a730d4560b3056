"""Tiny pictures and masks for hand-made layouts, and views of what a converter wrote."""

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), colour: int = 90) -> None:
    """A plain picture, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 60, 50)).save(path)


def mask(path: Path, *boxes_xywh: tuple[int, int, int, int], value: int = 255) -> None:
    """A mask of filled boxes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for x, y, w, h in boxes_xywh:
        canvas[y : y + h, x : x + w] = value
    Image.fromarray(canvas).save(path)


def boxes_by_file(split: dict) -> dict[str, list[list[float]]]:
    """Boxes of each frame by its file name, [] for lesion-free ones, in the order of the file."""
    names = {image["id"]: image["file_name"] for image in split["images"]}
    boxes: dict[str, list[list[float]]] = {name: [] for name in names.values()}
    for annotation in split["annotations"]:
        boxes[names[annotation["image_id"]]].append(annotation["bbox"])
    return boxes


def names(split: dict) -> list[str]:
    """Names of the videos of a split."""
    return [video["name"] for video in split["videos"]]
