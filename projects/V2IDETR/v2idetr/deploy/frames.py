"""Frames that an export is compared, calibrated and judged on, at the network's input size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from v2i_runtime.detector import Detector
from v2i_runtime.model_info import probe_image
from v2i_runtime.preprocess import Preprocess
from v2i_runtime.sources import open_source
from v2idetr.data.coco_vid import SplitData
from v2idetr.deploy.validation import evenly, frame_of, metrics, read_data

Frame = UInt8[np.ndarray, "_ _ 3"]  # frames of one function may differ in size

COMPARED_FRAMES = 8


class StudentFrames:
    """Frames of the splits of a student's run, read when they are needed.

    Args:
        config: config of the run.
        class_names: class names by index.
        preprocess: preprocessing of the student.
        size: (height, width) of the network's input, px.
        say: takes lines for the user.
    """

    def __init__(
        self,
        config: dict[str, Any],
        class_names: Sequence[str],
        preprocess: Preprocess,
        size: tuple[int, int],
        say: Callable[[str], object],
    ) -> None:
        self._config, self._class_names = config, list(class_names)
        self._preprocess, self._size, self._say = preprocess, size, say
        self._splits: dict[str, SplitData] = {}

    def to_compare(self, source: str | None) -> list[Frame]:
        """A few frames of a source, else of the validation split, else patterns.

        Raises:
            ValueError: frames of another size, or none.
        """
        if source is not None:
            return self._of_source(source)
        if Path(self._config["data"]["val"]["json"]).exists():
            return self._of_split("val", COMPARED_FRAMES)
        self._say(
            "The validation split is not here: compared on patterns; --frames takes real frames."
        )
        noise = np.random.default_rng(0).integers(0, 256, (2, *self._size, 3), np.uint8)
        pattern = probe_image(*self._size)
        return [pattern, *noise, np.ascontiguousarray(pattern[::-1, ::-1])]

    def for_calibration(self, number: int) -> list[Frame]:
        """At most this number of frames of the training split."""
        return self._of_split("train", number)

    def check_for_int8(self, rule: str | None) -> None:
        """Read the splits for calibration and metrics, and check the rule of the threshold.

        Args:
            rule: its name; None for the usual one.

        Raises:
            ValueError: they are missing or unusable, names the key; the rule is not evaluated.
        """
        rules = self._config["evaluation"]["rules"]
        if rule is not None and rule not in rules:
            raise ValueError(
                f"--threshold-rule {rule}: evaluation.rules are {', '.join(rules)}; choose one of "
                "them"
            )
        for name in ("train", "val"):
            self._split(name)

    def metrics(
        self, path: Path, device: str, title: str
    ) -> tuple[dict[str, float], dict[str, float]]:
        """AP50 and F1 of an exported file on the validation split, and thresholds by rule."""
        rules = list(self._config["evaluation"]["rules"])
        values, thresholds = metrics(
            self._split("val"), Detector(path, device=device, verify=False), rules, title
        )
        self._say(f"{title}: " + ", ".join(f"{k} {100 * v:.1f}" for k, v in values.items()))
        return values, thresholds

    def _of_source(self, source: str) -> list[Frame]:
        frames, found = open_source(source), []
        step = max(1, (frames.num_frames or 1) // COMPARED_FRAMES)
        for index, frame in enumerate(frames):
            if index % step == 0:
                found.append(self._resized(frame.pixels, frame.name))
            if len(found) == COMPARED_FRAMES:
                break
        if not found:
            raise ValueError(f"--frames {source}: has no frames")
        return found

    def _of_split(self, name: str, number: int) -> list[Frame]:
        records = evenly(self._split(name).records, number)
        return [self._resized(frame_of(record), record["file_name"]) for record in records]

    def _split(self, name: str) -> SplitData:
        if name not in self._splits:
            self._splits[name] = read_data(self._config, name, self._class_names)
        return self._splits[name]

    def _resized(self, pixels: Frame, name: str) -> Frame:
        resized = self._preprocess.resized(pixels)
        if resized.shape[:2] != self._size:
            raise ValueError(
                f"{name}: becomes {resized.shape[0]} x {resized.shape[1]} px, but --size gives an "
                f"input of {self._size[0]} x {self._size[1]}; give frames of this size (--frames), "
                "or their size (--size)."
            )
        return resized
