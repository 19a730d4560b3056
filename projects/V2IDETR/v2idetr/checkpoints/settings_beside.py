"""Settings of a detector that are not in its tensors, from the data beside them."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from v2i_runtime.preprocess import FixedSize, NoResize, Preprocess, ShortestEdge
from v2idetr.checkpoints.files import CheckpointError, Stored
from v2idetr.modeling.weight_rules import Layout

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"  # of transformers


def settings_beside(path: Path, stored: Stored, layout: Layout) -> dict[str, Any]:
    """Our settings, and "class_names", "preprocess" and "dilation" if given.

    Args:
        path: path of the file.
        stored: content of the file.
        layout: layout of the file.

    Raises:
        CheckpointError: invalid JSON, or unsupported settings.
    """
    if layout.name == "transformers":
        return read_folder(path.parent)
    args = stored.beside.get("args")
    if layout.name != "official" or not isinstance(args, Namespace):
        return {}
    try:
        return _of_command_line(args)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}.") from error


def read_folder(folder: Path) -> dict[str, Any]:
    """As :func:`settings_beside`, from the JSON files of transformers in a folder."""
    settings: dict[str, Any] = {}
    for name, interpret in ((CONFIG, _of_config), (PROCESSOR, _of_processor)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())  # with or without a byte-order mark
            settings |= interpret(content)
        except (json.JSONDecodeError, AttributeError) as error:
            raise CheckpointError(f"{path}: is not a JSON file of settings: {error}.") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}.") from error
    return settings


def _of_command_line(args: Namespace) -> dict[str, Any]:
    if getattr(args, "dilation", False):
        raise ValueError("was trained with --dilation (DC5), which is not supported")
    if getattr(args, "pre_norm", False):
        raise ValueError("was trained with --pre_norm; only post-norm layers are supported")
    if getattr(args, "position_embedding", "sine") not in ("sine", "v2"):
        raise ValueError(
            f"was trained with --position_embedding {args.position_embedding}; we support only sine"
        )
    known = {"num_heads": "nheads", "num_queries": "num_queries", "dilation": "dilation"}
    return {ours: getattr(args, theirs) for ours, theirs in known.items() if hasattr(args, theirs)}


def _of_config(config: dict[str, Any]) -> dict[str, Any]:
    heads = {config.get(f"{stack}_attention_heads", 8) for stack in ("encoder", "decoder")}
    points = {config.get(f"{stack}_n_points", 4) for stack in ("encoder", "decoder")}
    if len(heads) > 1 or len(points) > 1:
        raise ValueError("has different numbers of heads or points in encoder and decoder")
    for key, ours in (
        ("dilation", False),
        ("position_embedding_type", "sine"),
        ("activation_function", "relu"),
    ):
        if config.get(key, ours) != ours:
            raise ValueError(f"has {key}={config[key]!r}; only {ours!r} is supported")
    for key in ("backbone_config", "backbone_kwargs"):
        stride = (config.get(key) or {}).get("output_stride")
        if stride not in (None, 32):
            raise ValueError(
                f"has {key}.output_stride={stride}, a dilated (DC5) backbone; only 32 is supported"
            )
    settings: dict[str, Any] = {"num_heads": heads.pop(), "dilation": False}
    if config.get("two_stage", False):
        settings["num_queries"] = config.get("two_stage_num_proposals", 300)
    labels = config.get("id2label")
    if isinstance(labels, dict):
        settings["class_names"] = [labels[key] for key in sorted(labels, key=int)]
    return settings


def _of_processor(processor: dict[str, Any]) -> dict[str, Any]:
    try:
        scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
        mean, std = (
            tuple(round(number / scale, 4) for number in processor[f"image_{kind}"])
            for kind in ("mean", "std")
        )
        if not processor.get("do_resize", True):
            resize = NoResize()
        else:
            size = processor["size"]
            if not isinstance(size, dict):  # of version 4
                size = {"shortest_edge": size, "longest_edge": processor["max_size"]}
            if "height" in size:
                resize = FixedSize(height_px=int(size["height"]), width_px=int(size["width"]))
            else:
                resize = ShortestEdge(int(size["shortest_edge"]), int(size["longest_edge"]))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"has no pixel statistics or no size ({error}); fix it, or remove it if images were "
            "resized and normalised as for the published detectors"
        ) from error
    return {"preprocess": Preprocess(resize, mean, std, size_divisor=1)}
