"""What all stages of a run share: config, device, data, and the loaders made of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from v2idetr.config.checks import batch_size_key, stages_to_train
from v2idetr.config.load import build
from v2idetr.data.audit import Findings
from v2idetr.data.catalog import register_splits
from v2idetr.data.clip_mapper import ClipMapper, FrameCache
from v2idetr.data.coco_vid import SplitData, load_split
from v2idetr.data.loader import build_eval_loader, build_train_loader
from v2idetr.data.reference_sampler import ReferenceSampler, WindowSampler
from v2idetr.data.shared_frames import SharedFrameStore
from v2idetr.data.split_set import check_shared_files, check_training_boxes
from v2idetr.engine.signals import StopSignals
from v2idetr.runs.folder import weights_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """One run of train_net.py on one process.

    Attributes:
        config: resolved and checked.
        device: of this process.
        splits: "train" (not for evaluation alone), "val" and "test/<name>".
        signals: tell the run to stop.
    """

    config: DictConfig
    device: torch.device
    splits: dict[str, SplitData]
    signals: StopSignals

    @property
    def folder(self) -> Path:
        """Where the run writes; each stage has a folder in it."""
        return Path(self.config.train.output_dir)

    @property
    def tests(self) -> dict[str, SplitData]:
        """Test splits by their own names."""
        return {n.removeprefix("test/"): s for n, s in self.splits.items() if n.startswith("test/")}

    @cached_property
    def frames(self) -> SharedFrameStore:
        """Decoded frames that loaders of all stages share."""
        return SharedFrameStore(self.config.data.cache_mib)

    def stage_folder(self, stage: str) -> Path:
        """Where a stage writes."""
        return self.folder / stage

    def weights(self, stage: str) -> Path:
        """The file of a trained stage that is evaluated, and that teaches."""
        if stage == "teacher" and self.config.teacher.checkpoint:
            return Path(self.config.teacher.checkpoint)
        return weights_of(self.config, stage)

    def batch_size(self, stage: str) -> int:
        """Clips a step, over all processes."""
        return OmegaConf.select(self.config, batch_size_key(self.config, stage))

    def micro_batches(self, stage: str) -> int:
        """Into how many equal parts, of at most `train.clips_at_once` clips, a process cuts its
        share of a batch."""
        share = self.batch_size(stage) // comm.get_world_size()
        limit = self.config.train.clips_at_once
        at_once = next(size for size in range(min(share, limit), 0, -1) if share % size == 0)
        return share // at_once


def load_splits(config: DictConfig, *, with_train: bool) -> dict[str, SplitData]:
    """Read and check all splits of a run, each and together; Detectron2 finds them by name.

    The names are ``v2idetr/<folder of the training JSON>/<split>``, see `register_splits`.

    Raises:
        ValueError: all that is wrong with any of them, see `load_split` and `data.split_set`.
    """
    wanted = {"train": config.data.train} if with_train else {}
    wanted["val"] = config.data.val
    wanted |= {f"test/{name}": paths for name, paths in config.data.test.items()}
    splits, problems = {}, []
    for name, paths in wanted.items():
        try:
            splits[name] = load_split(
                paths.json,
                paths.image_root,
                on_bad_box=config.data.on_bad_box,
                expected_classes=len(config.data.class_names),
                class_names=list(config.data.class_names),
                in_clips=_in_clips(config, name, training=with_train),
            )
        except (ValueError, OSError) as error:
            problems.append(f"{_key(name)}: {error}")
    if "val" in splits and not splits["val"].report.boxes:
        problems.append(
            f"data.val: {config.data.val.json} has no lesion, so neither a score threshold nor the "
            "best checkpoint can be chosen from it; give a split with lesions."
        )
    problems += _problems_together(splits)
    if problems:
        raise ValueError("\n".join(problems))
    register_splits(splits, f"v2idetr/{Path(config.data.train.json).resolve().parent.name}")
    return splits


def _problems_together(splits: dict[str, SplitData]) -> list[str]:
    """What is wrong with splits that are sound one by one."""
    unlearnable, notes, shared = Findings(), Findings(), Findings()
    if "train" in splits:
        check_training_boxes(splits["train"], unlearnable, notes)
    for line in notes.lines():
        logger.warning("data.train: %s", line)
    tests = [name for name in splits if name.startswith("test/")]
    apart = set(combinations(tests, 2))  # a test split may be a part of another one
    for name in tests:
        if "val" in splits and splits["val"].json_path == splits[name].json_path:
            apart.add(("val", name))
            logger.warning(
                "data.val and %s are one file: thresholds and the best checkpoint are chosen on "
                "what is reported",
                _key(name),
            )
    named = {_key(name): split for name, split in splits.items()}
    check_shared_files(named, shared, {(_key(a), _key(b)) for a, b in apart})
    return [*(f"data.train: {line}" for line in unlearnable.lines()), *shared.lines()]


def _key(name: str) -> str:
    """Config key of a split."""
    return f"data.{name.replace('/', '.')}"


def _in_clips(config: DictConfig, split: str, *, training: bool) -> bool:
    """Whether a stage that runs looks at several frames of a split together."""
    stages = set(stages_to_train(config) if training else config.train.stages)
    watching = {"model" for stage in stages if stage != "teacher"}
    if "teacher" in stages or (split == "train" and "student" in stages):
        watching.add("teacher.model")
    frames = [OmegaConf.select(config, f"{key}.num_frames", default=1) for key in watching]
    return config.data.window > 0 and max(frames, default=1) > 1


def train_loader(
    run: RunContext,
    stage: str,
    num_frames: int,
    start_iteration: int,
    *,
    rehearsal: bool = False,
    sampler: ReferenceSampler | None = None,
) -> DataLoader:
    """Endless batches of clips of `num_frames` frames, this process's share.

    For a rehearsal, batches of one clip, prepared in this process.

    Raises:
        ValueError: the detector's own `sampler` makes clips of another length.
    """
    world = comm.get_world_size()
    return build_train_loader(
        run.splits["train"],
        _mapper(run, run.splits["train"], num_frames, sampler, is_train=True, keep=not rehearsal),
        batch_size=1 if rehearsal else run.batch_size(stage) // world,
        seed=run.config.train.seed,
        start_iteration=start_iteration,
        negative_share=run.config.data.negative_share,
        num_workers=0 if rehearsal else run.config.train.num_workers,
        rank=comm.get_rank(),
        world_size=world,
        pin_memory=run.device.type == "cuda",
    )


def eval_loader(
    run: RunContext,
    split: SplitData,
    num_frames: int,
    *,
    sampler: ReferenceSampler | None = None,
    whole_videos: bool = False,
) -> DataLoader:
    """Every frame of a split once, in order, this process's share; see `train_loader`.

    `whole_videos` for a detector with `order = "video"`, see `build_eval_loader`.
    """
    return build_eval_loader(
        split,
        _mapper(run, split, num_frames, sampler, is_train=False),
        batch_size=run.config.evaluation.batch_size,
        num_workers=run.config.train.num_workers,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        pin_memory=run.device.type == "cuda",
        whole_videos=whole_videos,
    )


def _mapper(
    run: RunContext,
    split: SplitData,
    num_frames: int,
    sampler: ReferenceSampler | None,
    *,
    is_train: bool,
    keep: bool = True,
) -> ClipMapper:
    config = run.config
    data: Any = config.data
    if sampler is None:
        sampler = WindowSampler(
            num_frames=num_frames, window=data.window, sampling=data.sampling, side=data.side
        )
    if sampler.num_frames != num_frames:
        raise ValueError(
            f"{type(sampler).__name__} makes clips of {sampler.num_frames} frames, but the "
            f"detector has num_frames={num_frames}: make them equal"
        )
    return ClipMapper(
        sampler=sampler,
        augmentations=build(config, f"data.augmentations.{'train' if is_train else 'test'}"),
        is_train=is_train,
        min_visible=data.min_visible,
        # In order, each worker decodes a frame once (batches of several workers overlap); in
        # random order a cache would hardly ever hit.
        cache_frames=0 if is_train or num_frames == 1 else max(2 * data.window + 1, 2 * num_frames),
        shared=run.frames.of(str(split.json_path), split.records, FrameCache(0).read)
        if keep
        else None,
    )
