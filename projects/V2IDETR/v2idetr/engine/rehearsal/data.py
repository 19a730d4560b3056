"""What is wrong with frames and boxes for a detector, measured before it is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from jaxtyping import Float
from torch import nn

from v2idetr.config.load import build
from v2idetr.data.clip_mapper import is_lesion_free
from v2idetr.data.coco_vid import SplitData
from v2idetr.data.loader import ClipDataset
from v2idetr.engine.rehearsal.finding import Finding
from v2idetr.engine.rehearsal.frames import EightFrames
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import Stage, StageModels
from v2idetr.modeling.backbone_handover import pixel_statistics
from v2idetr.modeling.training import TransformerDetector
from v2idetr.wording import counted

MOST_MEASURED = 5000  # frames whose boxes are resized
MOST_AUGMENTED = 48  # frames that are read and augmented
LOST_WARN, LOST_FAIL = 0.1, 0.5  # shares of boxes that augmentation removes
FAR_FROM_NORMAL = 5.0  # of mean or spread of normalised pixels; 0 and 1 are normal
HARDLY_VARIED = 0.05  # spread
SMALL_SHARE = 0.25  # of boxes, from which small ones are a warning


def data_findings(
    run: RunContext, stage: Stage, models: StageModels, frames: EightFrames
) -> Iterator[Finding]:
    """All that is measured without training."""
    split, detector = stage.training_split(run), models.model
    yield from queries(stage.name, detector, split)
    yield box_sizes(run, stage.name, split, finest_stride(detector, frames))
    yield augmentation(run, stage, models)
    pixels = torch.cat([sample["image"].flatten(1) for sample in frames.batch], 1).float()
    yield from normalization(stage.name, detector, pixels.numpy())


def queries(stage: str, detector: nn.Module, split: SplitData) -> Iterator[Finding]:
    """Frames with more lesions than the detector can give boxes; nothing where that is unknown."""
    limits = {
        "num_queries": getattr(getattr(detector, "net", None), "num_queries", None),
        "score_topk": getattr(detector, "score_topk", None),
    }
    counts = [len(record["annotations"]) for record in split.records]
    most = max(counts)
    for key, limit in limits.items():
        if not isinstance(limit, int):
            continue
        over = sum(count > limit for count in counts)
        topic = f"{stage}: queries"
        if over:
            found = f"{over} frames have more lesions (up to {most}) than the {limit} of {key}"
            yield Finding(topic, "fail", found, f"raise {key} of the model to {most} or more")
        elif key == "num_queries":
            yield Finding(topic, "ok", f"{limit}; at most {counted(most, 'lesion')} a frame")


def box_sizes(run: RunContext, stage: str, split: SplitData, finest_px: int) -> Finding:
    """Longer sides of the boxes at the network's input against the stride of its finest map."""
    sides = longer_sides_px(run, split)
    low, middle = np.percentile(sides, (5, 50))
    topic = f"{stage}: boxes"
    found = f"longer side at the network's input: median {middle:.0f} px, 5 % below {low:.0f} px"
    if not finest_px:
        return Finding(topic, "ok", found)
    small = float((sides < finest_px / 2).mean())
    found += f"; finest map: a cell every {finest_px} px"
    if small < SMALL_SHARE:
        return Finding(topic, "ok", found)
    return Finding(
        topic,
        "warn",
        f"{found}; {small:.0%} of the boxes are shorter than half a cell",
        "larger images (data.augmentations), or a detector with finer maps",
    )


