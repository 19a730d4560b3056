"""A detector as a folder of transformers: tensors, config.json and preprocessor_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from v2i_runtime.preprocess import FixedSize, NoResize, Preprocess, ShortestEdge
from v2idetr.atomic_file import write_atomically
from v2idetr.checkpoints.conversion import Weights
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.checkpoints.layouts import known_layouts, write_layout
from v2idetr.checkpoints.settings_beside import CONFIG, PROCESSOR
from v2idetr.modeling.resnet_names import DEPTHS
from v2idetr.tensor_files import packed

PUBLISHED_SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # of the detectors on COCO


def export(weights: Weights, folder: Path) -> list[str]:
    """Write a detector in the format of transformers.

    Args:
        weights: weights of the detector.
        folder: output folder of ``model.safetensors``, ``config.json`` and
            ``preprocessor_config.json``.

    Returns:
        remaining differences in transformers, one sentence each.

    Raises:
        CheckpointError: transformers does not support the detector, one of its parts or its
            backbone.
        OSError: a file cannot be written.
    """
    rules, header, path = weights.rules, weights.header, weights.path
    layouts = () if rules is None else rules.layouts
    layout = next((layout for layout in layouts if layout.name == "transformers"), None)
    if layout is None or rules is None or rules.transformers_config is None:
        theirs = [layout for _, layout in known_layouts() if layout.name == "transformers"]
        have = [layout.title.removeprefix("transformers' ") for layout in theirs]
        raise CheckpointError(
            f"{path}: transformers has no {header.architecture['network']}, only "
            f"{' and '.join(have)}."
        )
    strides = header.architecture["strides"]
    if strides != [32] and (len(strides) == 1 or strides[:3] != [8, 16, 32]):
        raise CheckpointError(
            f"{path}: its feature levels have strides {strides}, but transformers supports only "
            "32, or 8, 16, 32 and coarser ones."
        )
    state, remarks = write_layout(layout, weights.state, path), []
    if header.architecture["backbone"] not in DEPTHS.values():
        raise CheckpointError(
            f"{path}: transformers needs a backbone's name, but this is not a ResNet of known "
            "depth."
        )
    if header.architecture.get("isolate_padding"):
        remarks.append(
            "padding: net.isolate_padding is true, but transformers does not support it; features "
            "of images padded to a common size differ slightly there"
        )
    size = _size_of(header.preprocess)
    if size is None:
        size = PUBLISHED_SIZE
        remarks.append(
            f"resize: {PROCESSOR} has {size}, because {header.preprocess.resize} is not supported"
        )
    config = rules.transformers_config(header.architecture) | {
        "id2label": {str(index): name for index, name in enumerate(header.class_names)},
        "label2id": {name: index for index, name in enumerate(header.class_names)},
    }
    processor = _processor_of(header.preprocess, config["architectures"][0], size)
    content = {"model.safetensors": packed(state, {"format": "pt"})}
    for name, settings in ((CONFIG, config), (PROCESSOR, processor)):
        content[name] = (json.dumps(settings, indent=2) + "\n").encode()
    for name, data in content.items():
        write_atomically(folder / name, lambda file, data=data: file.write(data))
    return remarks


def _size_of(preprocess: Preprocess) -> dict[str, int] | None:
    """Resize of transformers; None if it has no equivalent."""
    resize = preprocess.resize
    if isinstance(resize, FixedSize):
        return {"height": resize.height_px, "width": resize.width_px}
    if isinstance(resize, ShortestEdge) and resize.multiple_px == 1:
        return {"shortest_edge": resize.short_edge_px, "longest_edge": resize.max_size_px}
    return PUBLISHED_SIZE if isinstance(resize, NoResize) else None  # unused without a resize


def _processor_of(preprocess: Preprocess, model: str, size: dict[str, int]) -> dict[str, Any]:
    """Settings of transformers' image processor for a detector."""
    return {
        "image_processor_type": model.replace("ForObjectDetection", "ImageProcessor"),
        "format": "coco_detection",
        "do_resize": not isinstance(preprocess.resize, NoResize),
        "size": size,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [number / 255 for number in preprocess.pixel_mean],
        "image_std": [number / 255 for number in preprocess.pixel_std],
        "do_pad": True,
    }
