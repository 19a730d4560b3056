"""Streams and the states that they keep, with a detector whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.video_detectors.videos import assert_equal, from_nothing, in_order, streamed, video
from v2idetr.data.reference_sampler import (
    AdjacentSampler,
    GlobalSampler,
    MixedSampler,
    WindowSampler,
)
from video_detectors.frame_states import FrameStates, Reach, VideoMemory, images_of
from video_detectors.stream import Stream


class Brightness(VideoMemory, nn.Module):
    """Its score mixes the mean brightness of the clip's frames, weighted by their places."""

    def __init__(self, sampler) -> None:
        super().__init__()
        self.reference_sampler, self.evaluation_sampler = sampler, None
        self.encoded: list[int] = []

    def forward(self, batched_inputs):
        return self.follow(batched_inputs)

    def encode(self, frames):
        self.encoded += [frame["image_id"] for frame in frames]
        return list(images_of(frames, torch.device("cpu")).double().mean((1, 2, 3)) / 255)

    def detect(self, sample, states):
        weights = torch.arange(1, len(states) + 1).double()
        score = (weights * torch.stack(states)).sum() / weights.sum()
        found = Instances((sample["height"], sample["width"]))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
        found.scores, found.pred_classes = score[None], torch.zeros(1, dtype=torch.long)
        return found


SAMPLERS = {
    "adjacent": AdjacentSampler(before=2, after=1),
    "causal": AdjacentSampler(before=3, after=0),
    "spaced window": WindowSampler(num_frames=5, window=6, sampling="fixed"),
    "spaced past": WindowSampler(num_frames=3, window=5, sampling="fixed", side="past"),
    "global": GlobalSampler(num_references=3),
    "shuffled": MixedSampler(
        local=AdjacentSampler(before=1, after=1),
        distant=GlobalSampler(num_references=2, in_evaluation="shuffled"),
    ),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_streams_videos_and_single_clips_give_equal_detections(sampler, length) -> None:
    detector, frames = Brightness(sampler), video(length, size=(64, 96))
    clip_by_clip = from_nothing(detector, frames)
    detector.encoded.clear()
    assert_equal(in_order(detector, frames), clip_by_clip)
    if sampler.look_ahead is not None:
        assert sorted(detector.encoded) == list(range(length)), "every frame is encoded once"
    assert_equal(streamed(detector, frames), clip_by_clip)


def test_detections_come_as_soon_as_the_references_are_there() -> None:
    stream = Stream(Brightness(AdjacentSampler(before=1, after=2)))
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    answers = [len(stream.push(pixels, time_s=number / 25)) for number in range(6)]
    assert (answers, len(stream.finish())) == ([0, 0, 1, 1, 1, 1], 2)
    assert stream.look_ahead == 2
    assert len(stream.push(pixels, time_s=0.0)) == 0, "finish() begins a new video"


@given(length=st.integers(5, 40), before=st.integers(0, 5), after=st.integers(0, 5))
def test_a_stream_keeps_no_more_frames_than_its_references_need(length, before, after) -> None:
    detector = Brightness(AdjacentSampler(before=before, after=after))
    stream = Stream(detector)
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    for number in range(length):
        stream.push(pixels, time_s=number / 25)
        kept = len(stream._frames), 0 if detector._states is None else len(detector._states)
        assert max(kept) <= before + 1 + after


def test_frames_out_of_order_are_refused() -> None:
    stream = Stream(Brightness(AdjacentSampler(before=1, after=0)))
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    stream.push(pixels, time_s=0.04)
    with pytest.raises(ValueError, match=r"Frame 1 at 0\.04 s does not follow .* reset\(\)"):
        stream.push(pixels, time_s=0.04)
    with pytest.raises(ValueError, match=r"Frame 1 is 64 x 50 px, those before 64 x 48"):
        stream.push(np.zeros((50, 64, 3), dtype=np.uint8), time_s=0.08)
    stream.reset()
    assert len(stream.push(pixels, time_s=0.0)) == 1


def test_the_reach_of_a_sampler_is_measured() -> None:
    assert Reach.of(SAMPLERS["spaced window"]) == Reach(back=6, ahead=6, num_global=0)
    assert Reach.of(SAMPLERS["shuffled"]) == Reach(back=1, ahead=None, num_global=2)


def test_states_of_the_earliest_frames_outside_the_clip_are_forgotten_first() -> None:
    states = FrameStates(capacity=3)
    frames = [{"image_id": 10 + number, "frame_index": number} for number in range(4)]
    states.add(frames[2:], ["c", "d"])
    states.add(frames[:2], ["a", "b"])
    assert states.of([frames[0], frames[3]]) == ["a", "d"]
    assert states.missing(frames) == [frames[1]]
