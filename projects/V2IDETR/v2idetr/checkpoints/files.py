"""Files of weights: read without executing code, written completely or not at all."""

from __future__ import annotations

import argparse
import errno
import hashlib
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from v2idetr.atomic_file import write_atomically
from v2idetr.modeling.backbone_weights import read_numpy_pickle
from v2idetr.tensor_files import read_safetensors

MAX_LISTED = 10  # names in a message for each kind of mismatch
# Additional class allowed in torch files, without code to execute: the command line of DETR,
# Deformable DETR and SAM-DETR.
SAFE_CLASSES = (argparse.Namespace,)
FORMER_NAME = re.compile(r"^((?:.*\.)?)temporal\.(?=levels\.)")  # MSI, now in a slot of the network
USUAL = ("model", "state_dict")  # preferred keys of weights


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used; the message has the remedy."""


@dataclass
class Stored:
    """Content of a file of weights.

    Attributes:
        state: tensors by name.
        beside: other top-level entries of a torch file.
        metadata: header of a safetensors file.
        taken: key of the tensors in a torch file: "model", "ema.module"; "" for the top level.
        others: keys of further weights of the same names.
    """

    state: dict[str, Tensor]
    beside: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    taken: str = ""
    others: tuple[str, ...] = ()


def read_weights(path: str | Path, key: str = "") -> Stored:
    """Tensors by name of a safetensors or torch file or of a pickle of numpy arrays, on the CPU.

    A torch file has them at the top level or below a key. Of several sets, "model", else
    "state_dict", else the first one is read. The prefix "module." of DataParallel is removed.

    Args:
        path: path of the file.
        key: key of the set to read, such as "ema_state" or "ema.module".

    Raises:
        CheckpointError: see :func:`read_torch`; or the file has no named tensors, or none below
            ``key``.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        if key:
            raise CheckpointError(f"{path}: a safetensors file has one set of weights, no {key!r}.")
        return _read_safetensors(path)
    if path.suffix == ".pkl" and path.is_file():
        try:
            content = read_numpy_pickle(path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    else:
        content = read_torch(path)
    sets = dict(_sets_of_weights(content))
    if not sets or (key and key not in sets):
        raise CheckpointError(_no_weights(path, content, key, list(sets)))
    taken = key or next((name for name in (*USUAL, "") if name in sets), next(iter(sets)))
    state = sets[taken]
    others = [name for name, other in sets.items() if name != taken and _alike(state, other)]
    first = taken.partition(".")[0]
    beside = {name: value for name, value in content.items() if name != first} if taken else {}
    state = with_current_names(_without_module(state))
    return Stored(state, beside, taken=taken, others=tuple(others))


def with_current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of older files, under their current names."""
    return {FORMER_NAME.sub(r"\1fusion.features.", name): tensor for name, tensor in state.items()}


def read_torch(path: str | Path) -> Any:
    """Content of a torch file, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated or damaged, or contains pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file.")
    try:
        _check_sums(path)
        with torch.serialization.safe_globals(list(SAFE_CLASSES)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named or path.read_bytes()[:1] == b"\x80":  # \x80 begins a bare pickle
            what = f" ({named[1]})" if named else ""
            raise CheckpointError(
                f"{path}: contains pickled Python objects{what}, which can run code when read: "
                "not loaded. If you trust it, convert it where it was made: "
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
    """Reject weights with NaN or infinity.

    Raises:
        CheckpointError: names the tensors.
    """
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{source}: has weights that are NaN or infinite: its training diverged, or the "
            "file was assembled wrongly. Use an earlier checkpoint." + listed("in", broken)
        )


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, advice: str) -> None:
    """Replace ``path`` by a new file that ``write`` fills.

    Raises:
        CheckpointError: the disk is full or not writable; an earlier file at ``path`` is untouched.
            ``advice`` ends the message.
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
    """Lines with a title, the number of names and the first names; "" without names."""
    if not names:
        return ""
    more = f"\n    and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return "\n  " + "\n    ".join([f"{title} ({len(names)}):", *names[:MAX_LISTED]]) + more


def _sets_of_weights(content: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All dicts of named tensors in a file, at the top level or at most two keys below."""
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        return
    if any(hasattr(value, "shape") for value in content.values()):
        # Detectron2's pickles have strings beside the arrays.
        arrays = {n: v for n, v in content.items() if not isinstance(v, str)}
        if all(hasattr(value, "shape") for value in arrays.values()):
            yield key, {name: torch.as_tensor(value) for name, value in arrays.items()}
            return
    for name, value in content.items():
        if key.count(".") < 1:
            yield from _sets_of_weights(value, f"{key}.{name}" if key else name)


def _without_module(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets are weights of one network: they share most names."""
    shared = one.keys() & other.keys()
    if not shared:  # each with the prefix of its own wrapper
        one, other = (_without_module(state) for state in (one, other))
        shared = one.keys() & other.keys()
    return 2 * len(shared) > max(len(one), len(other))


def _no_weights(path: Path, content: Any, key: str, have: list[str]) -> str:
    if have:
        return f"{path}: has no weights under {key!r}, but under {', '.join(have)}."
    found = f"is a {type(content).__name__}"
    if isinstance(content, dict):
        found = f"has the keys {', '.join(map(repr, [*content][:MAX_LISTED])) or '(none)'}"
    return (
        f"{path}: has no state dict (names to tensors), at the top level or under a key such as "
        f"'model' or 'state_dict'; it {found}. If it contains the weights, save them alone: "
        "torch.save({'model': weights}, 'weights.pth')."
    )


def _read_safetensors(path: Path) -> Stored:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file.")
    try:
        state, metadata = read_safetensors(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(_damaged(path, error)) from error
    return Stored(with_current_names(state), metadata=metadata)


def _check_sums(path: Path) -> None:
    """Compare the checksums, since torch loads damaged tensors silently."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _os_error(error: BaseException | None) -> OSError | None:
    """The original OSError, hidden by torch's failure to close the incomplete file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _write_failure(path: Path, error: OSError, advice: str) -> str:
    folder = next(folder for folder in (path.parent, *path.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free / 2**20
    code = errno.errorcode.get(error.errno or 0, "error")
    kept = "The previous file is untouched" if path.exists() else "Nothing is left"
    return (
        f"{path}: could not be written ({code}: {error.strerror}; {free:.0f} MiB free). {kept}. "
        f"{advice}"
    )


def _damaged(path: Path, error: Exception) -> str:
    names = [n for n in ("last.pth", "best.pth") if n != path.name and (path.parent / n).exists()]
    others = f"Use another checkpoint of the run ({', '.join(names)}), or copy" if names else "Copy"
    return (
        f"{path}: is truncated or damaged, or is not a checkpoint ({_first_line(error)}). {others} "
        "the file again."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
