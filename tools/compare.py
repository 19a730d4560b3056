#!/usr/bin/env python3
"""Compare detectors of images and of video with V2I students: the paper's Tables I and II.

    python tools/compare.py --list --dataset clinicdb
    python tools/compare.py --table I --dataset synthetic --seeds 3 --output output/compare
    python tools/compare.py --table II --dataset buv --seeds 1 --output output/compare_buv
    python tools/compare.py --table I --dataset synthetic --smoke --output output/smoke

All detectors have the same data, steps and labelled frames a step, and are evaluated the same way:
precision, recall and F1 by both rules, AP, AP50, AP75, parameters, GFLOPs, frames a second,
look-ahead, beside the paper's numbers. Only missing runs are run, and detectors that several rows
start from are trained once; an interrupted comparison is continued by the same command.
OUTPUT/table_I.md, .json and .svg are updated after every run. The rows are listed in
configs/ablations/detectors.yaml. Folders, parallel runs and key=value: as for tools/ablate.py,
which runs the ablations, and may share the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ablate import Program
from ablate import main as run_tables

from v2idetr.ablation.tables import COMPARISONS

COMPARE = Program("compare", __doc__ or "", COMPARISONS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a table; returns 2 after a user's error, 1 if a run failed."""
    return run_tables(arguments, COMPARE)


if __name__ == "__main__":
    sys.exit(main())
