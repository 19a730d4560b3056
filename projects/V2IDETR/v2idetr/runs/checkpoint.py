"""Checkpoints: plain values and tensors, written whole or not at all, read without running code."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from v2idetr.checkpoints.architecture import Architecture
from v2idetr.checkpoints.class_heads import class_head_prefixes
from v2idetr.checkpoints.files import (
    CheckpointError,
    Stored,
    listed,
    read_torch,
    read_weights,
    write_whole,
)
from v2idetr.checkpoints.layouts import layout_of, network_of
from v2idetr.checkpoints.published import (
    check_architecture,
    check_header,
    differing_pixels,
    read_header,
)
from v2idetr.checkpoints.wrappers import unwrapped

logger = logging.getLogger(__name__)

FORMAT = "v2idetr-checkpoint"
VERSION = 1


@dataclass
class Checkpoint:
    """What is known about a stage after `iteration` completed steps.

    Attributes:
        stage: its name, such as "teacher", "plain" or "student".
        iteration: completed steps.
        model: state dict of the detector (of a distilled student: the student's own).
        adapters: state of what surrounds it in training only.
        optimizer: its state dict; None in files that are only for evaluation.
        progress: state of the trainer's hooks, by hook.
        best: {"metric", "value", "iteration"} of the best evaluation so far; None before the first.
        class_names: by class index.
        config_fingerprint: see `config.fingerprint`.
        git_commit: of the source tree, "" if unknown.
        architecture: see ``architecture.describe``; empty in files of before it was kept.
        pixels: see ``backbone_handover.pixel_statistics``; empty in files of before they were kept.
        needs: digests of the files of earlier stages, by role; empty as well.
    """

    stage: str
    iteration: int
    model: dict[str, Tensor]
    adapters: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    class_names: list[str] = field(default_factory=list)
    config_fingerprint: str = ""
    git_commit: str = ""
    architecture: Architecture = field(default_factory=dict)
    pixels: dict[str, list[float]] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        CheckpointError: the disk is full or cannot be written; what `path` held before is
            untouched.
    """
    content = {"format": FORMAT, "version": VERSION, **_shallow_dict(checkpoint)}
    _assert_plain(content, "checkpoint")
    advice = "Make room, or choose another train.output_dir."
    if path.exists():
        advice = "Make room and continue with --resume, or choose another train.output_dir."
    write_whole(path, lambda file: torch.save(content, file), advice=advice)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of this project, on the CPU.

    Raises:
        CheckpointError: missing, truncated, holding pickled code, or of another format.
    """
    content = read_torch(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is not a checkpoint of this project. To start from its weights, name it as "
            "train.init_checkpoint; --resume needs a file written by train_net.py."
        )
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: has format version {content.get('version')}, but this program reads version "
            f"{VERSION}; use the program that wrote it."
        )
    names = {field.name for field in fields(Checkpoint)}
    try:
        return Checkpoint(**{name: value for name, value in content.items() if name in names})
    except TypeError as error:
        raise CheckpointError(f"{path}: lacks a part of a checkpoint: {error}") from error


def load_detector(
    detector: nn.Module,
    path: str | Path,
    *,
    class_names: list[str] | None = None,
    partial: bool = False,
    advice: str = "",
    stored: Stored | None = None,
) -> list[str]:
    """Give a detector the weights in a file of this project.

    Args:
        detector: gets the weights.
        path: a published file, a checkpoint, {"model": state dict}, or a bare state dict.
        class_names: what the classes must be, where the file says; with `partial`, class heads for
            others are left out.
        partial, advice: see `load_into`.
        stored: content of the file, where it has been read.

    Returns:
        names of the detector's weights that were not loaded (empty unless `partial`).

    Raises:
        CheckpointError: see `read_weights` and `load_into`; other classes; the file is of another
            architecture, or of images with another pixel_mean or pixel_std; or it is in the layout
            of another code base.
    """
    if stored is None:
        stored, remarks = unwrapped(read_weights(path))
        for remark in remarks:
            logger.info("%s: %s", path, remark)
    header = read_header(stored.metadata, path)
    if header is not None:
        check_header(header, detector, path, partial=partial, advice=advice)
    elif (found := layout_of(stored.state)) is not None:
        raise CheckpointError(
            f"{path}: has the layout of {found[1].title}. Convert it first: "
            f"python tools/convert_checkpoint.py {path} --output weights.safetensors"
        )
    elif known := stored.beside.get("architecture") or _named_network(stored.state, detector):
        also = differing_pixels(stored.beside.get("pixels") or {}, detector)
        check_architecture(known, detector, path, partial=partial, advice=advice, also=also)
    state = stored.state
    trained_on = header.class_names if header else stored.beside.get("class_names")
    if class_names is not None and isinstance(trained_on, list) and trained_on != class_names:
        if not partial:
            raise CheckpointError(
                f"{path}: was trained for the classes {trained_on}, but data.class_names is "
                f"{class_names}. tools/convert_checkpoint.py --new-class-head gives it a fresh "
                "class head for other classes." + (f" Or {advice}." if advice else "")
            )
        heads = class_head_prefixes(getattr(detector, "net", detector))
        state = {n: t for n, t in state.items() if not n.removeprefix("net.").startswith(heads)}
    return load_into(detector, state, path, partial=partial, advice=advice)


def _named_network(state: Mapping[str, Tensor], detector: nn.Module) -> Architecture:
    """The family that the names of a bare state dict are of, where the detector's are of another.

    A network of the user's own may have the names of a family of ours.
    """
    theirs, own = (
        network_of({name.removeprefix("net."): tensor for name, tensor in names.items()})
        for names in (state, detector.state_dict())
    )
    return {"network": theirs} if theirs not in ("", own) else {}


@contextlib.contextmanager
def blaming(key: str) -> Iterator[None]:
    """Errors about a file in this block begin with the key that names it; "" for none."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}" if key else str(error)) from error


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str | Path,
    *,
    partial: bool = False,
    advice: str = "",
) -> list[str]:
    """Copy weights into a model.

    Args:
        model: gets the weights.
        state: names to tensors.
        source: where they come from, for messages.
        partial: accept differences; otherwise any difference is an error and nothing is copied.
        advice: how the user can have them accepted, for that error.

    Returns:
        names of the model's weights that were not loaded (empty unless `partial`).

    Raises:
        CheckpointError: lists what is missing, unexpected or of another shape; or not one weight
            fits.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shared = own.keys() & state.keys()
    reshaped = sorted(name for name in shared if own[name].shape != state[name].shape)
    shapes = [f"{n} {_shape(state[n])}, the model has {_shape(own[n])}" for n in reshaped]
    if not partial and (missing or unexpected or reshaped):
        raise CheckpointError(
            f"{source}: its weights do not fit the model, so it belongs to another architecture or "
            f"class list ({len(shared) - len(reshaped)} of {len(own)} fit)."
            + listed("missing in the file", missing)
            + listed("not in the model", unexpected)
            + listed("of another shape", shapes)
            + "\nUse the config that it was trained with (config.yaml beside it)"
            + (f"; or {advice}." if advice else ".")
        )
    fitting = {name: state[name] for name in shared if name not in reshaped}
    if not fitting:
        raise CheckpointError(f"{source}: not one of its weights fits the model.")
    model.load_state_dict(fitting, strict=False)
    if unexpected or reshaped:
        strange = listed("not in the model", unexpected) + listed("of another shape", shapes)
        logger.warning("%s: left out%s", source, strange)
    return sorted({*missing, *reshaped})


def _shallow_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    """As `dataclasses.asdict`, without its deep copy of all weights."""
    return {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}


def _assert_plain(value: Any, name: str) -> None:
    """Only exact plain types (a numpy float is a float, too), as `weights_only=True` reads back."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) in (str, int), f"{name} has the key {key!r}"
            _assert_plain(item, f"{name}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _assert_plain(item, f"{name}.{index}")
    else:
        plain = value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)
        assert plain, f"{name} is a {type(value).__name__}"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
