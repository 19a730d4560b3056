"""Small videos for video detectors, and the promises that all of them keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from v2idetr.data.reference_sampler import VideoFrames
from v2idetr.evaluation.predictions import evaluating
from video_detectors.stream import Stream

Sample = dict[str, Any]
TOLERANCE = 1e-5


def video(length: int = 8, *, size: tuple[int, int] = (64, 96), seed: int = 0) -> list[Sample]:
    """Frames of a bright square that drifts over noise, as the loader yields them."""
    rng = np.random.default_rng(seed)
    H, W = size
    side, (x, y) = 24, rng.integers(0, (W - 24 - length, H - 24 - length))
    frames = []
    for t in range(length):
        pixels = rng.integers(0, 120, (3, H, W), dtype=np.uint8)
        pixels[:, y + t : y + t + side, x + t : x + t + side] += 100
        lesions = Instances(size)
        box = [x + t, y + t, x + t + side, y + t + side]
        lesions.gt_boxes = Boxes(torch.tensor([box], dtype=torch.float32))
        lesions.gt_classes = torch.zeros(1, dtype=torch.int64)
        frames.append(
            {
                "image": torch.from_numpy(pixels),
                "height": H,
                "width": W,
                "file_name": f"video{seed}/{t}.png",
                "image_id": 1000 * seed + t,
                "frame_index": t,
                "video_id": seed,
                "instances": lesions,
            }
        )
    return frames


def clips(frames: Sequence[Sample], sampler: Any, *, seed: int | None = None) -> list[Sample]:
    """A clip around every frame; with a seed, as in training."""
    listed = VideoFrames(np.arange(len(frames)), range(len(frames)))
    samples = []
    for current in range(len(frames)):
        rng = None if seed is None else np.random.default_rng([seed, current])
        clip = [frames[place] for place in sampler(listed, current, rng)]
        index = sampler.clip_index
        assert clip[index] is frames[current]
        samples.append({**clip[index], "clip": clip, "clip_index": index, "seed": current})
    return samples


def train_clips(detector: Any, length: int = 8, *, batch: int = 2) -> list[Sample]:
    """A training batch."""
    return clips(video(length), detector.reference_sampler, seed=0)[1 : 1 + batch]


def losses(detector: nn.Module, batch: list[Sample]) -> dict[str, torch.Tensor]:
    """Of one training step, drawn in the same way every time."""
    torch.manual_seed(0)
    with EventStorage():
        return detector.train()(batch)


def lesion_free(batch: list[Sample]) -> list[Sample]:
    """The same clips without labels of lesions."""

    def unlabelled(frame: Sample) -> Sample:
        return {**frame, "instances": frame["instances"][:0]}

    return [{**unlabelled(s), "clip": [unlabelled(frame) for frame in s["clip"]]} for s in batch]


def losses_of_steps(
    detector: nn.Module, batch: list[Sample], steps: int = 12, *, lr: float = 2e-3
) -> list[float]:
    """Total loss at the start of each step of a training on one batch."""
    trained = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    totals = []
    for _ in range(steps):
        loss = torch.stack(list(losses(detector, batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    return totals


def without_gradient(detector: nn.Module) -> list[str]:
    """Names of trained parameters that the last backward pass has not reached."""
    return [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]


def in_order(detector: Any, frames: Sequence[Sample]) -> list[Instances]:
    """What the evaluation does: one frame after the other, states kept."""
    sampler = detector.evaluation_sampler or detector.reference_sampler
    with evaluating(detector):
        detector.reset()
        return [detector([sample])[0]["instances"] for sample in clips(frames, sampler)]


def from_nothing(detector: Any, frames: Sequence[Sample]) -> list[Instances]:
    """Every clip on its own, nothing kept."""
    sampler = detector.evaluation_sampler or detector.reference_sampler
    results = []
    with evaluating(detector):
        for sample in clips(frames, sampler):
            detector.reset()
            results += [detector([sample])[0]["instances"]]
    return results


def streamed(detector: Any, frames: Sequence[Sample]) -> list[Instances]:
    """Frame by frame, as live video."""
    stream = Stream(detector)
    results = []
    for number, frame in enumerate(frames):
        results += stream.push(frame["image"].permute(1, 2, 0).numpy(), time_s=number / 25)
    return results + stream.finish()


def assert_equal(ours: Sequence[Instances], theirs: Sequence[Instances]) -> None:
    """Equal detections, frame by frame, and some at all."""
    assert len(ours) == len(theirs)
    assert any(len(found) for found in ours), "detectors that find nothing are always equal"
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) == len(other)
        torch.testing.assert_close(
            one.pred_boxes.tensor, other.pred_boxes.tensor, rtol=TOLERANCE, atol=1e-3
        )
        torch.testing.assert_close(one.scores, other.scores, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(one.pred_classes, other.pred_classes)
