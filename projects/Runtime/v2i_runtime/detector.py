"""Exported student: RGB frames -> detections in pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import UInt8

from v2i_runtime.backends import AGAIN, open_backend
from v2i_runtime.detections import Detections, checked_frame
from v2i_runtime.integrity import digest
from v2i_runtime.model_info import Outputs, differences, probe_image

Frame = UInt8[np.ndarray, "_ _ 3"]  # frames of one call may differ in size


class Detector:
    """A student in an exported file.

    Args:
        path: ``.onnx``, or ``.xml`` with its ``.bin`` beside it.
        device: "CPU", or another device that the file's runtime has, such as "GPU" or "CUDA".
        threads: number of CPU threads; None for the runtime's choice.
        verify: check that the file is as it was exported, and that detections of a probe image are
            those at export.

    Attributes:
        info: description of the student and of its export.
        class_names: class names by index.
        score_threshold: threshold chosen on validation data; None if unknown.

    Raises:
        ValueError: no usable exported file, no such device, a missing runtime, a file that was
            changed, or other results than at export; names the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "CPU",
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        self._path = os.fspath(path)
        self._backend = open_backend(path, device=device, threads=threads)
        self.info = self._backend.info
        self.class_names: list[str] = list(self.info.class_names)
        self.score_threshold: float | None = self.info.score_threshold
        if verify:
            self._verify()

    @overload
    def __call__(self, frames: Frame) -> Detections: ...

    @overload
    def __call__(self, frames: Sequence[Frame]) -> list[Detections]: ...

    def __call__(self, frames: Any) -> Any:
        """Detections of one frame, or of each of several, which may differ in size.

        The frames of one call are one batch.

        Args:
            frames: RGB frame; or a sequence of frames or an array (B, H, W, 3), which give a list.
                Type checkers take every array for one frame.

        Returns:
            detections, boxes clipped to the frame.

        Raises:
            ValueError: no RGB frame of 8 bits, a size that the file does not take, or results that
                are not finite.
        """
        if isinstance(frames, np.ndarray) and frames.ndim != 4:
            return self._detect([checked_frame(frames, "the frame")])[0]
        if not isinstance(frames, Sequence | np.ndarray) or isinstance(frames, str | bytes):
            raise ValueError(
                f"frames are {type(frames).__name__}; give a NumPy array (H, W, 3), or a list of "
                "such arrays"
            )
        if len(frames) == 0:
            raise ValueError("there are no frames; give at least one")
        return self._detect([checked_frame(frame, f"frame {i}") for i, frame in enumerate(frames)])

    def warm_up(self, batch: int = 1) -> None:
        """Run once on black frames: the first run of every number of frames is slow.

        Args:
            batch: number of frames.

        Raises:
            ValueError: it is below 1.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}, but must be at least 1")
        self._run(np.zeros((batch, *self.info.size, 3), np.uint8))

    def _detect(self, frames: list[Frame]) -> list[Detections]:
        outputs = self._run(np.stack([self._resized(frame) for frame in frames]))
        found = []
        for frame, scores, classes, boxes in zip(frames, *outputs, strict=True):
            height, width = frame.shape[:2]
            sides = np.array([width, height, width, height], np.float32)
            found.append(
                Detections(
                    scores.astype(np.float32),
                    classes.astype(np.int64),
                    np.clip(boxes.astype(np.float32) * sides, 0, sides),
                )
            )
        return found

    def _resized(self, frame: Frame) -> UInt8[np.ndarray, "H W 3"]:
        (height, width), wanted = frame.shape[:2], self.info.size
        size = self.info.preprocess.resized_size(height, width)
        if size != wanted:
            raise ValueError(
                f"{self._path}: is exported for {wanted[0]} x {wanted[1]} px (height x width), but "
                f"a frame of {height} x {width} becomes {size[0]} x {size[1]}; export the student "
                "for this size, too (tools/export.py --size)"
            )
        return self.info.preprocess.resized(frame)

    def _run(self, images: UInt8[np.ndarray, "B H W 3"]) -> Outputs:
        outputs = self._backend.run(images)
        if not (np.isfinite(outputs.scores).all() and np.isfinite(outputs.boxes).all()):
            raise ValueError(
                f"{self._path}: scores or boxes of {self._backend.runtime} are not finite; use "
                "device='CPU', or export the student again with another precision"
            )
        return outputs

    def _verify(self) -> None:
        """Compare the file, and detections of the probe image, with those at export."""
        stored = self.info.file_sha256
        if digest(Path(self._path), stored) != stored:
            files = "it or its .bin" if self._path.lower().endswith(".xml") else "it"
            raise ValueError(f"{self._path}: {files} was changed or damaged after export; {AGAIN}")
        probe = self.info.probe
        outputs = self._backend.run(probe_image(*probe.size)[None])
        difference = max(differences(probe.outputs, outputs.of_frame(0)))
        if not difference <= probe.tolerance:
            versions = ", ".join(f"{name} {value}" for name, value in self.info.versions.items())
            raise ValueError(
                f"{self._path}: {self._backend.runtime} finds other detections in the probe image "
                f"than at export, by {difference:.2g}, of which {probe.tolerance:.2g} is allowed. "
                "This runtime computes otherwise: install the versions of the export "
                f"({versions}), use device='CPU', or export again."
            )
