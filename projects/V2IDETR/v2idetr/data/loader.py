"""Clips in batches: the infinite training loader and the ordered evaluation loader.

Training batch i follows from (seed, i): draw number d = i * total batch size + place selects the
frame (a permutation per epoch) and seeds its clip and augmentations. Nothing depends on workers,
prefetching or global random state. A run can therefore resume at any iteration, and `world_size`
processes get the slices of the batch that one process would get.

    ClipDataset      (record index, seed) -> sample
    TrainingOrder    draw number -> (record index, seed)
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import DataLoader, Dataset, Sampler

from v2idetr.data.clip_mapper import (
    Mapper,
    Record,
    is_lesion_free,
    run_around,
    run_bounds,
)
from v2idetr.data.coco_vid import SplitData
from v2idetr.data.packed_batches import Collate
from v2idetr.data.reference_sampler import VideoFrames

logger = logging.getLogger(__name__)

Draw = tuple[int, int]  # record index, seed of the sample

# Purposes of the random streams, to separate those of one seed.
_EPOCH, _LESION_FREE, _SAMPLE = range(3)


def build_train_loader(
    split: SplitData,
    mapper: Mapper,
    *,
    batch_size: int,
    seed: int,
    start_iteration: int = 0,
    negative_share: float | None = None,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """Endless batches of training clips, `list[dict]` of `batch_size` samples each.

    Args:
        split: training frames, including lesion-free ones.
        mapper: record -> sample.
        batch_size: clips per process and iteration.
        seed: seed of the order and of all augmentations.
        start_iteration: iteration of the first batch, for resuming.
        negative_share: share of lesion-free frames among the samples of an epoch, in [0, 1). An
            epoch has every frame with a lesion once, and as many lesion-free frames as the share
            requires: a different part in each epoch, or repeated ones. None: every frame once.
        num_workers: number of processes that prepare samples; 0 for this process.
        rank, world_size: index of this process and number of processes. Process r gets samples
            [r * batch_size, (r + 1) * batch_size) of the total batch.
        pin_memory: batches in page-locked memory, for asynchronous copies to a GPU.
    """
    _check_sizes(batch_size, num_workers, rank, world_size)
    if start_iteration < 0 or seed < 0:
        raise ValueError(f"start_iteration={start_iteration} and seed={seed} must be 0 or more")
    if not mapper.is_train:
        raise ValueError("a training loader needs a mapper with is_train=True")
    dataset = ClipDataset(split.records, mapper)
    order = TrainingOrder(
        np.array([is_lesion_free(r) for r in split.records], dtype=bool),
        seed=seed,
        negative_share=negative_share,
    )
    logger.info("training on %s: %s", split.json_path, order.describe())
    _warn_of_short_scenes(split.records, dataset)
    batches = _TrainingBatches(order, batch_size, start_iteration, rank, world_size)
    return _loader(dataset, batches, num_workers, pin_memory)


def build_eval_loader(
    split: SplitData,
    mapper: Mapper,
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    whole_videos: bool = False,
) -> DataLoader:
    """Batches of every frame once, in the order of the split; the last batch may be smaller.

    Each of several processes gets one run of consecutive frames, of equal length to within one
    frame. Only the world_size - 1 cuts divide a video; references are read across them.

    With `whole_videos`, for detectors with a memory of earlier frames, each process gets whole
    videos and about as many frames as the others, a batch holds frames of one video only, and
    samples have `starts_video`, True for the first frame of each video.
    """
    _check_sizes(batch_size, num_workers, rank, world_size)
    if mapper.is_train:
        raise ValueError("an evaluation loader needs a mapper with is_train=False")
    dataset = ClipDataset(split.records, mapper, mark_starts=whole_videos)
    _warn_of_short_scenes(split.records, dataset)
    if whole_videos:
        runs = share_videos(dataset.video_bounds, world_size)[rank]
    else:
        first, last = (len(dataset) * r // world_size for r in (rank, rank + 1))
        runs = [range(first, last)]
    batches = [
        [(index, index) for index in run[i : i + batch_size]]
        for run in runs
        for i in range(0, len(run), batch_size)
    ]
    return _loader(dataset, batches, num_workers, pin_memory)


def share_videos(bounds: Sequence[int], world_size: int) -> list[list[range]]:
    """Record indices of each process's videos, in the order of the split.

    The longest remaining video goes to the process with the fewest frames; the largest share is at
    most a third above the optimum (Graham, 1969).

    Args:
        bounds: first index of each video, then the number of records.
        world_size: number of processes.
    """
    videos = [range(*pair) for pair in pairwise(bounds)]
    shares: list[list[range]] = [[] for _ in range(world_size)]
    for video in sorted(videos, key=len, reverse=True):
        min(shares, key=lambda share: sum(map(len, share))).append(video)
    return [sorted(share, key=lambda video: video.start) for share in shares]


class ClipDataset(Dataset):
    """(record index, seed) -> sample. Records are in memory shared with workers.

    With `mark_starts` samples have `starts_video`.
    """

    def __init__(
        self, records: Sequence[Record], mapper: Mapper, *, mark_starts: bool = False
    ) -> None:
        if not records:
            raise ValueError("the split has no frames")
        self.mapper, self._mark_starts = mapper, mark_starts
        places = [(r["video_id"], r["frame_index"]) for r in records]
        assert places == sorted(places), "records must be sorted by video_id, frame_index"
        self._frame_indices = np.array([frame_index for _, frame_index in places])
        self.scene_bounds = run_bounds(records, "video_id", "scene_id")
        self.video_bounds = run_bounds(records, "video_id")
        # Serialised: reference counts would copy Python objects into every worker.
        self._records = DatasetFromList(list(records), copy=False, serialize=True)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, seed = draw
        video, scene = (run_around(b, index) for b in (self.video_bounds, self.scene_bounds))
        frames = VideoFrames(
            self._frame_indices[video.start : video.stop],
            range(scene.start - video.start, scene.stop - video.start),
        )
        records = _Slice(self._records, video.start, video.stop)
        sample = self.mapper(self._records[index], seed, records, frames)
        return {**sample, "starts_video": index == video.start} if self._mark_starts else sample


class _Slice(Sequence[Record]):
    """records[start:stop], not unpacked."""

    def __init__(self, records: DatasetFromList, start: int, stop: int) -> None:
        self._records, self._start, self._stop = records, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, position: int) -> Record:
        if not 0 <= position < len(self):
            raise IndexError(position)
        return self._records[self._start + position]


class TrainingOrder:
    """Draw number -> (record index, seed of the sample), endless; one epoch is in memory.

    An epoch is a permutation of all frames with a lesion and its share of lesion-free ones.
    """

    def __init__(
        self, lesion_free: np.ndarray, *, seed: int, negative_share: float | None = None
    ) -> None:
        self._negatives = np.flatnonzero(lesion_free)
        self._positives = np.flatnonzero(~lesion_free)
        self.seed, self.negative_share = seed, negative_share
        self.negatives_per_epoch = self._count_negatives()
        self.epoch_size = len(self._positives) + self.negatives_per_epoch
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __call__(self, draw: int) -> Draw:
        """Frame and seed of this draw; an epoch is `epoch_size` draws."""
        epoch, place = divmod(draw, self.epoch_size)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._permutation(epoch))
        seed = np.random.SeedSequence((self.seed, _SAMPLE, draw)).generate_state(1, np.uint64)[0]
        return int(self._epoch[1][place]), int(seed)

    def describe(self) -> str:
        """Composition of an epoch, for the log."""
        if not len(self._positives):  # nobody has looked for lesions
            return f"{self.epoch_size} frames an epoch"
        share = self.negatives_per_epoch / self.epoch_size
        text = (
            f"{len(self._positives)} frames with a lesion, {len(self._negatives)} without; "
            f"an epoch is {len(self._positives)} with and {self.negatives_per_epoch} without "
            f"({share:.0%}, negative_share={self.negative_share})"
        )
        if self.negatives_per_epoch < len(self._negatives):
            return text + ", a different part of those without in each epoch"
        if self.negatives_per_epoch > len(self._negatives):
            return text + ", those without repeated"
        return text

    def _count_negatives(self) -> int:
        share, found = self.negative_share, len(self._negatives)
        if share is None:
            return found
        if not 0 <= share < 1:
            raise ValueError(f"data.negative_share={share} must be null or lie in [0, 1)")
        if not len(self._positives) or (share > 0 and not found):
            kind = "lesion-free" if len(self._positives) else "lesion"
            raise ValueError(
                f"data.negative_share={share}, but the split has no {kind} frames; "
                "set it to null to take the frames as they come"
            )
        return max(round(len(self._positives) * share / (1 - share)), 1 if share > 0 else 0)

    def _permutation(self, epoch: int) -> np.ndarray:
        """Record indices of one epoch in the order of their draws."""
        first = epoch * self.negatives_per_epoch
        negatives = self._negative_run(first, first + self.negatives_per_epoch)
        members = np.concatenate([self._positives, negatives])
        return np.random.default_rng((self.seed, _EPOCH, epoch)).permutation(members)

    def _negative_run(self, first: int, last: int) -> np.ndarray:
        """Places first..last of an endless sequence of permutations of the lesion-free frames."""
        size = len(self._negatives)
        if first == last:
            return self._negatives[:0]
        rounds = range(first // size, (last - 1) // size + 1)
        row = [
            np.random.default_rng((self.seed, _LESION_FREE, r)).permutation(self._negatives)
            for r in rounds
        ]
        offset = rounds.start * size
        return np.concatenate(row)[first - offset : last - offset]


class _TrainingBatches(Sampler[list[Draw]]):
    """Draws of iteration start, start + 1, ... for one process."""

    def __init__(
        self, order: TrainingOrder, batch_size: int, start: int, rank: int, world_size: int
    ) -> None:
        self.order, self.batch_size, self.start = order, batch_size, start
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        for iteration in count(self.start):
            first = (iteration * self.world_size + self.rank) * self.batch_size
            yield [self.order(draw) for draw in range(first, first + self.batch_size)]


def _loader(
    dataset: ClipDataset,
    batches: Sampler[list[Draw]] | list[list[Draw]],
    num_workers: int,
    pin_memory: bool,
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=Collate(pin_memory),
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Otherwise an iterator would advance torch's global random state.
        generator=torch.Generator(),
    )


def _warn_of_short_scenes(records: Sequence[Record], dataset: ClipDataset) -> None:
    """Log a warning if scenes have fewer frames than a clip."""
    sampler, bounds = dataset.mapper.sampler, dataset.scene_bounds
    num_frames = sampler.num_frames - sampler.num_global
    short = [i for i in range(len(bounds) - 1) if bounds[i + 1] - bounds[i] < num_frames]
    if short:
        videos = {records[bounds[i]]["video_id"] for i in short}
        logger.warning(
            "%d of %d scenes (in %d of %d videos) have fewer than num_frames=%d frames: "
            "their clips repeat frames",
            len(short),
            len(bounds) - 1,
            len(videos),
            len({r["video_id"] for r in records}),
            num_frames,
        )


def _check_sizes(batch_size: int, num_workers: int, rank: int, world_size: int) -> None:
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            f"batch_size={batch_size} must be at least 1 and num_workers={num_workers} at least 0"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} must lie in [0, world_size={world_size})")
