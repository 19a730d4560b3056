"""Command line of the programs ``datasets/prepare_*.py``.

    converter_parser           common options: --source and --output
    run_converter              source -> files and a report, or an exit with the reason
    check_folder, check_apart, numbers_of   checks of option values

A converter is a function from its options to the videos of each split.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from v2idetr.data.audit import Findings
from v2idetr.output_folder import check_writable, explain_os_error
from v2idetr.prepare.annotations import Conversion, Video, printable


def converter_parser(description: str | None, source: str) -> argparse.ArgumentParser:
    """Parser with ``--source`` and ``--output``.

    Args:
        description: the converter's docstring, shown unchanged by ``--help``.
        source: help text of ``--source``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help=source)
    add("--output", type=Path, required=True, help="folder for the JSON files and the audit")
    return parser


def run_converter(
    program: str,
    options: argparse.Namespace,
    read: Callable[[argparse.Namespace, Findings], Mapping[str, Sequence[Video]]],
    name: str,
    class_names: Sequence[str],
    boxes: Literal["clip", "raw"] = "clip",
) -> str:
    """Read ``options.source``, write its splits to ``options.output`` and return the report.

    Args:
        program: path of the converter, whose file name appears in messages and files.
        read: (options, notes) -> videos by split; notes omissions.
        name, class_names, boxes: see Conversion.

    Raises:
        SystemExit: reason of a ValueError or OSError while reading or writing.
    """
    conversion = Conversion(
        name=name,
        converter=Path(program).name,
        output=options.output,
        image_root=options.source,
        class_names=class_names,
        boxes=boxes,
    )
    try:
        check_writable(options.output)
        conversion.write(read(options, conversion.notes))
    except OSError as error:
        message = explain_os_error(error)
        raise SystemExit(printable(f"{conversion.converter}: {message}")) from None
    except ValueError as error:
        raise SystemExit(printable(f"{conversion.converter}: {error}")) from None
    return "\n".join(conversion.lines())


def numbers_of(text: str) -> list[int]:
    """``"1,3,5-8"`` -> [1, 3, 5, 6, 7, 8]; "" -> []. Raises ValueError for anything else."""
    numbers: list[int] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ValueError(f"{part!r} is neither a number nor a range such as 5-8")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(
                f"{part!r} is a range that ends before it begins: write {last}-{first}"
            )
        numbers += range(first, last + 1)
    if text.strip() and not numbers:
        raise ValueError(f"{text!r} has no number in it")
    return numbers


def check_apart(source: Path, output: Path) -> None:
    """Raise ValueError if the frame cache of ``output`` is the folder of ``source``'s frames.

    A program that is run again would take its own, perhaps unfinished, cache for the data.
    """
    if (source / "frames").resolve() == (output / "frames").resolve():
        raise ValueError(
            f"{output}: is the source folder (--source, --output); its `frames` would be the data "
            "and their cache at once. Give another folder by --output."
        )


def check_folder(source: Path, found: Iterable[object], expected: str) -> None:
    """Raise ValueError with the ``expected`` layout unless some of it was ``found``."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder (--source)")
    if not any(found):
        held = sorted(entry.name for entry in source.iterdir())
        listed = ", ".join(held[:8]) + (", ..." if held[8:] else "") if held else "nothing"
        raise ValueError(
            f"{source}: not the expected layout; it holds {listed}. Expected:\n{expected}"
        )
