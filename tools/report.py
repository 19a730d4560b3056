#!/usr/bin/env python3
"""Write the report of a run: one HTML file with results, curves, frames and provenance.

    python tools/report.py output/run                       # -> output/run/report.html
    python tools/report.py output/run --output report.html

The run may be unfinished; the page names missing parts. The frames of training and evaluation must
still be at the paths of the config.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from v2idetr.output_folder import check_writable, explain_os_error
from v2idetr.process_setup import ignore_torch_jit


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_DIR", help="train.output_dir of a run of train_net.py")
    add("--output", type=Path, metavar="FILE", help="output file (default RUN_DIR/report.html)")
    add(
        "--facts",
        type=Path,
        metavar="FILE",
        help='JSON object of further lines for "Machine and versions", such as {"Operator": "Ann"}',
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Write the page and print its path; returns 2 after an error."""
    options = parse(arguments)
    ignore_torch_jit()
    # Imported here, so that --help and usage errors need no torch.
    from v2idetr.report.page import write_report

    output = options.output or options.run / "report.html"
    try:
        check_writable(output, is_file=True)
        missing = write_report(options.run, output, read_facts(options.facts))
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report: {explain_os_error(error)}", file=sys.stderr)
        return 2
    for sentence in missing:
        print(f"note: {sentence}")
    print(f"{output} ({output.stat().st_size / 2**20:.1f} MiB)")
    return 0


def read_facts(path: Path | None) -> dict[str, str]:
    """Further lines by title; ValueError if the file is not a JSON object."""
    if path is None:
        return {}
    try:
        facts = json.loads(path.read_bytes())  # with or without a byte-order mark
    except (OSError, ValueError) as error:
        raise ValueError(f"--facts {path}: cannot be read as JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"--facts {path}: must hold an object of names and texts")
    return {str(name): str(text) for name, text in facts.items()}


if __name__ == "__main__":
    sys.exit(main())
