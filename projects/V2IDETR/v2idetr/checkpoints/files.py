"""Files of weights: read without running code, written whole or not at all."""

from __future__ import annotations

import argparse
import errno
import hashlib
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from v2idetr.atomic_file import write_atomically
from v2idetr.modeling.backbone import read_numpy_pickle

MAX_LISTED = 10  # names shown of each kind of mismatch
# What training programs keep beside the weights and torch does not know to be harmless: a record of
# the command line (DETR, Deformable DETR, SAM-DETR). It has no code of its own to run.
HARMLESS = (argparse.Namespace,)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used; the message says what to do."""


@dataclass
class Stored:
    """What a file of weights holds.

    Attributes:
        state: tensors by name.
        beside: what else a torch file holds on its first level, by name.
        metadata: the header of a safetensors file, words by name.
    """

    state: dict[str, Tensor]
    beside: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_weights(path: str | Path) -> Stored:
    """Tensors by name of a safetensors or torch file or of a pickle of numpy arrays, on the CPU.

    A torch file holds them bare or under "model" or "state_dict". What DataParallel puts before all
    names ("module.") is taken off.

    Raises:
        CheckpointError: see :func:`read_torch`; or there are no named tensors in the file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".pkl" and path.is_file():
        try:
            content = read_numpy_pickle(path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    else:
        content = read_torch(path)
    state, beside = content, {}
    for key in ("model", "state_dict"):
        part = content.get(key) if isinstance(content, dict) else None
        if isinstance(part, dict) and any(hasattr(value, "shape") for value in part.values()):
            state, beside = part, {name: v for name, v in content.items() if name != key}
            break
    if path.suffix == ".pkl" and isinstance(state, dict):
        state = {name: torch.as_tensor(v) for name, v in state.items() if not isinstance(v, str)}
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items())
    ):
        found = f"is a {type(content).__name__}"
        if isinstance(content, dict):
            found = f"has the keys {', '.join(map(repr, [*content][:MAX_LISTED])) or '(none)'}"
        raise CheckpointError(
            f"{path}: holds no state dict (names to tensors), bare or under the key 'model' or "
            f"'state_dict'; it {found}. If the weights are in it, save them alone: "
            "torch.save({'model': weights}, 'weights.pth')."
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return Stored(dict(state), beside)


def read_torch(path: str | Path) -> Any:
    """Content of a torch file, on the CPU.

    Raises:
        CheckpointError: missing, truncated, damaged, or holding pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file.")
    try:
        _check_sums(path)
        with torch.serialization.safe_globals(list(HARMLESS)):
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
        raise CheckpointError(_damaged(path, error)) from error


def check_finite(state: dict[str, Tensor], source: str | Path) -> None:
    """Refuse weights of which one is NaN or infinite.

    Raises:
        CheckpointError: names the tensors.
    """
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{source}: has weights that are NaN or infinite: its training has diverged, or the "
            "file was put together wrongly. Use an earlier checkpoint." + listed("in", broken)
        )


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, advice: str) -> None:
    """Let ``write`` fill a file that then replaces ``path``.

    Raises:
        CheckpointError: the disk is full or cannot be written; what ``path`` held before is
            untouched. ``advice`` ends the message.
    """
    try:
        write_atomically(path, write)
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None:
            raise
        raise CheckpointError(_write_failure(path, cause, advice)) from error


def sha256(path: Path) -> str:
    """Digest of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(title: str, names: Sequence[str]) -> str:
    """Lines that show the first names under a title with their number; "" without names."""
    if not names:
        return ""
    more = f"\n    and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return "\n  " + "\n    ".join([f"{title} ({len(names)}):", *names[:MAX_LISTED]]) + more


def _read_safetensors(path: Path) -> Stored:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file.")
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Stored(state, metadata=file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_damaged(path, error)) from error


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


def _write_failure(path: Path, error: OSError, advice: str) -> str:
    folder = next(folder for folder in (path.parent, *path.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free / 2**20
    code = errno.errorcode.get(error.errno or 0, "error")
    kept = "The file that was there before is untouched" if path.exists() else "Nothing is left"
    return (
        f"{path}: could not be written ({code}: {error.strerror}; {free:.0f} MiB free). {kept}. "
        f"{advice}"
    )


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path}: is truncated or damaged, or is not a checkpoint ({_first_line(error)}). Use "
        "another checkpoint of the run (last.pth, best.pth), or copy the file again."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
