"""Checkpoint, published weights or exported file -> detector."""

from __future__ import annotations

import os
from pathlib import Path

from v2i_runtime.detections import FrameDetector
from v2i_runtime.lesion_detector import LesionDetector
from v2i_runtime.loading import load_detector as load_exported

CHECKPOINT_SUFFIXES = (".pth", ".safetensors")

PathLike = str | os.PathLike[str]


def load(
    path: PathLike,
    *,
    score_threshold: float | None = None,
    config_file: PathLike | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> LesionDetector:
    """Load a student or plain detector for images and video.

    Args:
        path: checkpoint of train_net.py (``.pth``), published weights (``.safetensors``) or an
            exported file (``.onnx``, ``.xml``).
        score_threshold: least score of a detection; None for the one that the evaluation beside
            the weights, or the export, chose on validation data.
        config_file: config of the run that trained a checkpoint; None for the one beside or in it.
        device: torch's for a checkpoint, such as "cuda", else the runtime's; None for the CPU.
        threads: number of CPU threads, in torch of the whole process; None for the default.

    Raises:
        ValueError: the file cannot be used, or is a teacher; names the file.

    Examples:
        ```python
        student = v2idetr.load("output/demo/run/student/best.pth")
        found = student("frame.png")
        print(found.scores, found.boxes_xyxy_px)
        ```
    """
    detector = load_detector(path, config_file=config_file, device=device, threads=threads)
    return LesionDetector(detector, score_threshold=score_threshold, name=Path(path).name)


def load_detector(
    path: PathLike,
    *,
    config_file: PathLike | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> FrameDetector:
    """The detector of frames in a file, see :func:`load`.

    Raises:
        ValueError: the file cannot be used, or is a teacher; names the file.
    """
    path = Path(path)
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        if config_file is not None:
            raise ValueError(
                f"{path}: takes no config (--config-file, config_file): an exported detector has "
                "its own"
            )
        return load_exported(path, device=device, threads=threads)
    from v2idetr.process_setup import ignore_torch_jit

    ignore_torch_jit()  # before the imports that warn
    import torch

    from v2idetr.deploy.torch_detector import TorchDetector

    if threads is not None:
        torch.set_num_threads(threads)
    config = None if config_file is None else Path(config_file)
    return TorchDetector(path, config_file=config, device=(device or "cpu").lower())
