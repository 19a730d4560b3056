"""Mask images -> boxes of their connected parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from v2i_runtime.image_files import ImageFileError, file_error, open_image
from v2idetr.data.audit import Findings
from v2idetr.prepare.annotations import in_threads

MIN_PART_PX = 16  # smaller parts beside a larger one are specks of the annotation tool


def read_mask(path: Path) -> Bool[np.ndarray, "H W"]:
    """A mask image as booleans: above half of white, or of 1, or above 0 in palettes.

    Raises ImageFileError if the file cannot be read, or its brightest pixel is 2 to 127, which is
    ambiguous.
    """
    image = open_image(path, deep_grey=True)
    if image.mode == "P":
        return np.asarray(image) > 0
    is_deep = image.mode.startswith(("I", "F"))  # a conversion would saturate at 255
    mask = np.asarray(image if is_deep else image.convert("L"))
    brightest = mask.max()
    if 1 < brightest <= 127:
        raise file_error(
            path,
            f"the brightest pixel of this mask is {brightest}",
            "a mask has 0 and 255, 0 and 1, or a palette",
        )
    return mask > (0.5 if brightest <= 1 else 127)


def boxes_by_mask(
    masks: Mapping[str, Path], what: str, notes: Findings
) -> Iterator[tuple[list[list[int]], tuple[int, int]] | None]:
    """Boxes of the parts of each mask and the mask's (width, height), in order.

    None for a missing or unusable mask, whose frame is to be left out. These masks, black masks and
    specks are noted.

    Args:
        masks: mask files by frame name.
        what: title of the progress bar.
        notes: receives the notes.
    """

    def read(path: Path) -> Bool[np.ndarray, "H W"] | ImageFileError:
        try:
            return read_mask(path)
        except ImageFileError as error:
            return error

    for (name, path), mask in zip(
        masks.items(), in_threads(read, list(masks.values()), what), strict=True
    ):
        if isinstance(mask, ImageFileError):
            if isinstance(mask.__cause__, FileNotFoundError):
                notes.add("frame without a mask is left out", name)
            else:
                notes.add(
                    "frame with a mask that cannot be used is left out",
                    f"{name}: {path.name} {mask.reason}",
                )
            yield None
            continue
        boxes, specks = boxes_of_mask(mask)
        if not boxes:
            notes.add("frame with a black mask counts as lesion-free", name)
        if specks:
            notes.add("mask with specks, which give no box", f"{name}: {specks}")
        yield boxes, (mask.shape[1], mask.shape[0])


def boxes_of_mask(mask: Bool[np.ndarray, "H W"]) -> tuple[list[list[int]], int]:
    """[x, y, w, h] of each 8-connected part, top to bottom, and the number of specks left out.

    The largest part is never a speck, because little of a lesion may be in view.
    """
    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=np.ones((3, 3)), output=labels)
    areas = np.bincount(labels.ravel())[1:]
    boxes = []
    for part, area in zip(ndimage.find_objects(labels), areas, strict=True):
        if area >= min(MIN_PART_PX, areas.max()):
            assert part is not None
            rows, cols = part
            x, y = cols.start, rows.start
            boxes.append([x, y, cols.stop - x, rows.stop - y])
    return boxes, len(areas) - len(boxes)
