"""Locations of the frames and annotations of SUN, SUN-SEG and BUV on disk.

Each layout has a plan (clips -> files) and a writer of its annotation files.  Assumptions where
public code and documents are silent:

- SUN: the `annotation_txt` folder of part 1 holds the text files of all cases of both parts.  A
  frame of a positive case that shows no lesion has the row `<name> 0,0,0,0,1`.  The lesion-free
  part has no text files: `sundatabase_negative_part<1-4>/case<N>/`, numbered from 1 again, with
  six digits at the end of the frame names.
- SUN-SEG: lesion-free frames are not part of its folders; they lie as SUN's, unzipped into
  `SUN-Negative/case<N>/`.  A frame without lesion inside a positive clip has a black mask, a row
  under `images` and none under `annotation`.
- BUV: both JSON files beside `rawframes/`, `file_name` relative to `rawframes/`; `frame_id`
  counts from 0, as the file names do.
"""

from collections.abc import Sequence
from pathlib import Path

from . import buv, sun, sunseg
from .jobs import Job, Options, Results

LAYOUTS = {"sun": sun, "sunseg": sunseg, "buv": buv}


def plan(options: Options) -> list[Job]:
    """The clips to render, in an order that depends on the options alone."""
    return LAYOUTS[options.layout].plan(options)


def annotate(options: Options, jobs: Sequence[Job], results: Results, root: Path) -> None:
    """Write the layout's annotation files for the rendered `jobs` under `root`."""
    LAYOUTS[options.layout].annotate(options, jobs, results, root)
