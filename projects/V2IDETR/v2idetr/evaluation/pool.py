"""Several ground truths as one set of videos, such as SUN-SEG's easy, hard and negative ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from v2idetr.data.ground_truth import GroundTruth
from v2idetr.evaluation.frames import LabelledFrame, Video, label_frames
from v2idetr.evaluation.predictions import FramePrediction


@dataclass(frozen=True)
class Pool:
    """Ground truths by name of their split; all have the same classes."""

    truths: Mapping[str, GroundTruth]

    def __post_init__(self) -> None:
        (first, *others) = self.truths.values()
        for truth in others:
            if truth.split.class_names != first.split.class_names:
                raise ValueError(
                    f"{truth.split.json_path}: has classes {truth.split.class_names}, but "
                    f"{first.split.json_path} has {first.split.class_names}; make them equal."
                )

    @property
    def class_names(self) -> list[str]:
        """The classes."""
        return next(iter(self.truths.values())).split.class_names

    @property
    def source(self) -> str:
        """The files, for a message."""
        return ", ".join(str(truth.split.json_path) for truth in self.truths.values())

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The records of all splits, in the order of :meth:`label`."""
        return [record for truth in self.truths.values() for record in truth.split.records]

    @cached_property
    def splits(self) -> list[str]:
        """Name of the split of each record."""
        return [name for name, truth in self.truths.items() for _ in truth.split.records]

    @cached_property
    def lesion_free_frames(self) -> int:
        """Number of frames without a lesion."""
        return sum(not record["annotations"] for record in self.records)

    @cached_property
    def minutes(self) -> dict[tuple[str, int], float | None]:
        """Length by (split, video id); None where the frame rate is unknown."""
        return {
            (name, video_id): length
            for name, truth in self.truths.items()
            for video_id, length in truth.minutes().items()
        }

    @cached_property
    def total_minutes(self) -> float | None:
        """Length of all videos together; None where a frame rate is unknown."""
        lengths = [length for length in self.minutes.values() if length is not None]
        return sum(lengths) if len(lengths) == len(self.minutes) else None

    @property
    def frame_rate_hz(self) -> float | None:
        """The frame rate of all videos; None if it is unknown or differs."""
        used = {
            (split, record["video_id"])
            for split, record in zip(self.splits, self.records, strict=True)
        }
        rates = {self.truths[split].frame_rates_hz[video_id] for split, video_id in used}
        return rates.pop() if len(rates) == 1 else None

    @property
    def step(self) -> float:
        """Usual distance of labelled frames in ``frame_index``: median over the videos."""
        return float(
            median(step for truth in self.truths.values() for step in truth.steps.values())
        )

    def minutes_of(self, videos: Sequence[Video]) -> list[float] | None:
        """Length of each video; None where a frame rate is unknown."""
        lengths = [self.minutes[video.split, video.video_id] for video in videos]
        known = [length for length in lengths if length is not None]
        return known if len(known) == len(lengths) else None

    def label(
        self, predictions: Mapping[str, Sequence[FramePrediction]]
    ) -> dict[str, list[LabelledFrame]]:
        """Labelled frames by split; see ``frames.label_frames``."""
        return {
            name: label_frames(truth.split, predictions[name], name=name)
            for name, truth in self.truths.items()
        }
