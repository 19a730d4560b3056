#!/usr/bin/env python3
"""Find lesions in a video, folder of images or camera, and draw them.

    python tools/predict_video.py output/demo/run/student/best.pth colonoscopy.mp4 \\
        --output boxes.mp4
    python tools/predict_video.py student.onnx frames/ --image-rate 25 --json boxes.json

MODEL is an exported detector (.onnx, .xml), or a checkpoint of train_net.py (.pth, .safetensors),
which needs torch. All else is as in v2i-predict-video: see its --help for inputs, times and exit
codes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from v2i_runtime.detections import FrameDetector
from v2i_runtime.predict_video import command_line, run
from v2idetr.deploy.loading import load_detector


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict a video; returns the exit code of v2i-predict-video."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--config-file", type=Path, metavar="FILE", help="config of a checkpoint (default: its own)"
    )
    return run(parser.parse_args(arguments), load)


def load(options: argparse.Namespace) -> FrameDetector:
    """The detector of a command line; raises ValueError, see ``load_detector``."""
    return load_detector(
        options.model,
        config_file=options.config_file,
        device=options.device,
        threads=options.threads,
    )


if __name__ == "__main__":
    sys.exit(main())
