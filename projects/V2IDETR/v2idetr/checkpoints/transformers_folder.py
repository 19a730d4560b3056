"""A folder of transformers: tensors, config.json and preprocessor_config.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from v2idetr.checkpoints.files import CheckpointError, write_whole
from v2idetr.checkpoints.published import ADVICE, Header
from v2idetr.checkpoints.renaming import State
from v2idetr.checkpoints.resnets import DEPTHS
from v2idetr.tensor_files import packed

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # of the published detectors


def hidden_settings(folder: Path) -> dict[str, Any]:
    """Settings of ours that the tensors do not show, from what lies beside them.

    Raises:
        CheckpointError: a file that is no JSON; the detector has something that we do not have.
    """
    settings: dict[str, Any] = {}
    for name, interpret in ((CONFIG, _network_settings), (PROCESSOR, _picture_settings)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())  # with or without a byte-order mark
            settings |= interpret(content)
        except (json.JSONDecodeError, AttributeError) as error:
            raise CheckpointError(f"{path}: is no JSON of settings: {error}.") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}.") from error
    return settings


def write_folder(folder: Path, state: State, header: Header, source: Path) -> list[str]:
    """Write a detector so that transformers can load it.

    Args:
        folder: gets the files.
        state: tensors in the layout of transformers.
        header: of the detector.
        source: for messages.

    Returns:
        what could not be said to transformers, one sentence each.

    Raises:
        CheckpointError: timm, whose backbones transformers names, has none of this kind; or a file
            cannot be written.
    """
    if header.architecture["backbone"] not in DEPTHS.values():
        raise CheckpointError(
            f"{source}: transformers takes a backbone by name, and this is no ResNet of a known "
            "depth."
        )
    size, remarks = _size_of(header.input_size), []
    if size is None:
        size = SIZE
        remarks.append(f"pictures: {PROCESSOR} has {size}, for want of {header.input_size!r}")
    texts = {CONFIG: _config_of(header), PROCESSOR: _processor_of(header, size)}
    content = packed(state, {"format": "pt"})
    write_whole(folder / "model.safetensors", lambda file: file.write(content), advice=ADVICE)
    for name, settings in texts.items():
        text = (json.dumps(settings, indent=2) + "\n").encode()
        write_whole(folder / name, lambda file, text=text: file.write(text), advice=ADVICE)
    return remarks


def _network_settings(config: dict[str, Any]) -> dict[str, Any]:
    heads = {config.get(f"{stack}_attention_heads", 8) for stack in ("encoder", "decoder")}
    points = {config.get(f"{stack}_n_points", 4) for stack in ("encoder", "decoder")}
    if len(heads) > 1 or len(points) > 1:
        raise ValueError("has other heads or points in the encoder than in the decoder")
    for key, ours in (
        ("dilation", False),
        ("position_embedding_type", "sine"),
        ("activation_function", "relu"),
    ):
        if config.get(key, ours) != ours:
            raise ValueError(f"has {key}={config[key]!r}; ours is {ours!r}")
    for key in ("backbone_config", "backbone_kwargs"):
        stride = (config.get(key) or {}).get("output_stride")
        if stride not in (None, 32):
            raise ValueError(
                f"has {key}.output_stride={stride}, which is a dilated (DC5) backbone; ours have 32"
            )
    settings: dict[str, Any] = {"num_heads": heads.pop(), "dilation": False}
    if config.get("two_stage", False):
        settings["num_queries"] = config.get("two_stage_num_proposals", 300)
    labels = config.get("id2label")
    if isinstance(labels, dict):
        settings["class_names"] = [labels[key] for key in sorted(labels, key=int)]
    return settings


def _picture_settings(processor: dict[str, Any]) -> dict[str, Any]:
    """How pictures were shown to a detector, as in its header."""
    try:
        scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
        mean, std = (
            [round(number / scale, 4) for number in processor[f"image_{kind}"]]
            for kind in ("mean", "std")
        )
        size = processor["size"]
        if not isinstance(size, dict):  # of version 4
            size = {"shortest_edge": size, "longest_edge": processor["max_size"]}
        if "height" in size:
            words = f"resize_fixed width={size['width']} height={size['height']}"
        else:
            short, long = size["shortest_edge"], size["longest_edge"]
            words = f"ResizeShortEdge short_edges={short} max_size={long}"
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"has no pixel statistics or no size ({error}); mend it, or remove it if pictures were "
            "shown as to the published detectors"
        ) from error
    return {"pixel_mean": mean, "pixel_std": std, "input_size": words}


def _size_of(input_size: str) -> dict[str, int] | None:
    """The size that pictures are to have; None where a header has words of another resize."""
    words = {key: int(number) for key, number in re.findall(r"(\w+)=\[?(\d+)", input_size)}
    if {"width", "height"} <= words.keys():
        return {"height": words["height"], "width": words["width"]}
    if {"short_edges", "max_size"} <= words.keys():
        return {"shortest_edge": words["short_edges"], "longest_edge": words["max_size"]}
    return None


def _processor_of(header: Header, size: dict[str, int]) -> dict[str, Any]:
    """The settings by which transformers shows pictures to a detector."""
    kind = "Detr" if header.architecture["network"] == "DETR" else "DeformableDetr"
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": size,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [number / 255 for number in header.pixel_mean],
        "image_std": [number / 255 for number in header.pixel_std],
        "do_pad": True,
    }


def _config_of(header: Header) -> dict[str, Any]:
    """The settings from which transformers builds a detector."""
    architecture, class_names = header.architecture, header.class_names
    layers = {}
    for stack in ("encoder", "decoder"):
        layers |= {
            f"{stack}_layers": architecture[f"num_{stack}_layers"],
            f"{stack}_attention_heads": architecture["num_heads"],
            f"{stack}_ffn_dim": architecture["ffn_dim"],
        }
    strides = architecture["strides"]
    config = {
        "d_model": architecture["d"],
        "num_queries": architecture["num_queries"],
        **layers,
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": architecture["backbone"],
            "out_indices": [{8: 2, 16: 3, 32: 4}[stride] for stride in strides if stride <= 32],
            "use_pretrained_backbone": False,
            "features_only": True,
            "num_channels": 3,
        },
        "id2label": {str(index): name for index, name in enumerate(class_names)},
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    if architecture["network"] == "DETR":
        return config | {"model_type": "detr", "architectures": ["DetrForObjectDetection"]}
    return config | {
        "model_type": "deformable_detr",
        "architectures": ["DeformableDetrForObjectDetection"],
        "num_feature_levels": len(strides),
        "encoder_n_points": architecture["num_points"],
        "decoder_n_points": architecture["num_points"],
        "with_box_refine": architecture["box_refine"],
        "two_stage": architecture["two_stage"],
        "two_stage_num_proposals": architecture["num_queries"],
        # Version 5 would make the heads of all layers one.
        "tie_word_embeddings": not architecture["box_refine"],
    }