def longer_sides_px(run: RunContext, split: SplitData) -> Float[np.ndarray, "n"]:
    """Longer side of every box after the resize of evaluation, of evenly spaced frames."""
    augmentations = T.AugmentationList(build(run.config, "data.augmentations.test"))
    labelled = [record for record in split.records if not is_lesion_free(record)]
    ratios: dict[tuple[int, int], tuple[float, float]] = {}
    sides = []
    for record in labelled[:: -(-len(labelled) // MOST_MEASURED)]:
        size = record["height"], record["width"]
        if size not in ratios:
            image = T.AugInput(np.zeros((*size, 3), np.uint8))
            augmentations(image)
            assert isinstance(image.image, np.ndarray)
            height, width = image.image.shape[:2]
            ratios[size] = height / size[0], width / size[1]
        y, x = ratios[size]
        sides += [max(a["bbox"][2] * x, a["bbox"][3] * y) for a in record["annotations"]]
    return np.array(sides)


def augmentation(run: RunContext, stage: Stage, models: StageModels) -> Finding:
    """Share of the boxes that the training augmentations remove, and of frames without any left."""
    split = stage.training_split(run)
    samples = ClipDataset(split.records, stage.training_mapper(run, models, keep=False))
    labelled = [n for n, record in enumerate(split.records) if not is_lesion_free(record)]
    places = labelled[:: -(-len(labelled) // MOST_AUGMENTED)]
    drawn = [(place, seed) for place in places for seed in range(-(-MOST_AUGMENTED // len(places)))]
    before = after = empty = 0
    for place, seed in drawn:
        left = len(samples[place, seed]["instances"])
        before, after = before + len(split.records[place]["annotations"]), after + left
        empty += not left
    lost = 1 - after / before
    topic, found = f"{stage.name}: augmentation", f"removes {before - after} of {before} boxes"
    if lost < LOST_WARN:
        return Finding(topic, "ok", found)
    return Finding(
        topic,
        "fail" if lost > LOST_FAIL else "warn",
        f"{found}; {empty} of {len(drawn)} frames with lesions have none left and teach that there "
        "is none",
        "weaker crops and zooms in data.augmentations.train, or a smaller data.min_visible "
        f"(now {run.config.data.min_visible:g})",
    )


def normalization(
    stage: str, detector: nn.Module, pixels: Float[np.ndarray, "3 n"]
) -> Iterator[Finding]:
    """Mean and spread of the pixels as the network sees them, and the order of the channels.

    Args:
        pixels: R, G and B of some frames, in 0..255.
    """
    known = pixel_statistics(detector)
    if known.keys() != {"pixel_mean", "pixel_std"}:
        return
    mean, std = np.array(known["pixel_mean"]), np.array(known["pixel_std"])
    own, spread = pixels.mean(1), pixels.std(1)
    centre, width = (own - mean) / std, spread / std
    topic = f"{stage}: normalization"
    found = (
        f"pixels have mean {_rgb(own)} and spread {_rgb(spread)}; as the network sees them "
        f"{_rgb(centre, 2)} and {_rgb(width, 2)}"
    )
    far = np.abs(centre).max() > FAR_FROM_NORMAL or width.max() > FAR_FROM_NORMAL
    if spread.max() < 1:
        yield Finding(topic, "fail", f"the frames are of one colour: {found}", "look at the files")
    elif far or width.max() < HARDLY_VARIED:
        remedy = f"pixel_mean and pixel_std are for pixels in 0..255, but are {_rgb(mean, 3)} and "
        remedy += f"{_rgb(std, 3)}: those of the backbone's weights, or mean and spread above"
        yield Finding(topic, "fail", found, remedy)
    elif _fits_reversed(own, mean, std):
        yield Finding(
            topic,
            "warn",
            f"{found}; pixel_mean {_rgb(mean)} fits better with its channels reversed",
            "frames are RGB: give pixel_mean and pixel_std in this order, not in BGR",
        )
    else:
        yield Finding(topic, "ok", found)


def finest_stride(detector: nn.Module, frames: EightFrames) -> int:
    """Stride in pixels of the finest map that a detector looks at; 0 if it does not say."""
    if isinstance(detector, TransformerDetector):
        with torch.no_grad():
            images = detector.images(detector.frames(frames.batch[:1]))
            return min(detector.net.extract(images).maps)
    backbone: Any = getattr(getattr(detector, "net", None), "backbone", None)
    shapes = backbone.output_shape() if hasattr(backbone, "output_shape") else {}
    return min((int(shape.stride) for shape in shapes.values()), default=0)


def class_counts(split: SplitData) -> Counter[int]:
    """Boxes by class."""
    return Counter(a["category_id"] for record in split.records for a in record["annotations"])


def _fits_reversed(own: np.ndarray, mean: np.ndarray, std: np.ndarray) -> bool:
    """Whether the reversed mean is less than half as far from the frames' own (sums of squares)."""
    if np.ptp(mean) < 1:
        return False
    as_given, turned = (float(np.square((own - m) / std).sum()) for m in (mean, mean[::-1]))
    return turned < as_given / 2


def _rgb(values: Sequence[float] | np.ndarray, decimals: int = 0) -> str:
    return "(" + ", ".join(f"{value:.{decimals}f}" for value in values) + ")"
