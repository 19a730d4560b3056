"""Labelled videos, the unit of training, choice and evaluation in phase recognition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class VideoPhases:
    """Ground-truth and predicted phase index of every frame of a video.

    Raises:
        ValueError: the video has no frames, or the lengths differ.
    """

    name: str
    truth: Int[np.ndarray, "T"]
    predicted: Int[np.ndarray, "P"]

    def __post_init__(self) -> None:
        if len(self.truth) == 0:
            raise ValueError(f"Video {self.name!r} has no labelled frame.")
        if len(self.truth) != len(self.predicted):
            raise ValueError(
                f"Video {self.name!r} has {len(self.truth)} ground-truth phases but "
                f"{len(self.predicted)} predicted ones; give one prediction per labelled frame."
            )

    @property
    def accuracy(self) -> float:
        """Share of frames with the right phase."""
        return float((self.truth == self.predicted).mean())


@dataclass(frozen=True)
class VideoFeatures:
    """Features and ground-truth phase index of every frame of a video.

    Raises:
        ValueError: the video has no frames, the lengths differ, or a feature is not finite.
    """

    name: str
    features: Float[np.ndarray, "T d"]
    labels: Int[np.ndarray, "P"]

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise ValueError(f"Video {self.name!r} has no labelled frame.")
        if len(self.features) != len(self.labels):
            raise ValueError(
                f"Video {self.name!r} has features of {len(self.features)} frames but "
                f"{len(self.labels)} labels; extract features at the rate of the labels."
            )
        broken = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(broken):
            raise ValueError(
                f"Video {self.name!r} has features that are not finite, in {len(broken)} of "
                f"{len(self.labels)} frames, first in frame {broken[0]}; check the backbone's "
                "weights and the precision in which the features were extracted."
            )

    def with_predictions(self, predicted: Int[np.ndarray, "T"]) -> VideoPhases:
        """The video's labels beside predictions."""
        return VideoPhases(self.name, self.labels, predicted)


def check_phases(name: str, phases: Int[np.ndarray, "T"], num_phases: int) -> None:
    """Check that phase indices of a video lie in [0, num_phases).

    Raises:
        ValueError: one does not; names the video and the index.
    """
    wrong = phases[(phases < 0) | (phases >= num_phases)]
    if len(wrong):
        raise ValueError(
            f"Video {name!r} has phase index {wrong[0]}; with {num_phases} phases, indices are 0 "
            f"to {num_phases - 1}. Leave unlabelled frames out."
        )


def stack_videos(
    videos: Sequence[VideoFeatures], num_phases: int
) -> tuple[Float[np.ndarray, "N d"], Int[np.ndarray, "N"]]:
    """Features and labels of all frames of the videos, in order.

    Raises:
        ValueError: no video; videos differ in the width of their features; a wrong phase index.
    """
    if not videos:
        raise ValueError("Phase recognition needs at least one labelled video; there is none.")
    width = videos[0].features.shape[1]
    for video in videos:
        if video.features.shape[1] != width:
            raise ValueError(
                f"Features of video {video.name!r} have width {video.features.shape[1]}, those of "
                f"{videos[0].name!r} {width}; extract both with the same backbone."
            )
        check_phases(video.name, video.labels, num_phases)
    features = np.concatenate([video.features for video in videos])
    return features, np.concatenate([video.labels for video in videos])


def mean_accuracy(videos: Sequence[VideoPhases]) -> float:
    """Accuracy of each video, averaged over the videos."""
    return float(np.mean([video.accuracy for video in videos]))
