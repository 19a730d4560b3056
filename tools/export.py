#!/usr/bin/env python3
"""Export a trained student to a file that runs without torch, in ONNX Runtime or OpenVINO.

    python tools/export.py output/v2i_sun/student/best.pth --format openvino \\
        --output polyps.xml --size 1080 1350
    python tools/export.py output/demo/run/student/best.pth --format onnx --output polyps.onnx
    python tools/export.py output/demo/run/student/best.pth --format openvino --precision int8 \\
        --output polyps_int8.xml

CHECKPOINT is a checkpoint of train_net.py or an output of tools/convert_checkpoint.py. A teacher is
refused, because it needs a clip. The file takes batches of any number of frames of one size, and
holds its class names, preprocessing, score threshold and a probe image's detections;
projects/Runtime runs it, as does tools/predict_video.py.

The exported network is compared with torch on frames of the validation split, or of --frames. No
file is written if scores or boxes differ by more than --tolerance. For INT8 the training split
calibrates, and AP50 and F1 on the validation split are printed before and after; no file is written
if one of them falls by more than a point, unless --accept-loss allows it.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from functools import partial
from pathlib import Path

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
LONGEST_SIDE_PX = 65_535  # of a JPEG


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="weights of a student")
    add("--format", choices=tuple(SUFFIXES), required=True, help="format of the file")
    add("--output", type=Path, required=True, metavar="FILE", help=".onnx, or .xml for OpenVINO")
    add(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="fp16: weights in float16; int8: backbone and encoder quantized (default fp32)",
    )
    add(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the video's frames, px; needed where the student keeps their aspect ratio",
    )
    add(
        "--attention",
        choices=("grid_sample", "gather"),
        default="grid_sample",
        help="reads of deformable attention; gather for devices that compute GridSample wrongly, "
        "such as OpenVINO's GPU (default grid_sample)",
    )
    add("--device", default="CPU", help="device of the runtime for the comparison (default CPU)")
    add("--config-file", metavar="CONFIG", help="config of the run (default: CHECKPOINT's own)")
    add("--threshold", type=float, help="score threshold in place of the one of the evaluation")
    add("--threshold-rule", help="rule that chose the threshold (default iou50, else the first)")
    add("--frames", metavar="SOURCE", help="video, folder or pattern of frames to compare on")
    add("--tolerance", type=float, help="largest difference of a score or box coordinate in [0, 1]")
    add("--calibration", type=int, default=300, metavar="N", help="frames for INT8 (default 300)")
    add(
        "--accept-loss",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="largest loss of AP50 or F1 by INT8, in points (default 1)",
    )
    add("--overwrite", action="store_true", help="replace an existing file")
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")
    options = parser.parse_intermixed_args(arguments)
    suffix = SUFFIXES[options.format]
    if options.output.suffix != suffix:
        parser.error(
            f"--output {options.output} must end in {suffix} for --format {options.format}"
        )
    if (options.format, options.precision) == ("onnx", "int8"):
        parser.error("--precision int8 needs --format openvino: NNCF cannot read the ONNX graph")
    if options.size and min(options.size) < 1:
        parser.error(f"--size {options.size[0]} {options.size[1]}: must be at least 1 px")
    if options.size and max(options.size) > LONGEST_SIDE_PX:
        parser.error(
            f"--size {options.size[0]} {options.size[1]}: must be at most {LONGEST_SIDE_PX} px"
        )
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        parser.error(f"--threshold {options.threshold}: must be in [0, 1]")
    if options.tolerance is not None and not options.tolerance >= 0:
        parser.error(f"--tolerance {options.tolerance}: must be at least 0")
    if math.isnan(options.accept_loss):
        parser.error("--accept-loss nan: must be a number")
    if options.calibration < 1:
        parser.error(f"--calibration {options.calibration}: must be at least 1 frame")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Export, compare, and print a summary; returns 2 after a user's error, 130 after Ctrl-C."""
    options = parse(arguments)
    start = time.monotonic()
    # Imported here, so that --help and usage errors need no torch.
    from v2idetr.process_setup import ignore_torch_jit

    ignore_torch_jit()  # before the imports that warn
    from v2idetr.deploy.exporting import ExportSettings, export_student
    from v2idetr.output_folder import check_writable, explain_os_error

    try:
        check_writable(options.output, is_file=True)
        given = vars(options)
        given["size"] = tuple(options.size) if options.size else None
        for path in export_student(ExportSettings(**given), partial(print, flush=True)):
            print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    except ValueError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"export: {explain_os_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("export: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"exported in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    # As an exception, which removes the temporary folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
