"""Command line of the programs that cache frames: ``datasets/prepare_{frames,cholec80,...}.py``.

    frames_parser   common options
    run_program     source -> cache, files and a report, or an exit with the reason
    settings_of, on_unreadable   what the cache needs of the options

The files are written into ``--output``; their frames are in its folder ``frames``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from v2idetr.child_processes import Interrupted
from v2idetr.data.audit import Findings
from v2idetr.output_folder import check_writable, explain_os_error
from v2idetr.prepare.annotations import Conversion, Video, printable
from v2idetr.prepare.command_line import converter_parser
from v2idetr.prepare.frame_cache import CacheSettings

Splits = Mapping[str, Sequence[Video]]


def frames_parser(
    description: str | None, source: str, *, frame_rate: str | None = None
) -> argparse.ArgumentParser:
    """Parser with the source, the output and the settings of the cache.

    Args:
        description: the program's docstring, shown unchanged by ``--help``.
        source: help text of ``--source``.
        frame_rate: default of ``--frame-rate``; None if it has to be given.
    """
    parser = converter_parser(description, source=source)
    add = parser.add_argument
    default = CacheSettings()
    add("--rate", type=_number, default=default.rate, help="frames per second to keep (default 1)")
    add(
        "--short-side",
        type=int,
        default=default.short_side,
        metavar="PX",
        help="shorter side of larger frames (default 256); smaller ones are not enlarged",
    )
    add(
        "--frame-rate",
        type=_number,
        default=frame_rate,
        metavar="HZ",
        help="frames per second of folders of frames "
        + (f"(default {frame_rate})" if frame_rate else "(has to be given for them)"),
    )
    add("--skip-unreadable", action="store_true", help="leave damaged videos out, and note them")
    return parser


def _number(text: str) -> Fraction:
    """``"25"``, ``"29.97"`` or ``"30000/1001"``."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number, such as 25 or 30000/1001"
        ) from None


def settings_of(options: argparse.Namespace) -> CacheSettings:
    """Settings of the cache; ValueError for an invalid one."""
    return CacheSettings(options.rate, options.short_side, options.frame_rate)


def on_unreadable(
    options: argparse.Namespace, notes: Findings
) -> Callable[[ValueError], object] | None:
    """What `cached_frames` does with an unreadable video: note it, or None for an error."""
    if not options.skip_unreadable:
        return None
    return lambda error: notes.add("video cannot be read: left out", str(error))


def run_program(
    program: str,
    options: argparse.Namespace,
    read: Callable[[argparse.Namespace, Findings], tuple[Splits, Sequence[str]]],
    name: str,
) -> str:
    """Cache ``options.source``, write its splits to ``options.output`` and return the report.

    Args:
        program: path of the program, whose file name appears in messages and files.
        options: options of `frames_parser`.
        read: (options, notes) -> videos by split, and the names of the phases, if they have any.
        name: name of the data set.

    Raises:
        SystemExit: the reason of a ValueError or OSError; 130 or 143 after a signal, when the next
            run goes on behind the finished videos.
    """
    notes = Findings()
    called = Path(program).name
    try:
        check_writable(options.output)
        splits, phases = read(options, notes)
        conversion = Conversion(
            name=name,
            converter=called,
            output=options.output,
            image_root=options.output / "frames",
            class_names=[],
            further={"phases": list(phases)} if phases else {},
        )
        conversion.notes.extend(notes)
        conversion.write(splits)
    except OSError as error:
        raise SystemExit(printable(f"{called}: {explain_os_error(error)}")) from None
    except ValueError as error:
        raise SystemExit(printable(f"{called}: {error}")) from None
    except Interrupted as stop:
        sys.stderr.write(
            f"{called}: stopped by {stop}; the same command goes on behind the finished videos\n"
        )
        raise SystemExit(stop.exit_code) from None
    return "\n".join(conversion.lines())
