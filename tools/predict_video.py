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
from v2i_runtime.predict_video import command_line, load_detector, run

CHECKPOINT_SUFFIXES = (".pth", ".safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict a video; returns the exit code of v2i-predict-video."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--config-file", type=Path, metavar="FILE", help="config of a checkpoint (default: its own)"
    )
    return run(parser.parse_args(arguments), load_any_detector)


def load_any_detector(options: argparse.Namespace) -> FrameDetector:
    """The exported detector or checkpoint of a command line.

    Raises:
        ValueError: the file cannot be used.
    """
    if options.model.suffix.lower() not in CHECKPOINT_SUFFIXES:
        if options.config_file is not None:
            raise ValueError("--config-file is for checkpoints; an exported detector needs none")
        return load_detector(options)
    from v2idetr.process_setup import ignore_torch_jit

    ignore_torch_jit()  # before the imports that warn
    import torch

    from v2idetr.deploy.torch_detector import TorchDetector

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = {} if options.device is None else {"device": options.device.lower()}
    return TorchDetector(options.model, config_file=options.config_file, **device)


if __name__ == "__main__":
    sys.exit(main())
