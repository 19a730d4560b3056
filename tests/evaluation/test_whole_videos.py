"""Detectors that remember earlier frames, over whole videos, on one process and on two."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from tests.tiny_fixtures import in_two_processes
from v2idetr.data.clip_mapper import ClipMapper
from v2idetr.data.coco_vid import SplitData, load_split, write_split
from v2idetr.data.loader import build_eval_loader, share_videos
from v2idetr.data.reference_sampler import AdjacentSampler
from v2idetr.evaluation.predictions import FramePrediction, predict

LENGTHS = [3, 7, 1, 4]


class Remembering(nn.Module):
    """Its score mixes the current frame with all earlier ones of the video."""

    order = "video"

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[dict] = []

    def reset(self) -> None:
        self.memory = []

    def forward(self, batch: list[dict]) -> list[dict[str, Instances]]:
        (sample,) = batch
        self.memory.append(sample)
        assert {s["video_id"] for s in self.memory} == {sample["video_id"]}
        assert [s["frame_index"] for s in self.memory] == list(range(len(self.memory)))
        score = 0.0
        for seen in self.memory:
            score = (score + float(seen["image"].float().mean()) / 256) / 2
        boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
        instances = Instances((24, 32), pred_boxes=boxes, scores=torch.tensor([score]))
        instances.pred_classes = torch.zeros(1, dtype=torch.long)
        return [{"instances": instances}]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> SplitData:
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    images = []
    for video, length in enumerate(LENGTHS):
        for index in range(length):
            image = {"id": len(images), "file_name": f"{video}_{index}.png", "video_id": video}
            images.append(image | {"frame_index": index, "width": 32, "height": 24})
            pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / image["file_name"])
    write_split(
        root / "split.json",
        videos=[{"id": v, "name": str(v)} for v in range(len(LENGTHS))],
        images=images,
        annotations=[],
        categories=[{"id": 1, "name": "lesion"}],
        info={},
    )
    return load_split(root / "split.json", root)


def loader(split: SplitData, **settings) -> DataLoader:
    sampler = AdjacentSampler(before=0, after=0)
    mapper = ClipMapper(sampler=sampler, augmentations=[], is_train=False)
    return build_eval_loader(split, mapper, **{"batch_size": 2, "whole_videos": True, **settings})


def scores(predictions: list[FramePrediction]) -> dict[int, float]:
    return {p.image_id: float(p.scores[0]) for p in predictions}


def test_two_processes_get_the_predictions_of_one(split, tmp_path: Path) -> None:
    alone = scores(predict(Remembering(), loader(split)))
    assert len(alone) == sum(LENGTHS)

    def work(rank: int) -> None:
        share = loader(split, rank=rank, world_size=2, num_workers=rank)
        torch.save(scores(predict(Remembering(), share)), tmp_path / f"{rank}.pt")

    in_two_processes(work, tmp_path)
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == alone


def test_predictions_depend_on_nothing_that_was_seen_before_the_video(split) -> None:
    detector = Remembering()
    first, again = (scores(predict(detector, loader(split, batch_size=n))) for n in (1, 3))
    assert first == again


def test_a_batch_holds_frames_of_one_video_and_its_start_is_marked(split) -> None:
    batches = list(loader(split, batch_size=3))
    places = [[(s["video_id"], s["frame_index"]) for s in batch] for batch in batches]
    assert [len(batch) for batch in places] == [3, 3, 3, 1, 1, 3, 1]
    assert all(len({video for video, _ in batch}) == 1 for batch in places)
    assert all(s["starts_video"] == (s["frame_index"] == 0) for batch in batches for s in batch)


def test_a_loader_that_may_cut_videos_is_refused(split) -> None:
    with pytest.raises(ValueError, match=r"Remembering needs whole videos in order.*whole_videos"):
        predict(Remembering(), loader(split, whole_videos=False))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 8))
def test_processes_share_all_videos_and_about_as_many_frames(lengths, world_size) -> None:
    bounds = [0, *np.cumsum(lengths).tolist()]
    shares = share_videos(bounds, world_size)
    videos = [(video.start, video.stop) for share in shares for video in share]
    assert sorted(videos) == list(itertools.pairwise(bounds))
    assert all(share == sorted(share, key=lambda video: video.start) for share in shares)
    frames = [sum(map(len, share)) for share in shares]
    assert max(frames) - min(frames) <= max(lengths)
    assert shares == share_videos(bounds, world_size)
