"""Checkpoints: plain values and tensors, written whole or not at all, read without running code."""

from __future__ import annotations

import errno
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from v2idetr.atomic_file import write_atomically

FORMAT = "v2idetr-checkpoint"
VERSION = 1
MAX_LISTED = 10  # names shown of each kind of mismatch


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used; the message says what to do."""


@dataclass
class Checkpoint:
    """What is known about a stage after `iteration` completed steps.

    Attributes:
        stage: "teacher", "plain" or "student".
        iteration: completed steps.
        model: state dict of the detector (of a distilled student: the student's own).
        adapters: state of what surrounds it in training only.
        optimizer: its state dict; None in files that are only for evaluation.
        progress: state of the trainer's hooks, by hook.
        best: {"metric", "value", "iteration"} of the best evaluation so far; None before the first.
        class_names: by class index.
        config_fingerprint: see `config.fingerprint`.
        git_commit: of the source tree, "" if unknown.
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


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        CheckpointError: the disk is full or cannot be written; what `path` held before is
            untouched.
    """
    content = {"format": FORMAT, "version": VERSION, **_shallow_dict(checkpoint)}
    _assert_plain(content, "checkpoint")
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None:
            raise
        raise CheckpointError(_write_failure(path, cause)) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of this project, on the CPU.

    Raises:
        CheckpointError: missing, truncated, holding pickled code, or of another format.
    """
    content = _read(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is not a checkpoint of this project. To start from its weights, name it as "
            "train.init_checkpoint; --resume and teacher.checkpoint need a file written by "
            "train_net.py."
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


def load_weights(path: str | Path, *, class_names: list[str] | None = None) -> dict[str, Tensor]:
    """State dict in a file: this project's checkpoint, {"model": state dict}, or a bare one.

    Args:
        path: the file.
        class_names: what the classes must be, where the file says.

    Raises:
        CheckpointError: see `load_checkpoint`; other classes; or there is no state dict in it.
    """
    content = _read(Path(path))
    state = content.get("model", content) if isinstance(content, dict) else None
    is_state = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not is_state or not state:
        raise CheckpointError(
            f"{path}: holds no state dict (names to tensors), bare or under the key 'model'."
        )
    trained_on = content.get("class_names")
    if class_names is not None and isinstance(trained_on, list) and trained_on != class_names:
        raise CheckpointError(
            f"{path}: was trained for the classes {trained_on}, but data.class_names is "
            f"{class_names}."
        )
    return dict(state)


def load_into(
    model: nn.Module, state: Mapping[str, Tensor], source: str | Path, *, partial: bool = False
) -> list[str]:
    """Copy weights into a model.

    Args:
        model: gets the weights.
        state: names to tensors.
        source: where they come from, for messages.
        partial: accept differences; otherwise any difference is an error and nothing is copied.

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
    if not partial and (missing or unexpected or reshaped):
        shapes = [f"{n} {_shape(state[n])}, the model has {_shape(own[n])}" for n in reshaped]
        raise CheckpointError(
            f"{source}: its weights do not fit the model, so it belongs to another architecture or "
            f"class list ({len(shared) - len(reshaped)} of {len(own)} fit)."
            + _listed("missing in the file", missing)
            + _listed("not in the model", unexpected)
            + _listed("of another shape", shapes)
            + "\nUse the config that it was trained with (config.yaml beside it); to start from "
            "what fits, set train.init_checkpoint and train.init_partial=true."
        )
    fitting = {name: state[name] for name in shared if name not in reshaped}
    if not fitting:
        raise CheckpointError(f"{source}: not one of its weights fits the model.")
    model.load_state_dict(fitting, strict=False)
    return sorted({*missing, *reshaped})


def _shallow_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    """As `dataclasses.asdict`, without its deep copy of all weights."""
    return {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file.")
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named or path.read_bytes()[:1] == b"\x80":  # \x80 opens a bare pickle
            what = f" ({named[1]})" if named else ""
            raise CheckpointError(
                f"{path}: holds pickled Python objects{what}, which can run code when read, and is "
                "refused. If you trust it, convert it where it was made: "
                "torch.save({'model': model.state_dict()}, 'weights.pth')."
            ) from error
        raise CheckpointError(f"{path}: is not a checkpoint, or is truncated.") from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        KeyError,
        IndexError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(
            f"{path}: is truncated or damaged, or is not a checkpoint ({_first_line(error)}). Use "
            "another checkpoint of the run (last.pth, best.pth), or copy the file again."
        ) from error


def _check_sums(path: Path) -> None:
    """Compare the checksums, which torch does not: damaged tensors load without a word."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _os_error(error: BaseException | None) -> OSError | None:
    """The system's error: torch closes its half-written file and reports that failure instead."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _write_failure(path: Path, error: OSError) -> str:
    free = shutil.disk_usage(path.parent).free / 2**20
    code = errno.errorcode.get(error.errno or 0, "error")
    kept = "The file that was there before is untouched" if path.exists() else "Nothing is left"
    return (
        f"{path}: could not be written ({code}: {error.strerror}; {free:.0f} MiB free). {kept}. "
        "Make room and continue with --resume, or choose another train.output_dir."
    )


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


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f"\n    and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return "\n  " + "\n    ".join([f"{title} ({len(names)}):", *names[:MAX_LISTED]]) + more


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
