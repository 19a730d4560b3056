"""Mask pictures -> the boxes of their parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image
from scipy import ndimage

SMALLEST_PART_PX = 16  # beside a larger part, fewer pixels are specks of the annotation tool


def read_mask(path: Path) -> Bool[np.ndarray, "H W"]:
    """A mask picture as booleans: above half of white; above 0 in palettes and masks of 0 and 1.

    Raises:
        ValueError: the brightest pixel is 2 to 127, and it is not known what that means.
    """
    with Image.open(path) as picture:
        if picture.mode == "P":
            return np.asarray(picture) > 0
        mask = np.asarray(picture.convert("L"))
    brightest = int(mask.max())
    if 1 < brightest <= 127:
        raise ValueError(
            f"{path}: the brightest pixel of this mask is {brightest}; a mask has 0 and 255, 0 and "
            "1, or a palette."
        )
    return mask > (0 if brightest <= 1 else 127)


def boxes_of_mask(mask: Bool[np.ndarray, "H W"]) -> tuple[list[list[int]], int]:
    """[x, y, w, h] of each 8-connected part, top to bottom, and how many specks were left out.

    The largest part is never a speck: it is what the annotator meant, however little is in view.
    """
    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=np.ones((3, 3)), output=labels)
    areas = np.bincount(labels.ravel())[1:]
    boxes = []
    for part, area in zip(ndimage.find_objects(labels), areas, strict=True):
        if area >= min(SMALLEST_PART_PX, areas.max()):
            assert part is not None
            rows, cols = part
            x, y = cols.start, rows.start
            boxes.append([x, y, cols.stop - x, rows.stop - y])
    return boxes, len(areas) - len(boxes)
