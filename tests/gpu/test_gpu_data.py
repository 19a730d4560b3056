"""Batches on their way to a GPU: page-locked, copied without waiting, and still the same."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_detector
from v2idetr.config.load import load_config
from v2idetr.engine.run_context import RunContext, load_splits
from v2idetr.engine.signals import StopSignals
from v2idetr.engine.stage import StageModels

pytestmark = pytest.mark.gpu


@pytest.fixture(params=[0, 2], ids=["no worker", "two workers"])
def make_run(request, tiny_config: Path):
    config = load_config(tiny_config, [f"train.num_workers={request.param}"])
    splits = load_splits(config, with_train=True)
    return lambda device: RunContext(config, device, splits, StopSignals())


def clips_of(run: RunContext, num_frames: int):
    """Batches of the plain stage in clips of this length."""
    detector = tiny_detector()
    detector.num_frames = num_frames
    return run.train_loader(run.stages["plain"], StageModels(detector, detector), 0)


def test_batches_are_page_locked_and_the_same(make_run, device) -> None:
    ours, theirs = (
        islice(iter(clips_of(make_run(on), 3)), 5) for on in (torch.device("cpu"), device)
    )
    for batch, other in zip(ours, theirs, strict=True):
        for sample, same in zip(batch, other, strict=True):
            assert same["image"] is same["clip"][same["clip_index"]]["image"]
            for frame, copy in zip(sample["clip"], same["clip"], strict=True):
                assert torch.equal(frame["image"], copy["image"])
                boxes = [f["instances"].gt_boxes.tensor for f in (frame, copy)]
                assert torch.equal(*boxes)
                assert copy["image"].is_pinned() == (device.type == "cuda")


def test_a_batch_that_is_dropped_while_it_is_copied_arrives_whole(make_run, device) -> None:
    model = tiny_detector().to(device)
    want = [
        torch.stack([frame["image"] for sample in batch for frame in sample["clip"]])
        for batch in islice(iter(clips_of(make_run(torch.device("cpu")), 3)), 40)
    ]
    have = []
    for batch in islice(iter(clips_of(make_run(device), 3)), 40):
        frames = [frame for sample in batch for frame in sample["clip"]]
        pixels = model.images(frames).pixels
        del batch, frames  # their memory may be used again by the next batch
        have.append(pixels)
    mean, std = model.pixel_mean.cpu(), model.pixel_std.cpu()
    for images, pixels in zip(want, have, strict=True):
        h, w = images.shape[-2:]
        torch.testing.assert_close(pixels.cpu()[..., :h, :w], (images - mean) / std)


def test_targets_are_those_of_the_cpu(make_run, device) -> None:
    batch = next(iter(clips_of(make_run(torch.device("cpu")), 1)))
    here, there = tiny_detector().targets(batch), tiny_detector().to(device).targets(batch)
    for ours, theirs in zip(here.boxes + here.labels, there.boxes + there.labels, strict=True):
        assert theirs.device.type == device.type
        assert torch.equal(ours, theirs.cpu())


def test_evaluation_batches_reach_the_device(make_run, device) -> None:
    run, model = make_run(device), tiny_detector().to(device).eval()
    batches = list(run.eval_loader(run.splits["val"], model))
    detections = [result for batch in batches for result in model(batch)]
    assert len(detections) == len(run.splits["val"].records)
    assert all(d["instances"].scores.device.type == device.type for d in detections)
