"""Output files: checks before long work, and temporary names until they are complete."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


def check_outputs(
    outputs: Mapping[str, Path], inputs: Mapping[str, str], *, overwrite: bool
) -> dict[str, Path]:
    """The output files with symbolic links resolved, after checks; nothing is created.

    Args:
        outputs: file by command-line option.
        inputs: file, folder or pattern that must not be overwritten, by its name in messages.
        overwrite: whether existing files may be replaced.

    Raises:
        ValueError: an output is an input (also through a link), another output, a folder, exists,
            or lies where nothing can be written.
    """
    resolved = {option: Path(os.path.realpath(path)) for option, path in outputs.items()}
    for option, path in resolved.items():
        for what, source in inputs.items():
            if _is_among(path, source):
                raise ValueError(
                    f"{option} {outputs[option]}: is the {what} {source}; choose another {option}"
                )
        if path.is_dir():
            raise ValueError(f"{option} {path}: is a folder, not a file; choose another {option}")
        if path.exists() and not path.is_file():
            raise ValueError(f"{option} {path}: is no ordinary file; choose another {option}")
        for other, taken in resolved.items():
            if other < option and _same(path, taken):
                raise ValueError(f"{option} and {other} are one file, {path}: choose two names")
        if path.exists() and not overwrite:
            raise ValueError(
                f"{option} {outputs[option]}: exists; choose another name, or add --overwrite"
            )
    for option, path in resolved.items():
        _check_folder(option, path)
    return resolved


def temporary_name(path: Path, kind: str = "tmp") -> Path:
    """Name beside `path` for a file that is not complete yet."""
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """OSErrors of this block name `path`: a full disk is reported without a name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _is_among(path: Path, source: str) -> bool:
    """Whether a file is the source, or one of the files in its folder or of its pattern."""
    if not path.exists():
        return False
    if os.path.isdir(source):
        return any(_same(path, Path(entry.path)) for entry in os.scandir(source))
    if os.path.exists(source):
        return _same(path, Path(source))
    return any(_same(path, Path(name)) for name in glob.iglob(source, recursive=True))


def _same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)  # sees hard links
    except OSError:
        return path == other


def _check_folder(option: str, path: Path) -> None:
    """Check that something can be written to a file's folder, or to the nearest one there is."""
    folder = next(folder for folder in path.parents if folder.exists())
    try:
        # Permission bits do not show read-only disks, and do not apply to root.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"{option} {path}: nothing can be written to {path.parent} ({error.strerror}); "
            f"choose another {option}"
        ) from error
