"""Live video: one frame in, the detections of a frame out, as soon as its references are there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from jaxtyping import UInt8

from v2idetr.data.reference_sampler import ReferenceSampler, VideoFrames
from v2idetr.evaluation.predictions import evaluating
from v2idetr.modeling.trainable import Sample
from video_detectors.frame_states import Reach

Resize = Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "h w 3"]]


class Stream:
    """Detections of a video whose frames arrive one by one.

    A frame's detections come ``look_ahead`` frames later, those of the last frames at
    :meth:`finish`. With global references the whole video has to be there: all detections come at
    its end, and all frames are kept.

    Args:
        detector: a video detector of this package.
        resize: RGB frame -> frame of the size of evaluation; None to leave it.

    Attributes:
        look_ahead: delay in frames; None for the whole video.
    """

    def __init__(self, detector: Any, *, resize: Resize | None = None) -> None:
        self.detector, self.resize = detector, resize
        self.sampler: ReferenceSampler = detector.evaluation_sampler or detector.reference_sampler
        self.reach = Reach.of(self.sampler)
        self.look_ahead = self.sampler.look_ahead
        self.reset()

    def reset(self) -> None:
        """Begin a new video."""
        self.detector.reset()
        kept = None if self.look_ahead is None else self.reach.kept
        self._frames: deque[Sample] = deque(maxlen=kept)
        self._arrived = self._answered = 0
        self._last_time = -float("inf")

    def push(self, frame: UInt8[np.ndarray, "H W 3"], time_s: float) -> list[Instances]:
        """The next RGB frame of the video -> detections of the frames that can be answered now.

        Raises:
            ValueError: the frame is not later than the one before, or of another size.
        """
        if not time_s > self._last_time:
            raise ValueError(
                f"Frame {self._arrived} at {time_s:g} s does not follow the one before, at "
                f"{self._last_time:g} s: push the frames in order, and reset() at a new video."
            )
        first = self._frames[0] if self._frames else None
        height, width = frame.shape[:2]
        if first is not None and (height, width) != (first["height"], first["width"]):
            raise ValueError(
                f"Frame {self._arrived} is {width} x {height} px, those before {first['width']} x "
                f"{first['height']}: reset() at a new video."
            )
        image = frame if self.resize is None else self.resize(frame)
        self._frames.append(
            {
                "image": torch.from_numpy(image.transpose(2, 0, 1).copy()),
                "height": height,
                "width": width,
                "file_name": f"frame {self._arrived}",
                "image_id": self._arrived,
                "frame_index": self._arrived,
                "video_id": 0,
            }
        )
        self._arrived, self._last_time = self._arrived + 1, time_s
        if self.look_ahead is None:
            return []
        return list(self._answer(until=self._arrived - self.look_ahead))

    def finish(self) -> list[Instances]:
        """The detections of the frames that are left, at the end of the video; then a new one."""
        answers = list(self._answer(until=self._arrived))
        self.reset()
        return answers

    def _answer(self, until: int) -> Iterator[Instances]:
        with evaluating(self.detector):
            while self._answered < until:
                yield self.detector([self._sample(self._answered)])[0]["instances"]
                self._answered += 1

    def _sample(self, current: int) -> Sample:
        listed = VideoFrames(np.arange(self._arrived), range(self._arrived))
        oldest = self._arrived - len(self._frames)
        places = self.sampler(listed, current, None)
        clip = [self._frames[place - oldest] for place in places]
        index = self.sampler.clip_index
        return {**clip[index], "clip": clip, "clip_index": index}
