"""Exported file -> detector."""

from __future__ import annotations

import os
from pathlib import Path

from v2i_runtime.detections import FrameDetector
from v2i_runtime.lesion_detector import LesionDetector

MODEL_SUFFIXES = (".onnx", ".xml")


def load(
    path: str | os.PathLike[str],
    *,
    score_threshold: float | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> LesionDetector:
    """Load an exported student for images and video.

    Args:
        path: ``.onnx``, or ``.xml`` with its ``.bin`` beside it.
        score_threshold: least score of a detection; None for the file's own.
        device: device of the file's runtime, such as "CPU"; None for the CPU.
        threads: number of CPU threads; None for the runtime's choice.

    Raises:
        ValueError: the file is of another kind, or cannot be used; names the file.
    """
    detector = load_detector(path, device=device, threads=threads)
    return LesionDetector(detector, score_threshold=score_threshold, name=Path(path).name)


def load_detector(
    path: str | os.PathLike[str], *, device: str | None = None, threads: int | None = None
) -> FrameDetector:
    """The exported detector in a file, see :func:`load`.

    Raises:
        ValueError: the file is of another kind, or cannot be used; names the file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the model's file in it")
    if path.suffix.lower() not in MODEL_SUFFIXES:
        raise ValueError(
            f"{path}: is no exported detector ({', '.join(MODEL_SUFFIXES)}); for a "
            "checkpoint of train_net.py use tools/predict_video.py, or v2idetr.load"
        )
    from v2i_runtime.detector import Detector  # it imports a runtime

    return Detector(path, device=device or "CPU", threads=threads)
