"""Checkpoint as a detector of frames, with the interface of exported files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from v2i_runtime.detections import Detections
from v2idetr.deploy.student import load_student


class TorchDetector:
    """A student in torch; implements ``v2i_runtime.detections.FrameDetector``.

    Args:
        path: checkpoint of train_net.py, or a published ``.safetensors`` file.
        config_file: config of the run that trained it; None for the one beside or in the file.
        device: torch device, such as "cpu" or "cuda".

    Attributes:
        class_names: class names by index.
        score_threshold: threshold chosen on validation data; None if unknown.

    Raises:
        ValueError: see ``student.load_student``; or no such device.
    """

    def __init__(
        self,
        path: str | Path,
        config_file: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        student = load_student(Path(path), config_file=config_file)
        self.class_names = student.class_names
        self.score_threshold, _ = student.threshold()
        self._preprocess = student.preprocess
        self._path = Path(path)
        try:
            self._device = torch.device(device)
            self._module = student.image_detector().to(self._device)
        except (AssertionError, RuntimeError) as error:  # torch's, without or with CUDA
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: device is {device!r}: {reason}; use cpu") from error

    def __call__(self, frames: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Detections]:
        """Detections of each frame; one frame at a time, since sizes may differ."""
        return [self._detect(frame) for frame in frames]

    @torch.inference_mode()
    def _detect(self, frame: UInt8[np.ndarray, "H W 3"]) -> Detections:
        pixels = torch.from_numpy(self._preprocess.resized(frame).copy()).to(self._device)
        scores, classes, boxes = (part[0].cpu().numpy() for part in self._module(pixels[None]))
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise ValueError(
                f"{self._path}: scores or boxes are not finite; the weights are probably damaged: "
                "use an earlier checkpoint"
            )
        height, width = frame.shape[:2]
        sides = np.array([width, height, width, height], np.float32)
        return Detections(scores, classes, boxes * sides)
