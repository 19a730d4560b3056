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
from omegaconf import DictConfig
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from v2idetr.config.load import build
from v2idetr.config.stage_settings import batch_size_key, stages_to_train, value_at
from v2idetr.data.audit import Findings
from v2idetr.data.catalog import register_splits
from v2idetr.data.clip_mapper import ClipMapper, FrameCache, Mapper
from v2idetr.data.coco_vid import SplitData, load_split
from v2idetr.data.loader import build_eval_loader, build_train_loader
from v2idetr.data.reference_sampler import ReferenceSampler, WindowSampler
from v2idetr.data.schema import Together
from v2idetr.data.shared_frames import SharedFrames, SharedFrameStore
from v2idetr.data.split_set import check_shared_files, check_training_boxes
from v2idetr.engine.signals import StopSignals
from v2idetr.engine.stage import Stage, StageModels
from v2idetr.engine.stage_graph import resolve_stages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """One run of train_net.py on one process.

    Attributes:
        config: resolved and checked.
        device: of this process.
        splits: those that stages are trained on, "train" for most (not for evaluation alone),
            "val" and "test/<name>".
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

    @cached_property
    def found(self) -> dict[str, Any]:
        """What a stage has found out and later ones need as well, by a name of its own."""
        return {}

    def stage_folder(self, stage: str) -> Path:
        """Where a stage writes."""
        return self.folder / stage

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """The stages that the config defines."""
        return resolve_stages(self.config)

    def batch_size(self, stage: Stage) -> int:
        """Clips a step, over all processes."""
        return value_at(self.config, batch_size_key(self.config, stage.name))

    def micro_batches(self, stage: Stage) -> int:
        """Into how many equal parts, of at most `train.clips_at_once` clips, a process cuts its
        share of a batch."""
        share = self.batch_size(stage) // comm.get_world_size()
        limit = self.config.train.clips_at_once
        at_once = next(size for size in range(min(share, limit), 0, -1) if share % size == 0)
        return share // at_once

    def train_loader(
        self, stage: Stage, models: StageModels, start_iteration: int, *, dry_run: bool = False
    ) -> DataLoader:
        """Endless batches of clips of the stage's training split, this process's share.

        For a dry run, batches of one clip, prepared in this process; of two where there is batch
        normalisation, which cannot be trained on a map of one value.

        Raises:
            ValueError: the sampler of a detector makes clips of another length than it looks at.
        """
        world = comm.get_world_size()
        batch_size = self.batch_size(stage) // world
        if dry_run:
            normalised = any(isinstance(m, _BatchNorm) for m in models.trained.modules())
            at_once = batch_size // self.micro_batches(stage)
            batch_size = min(2, at_once) if normalised else 1
        return build_train_loader(
            stage.training_split(self),
            stage.training_mapper(self, models, keep=not dry_run),
            batch_size=batch_size,
            seed=self.config.train.seed,
            start_iteration=start_iteration,
            negative_share=self.config.data.negative_share,
            num_workers=0 if dry_run else self.config.train.num_workers,
            rank=comm.get_rank(),
            world_size=world,
            pin_memory=self.device.type == "cuda",
        )

    def eval_loader(self, split: SplitData, detector: object) -> DataLoader:
        """Every frame of a split once, in order, this process's share; see `train_loader`.

        In whole videos for a detector with `order = "video"`, see `build_eval_loader`.
        """
        whole_videos = getattr(detector, "order", "any") == "video"
        mapper = self.clip_mapper(split, detector, is_train=False)
        return self.samples_in_order(split, mapper, whole_videos=whole_videos)

    def samples_in_order(
        self, split: SplitData, mapper: Mapper, *, whole_videos: bool = False
    ) -> DataLoader:
        """This process's share of a split's samples in batches, see `build_eval_loader`."""
        return build_eval_loader(
            split,
            mapper,
            batch_size=self.config.evaluation.batch_size,
            num_workers=self.config.train.num_workers,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            pin_memory=self.device.type == "cuda",
            whole_videos=whole_videos,
        )

    def reference_sampler(self, detector: object, *, is_train: bool) -> ReferenceSampler:
        """The detector's own sampler, or the window below ``data``.

        Raises:
            ValueError: it makes clips of another length than the detector is trained on.
        """
        tested: ReferenceSampler | None = getattr(detector, "evaluation_sampler", None)
        if tested is not None and not is_train:
            return tested
        data: Any = self.config.data
        num_frames: int = getattr(detector, "num_frames", 1)
        sampler: ReferenceSampler | None = getattr(detector, "reference_sampler", None)
        if sampler is None:
            return WindowSampler(
                num_frames=num_frames, window=data.window, sampling=data.sampling, side=data.side
            )
        if sampler.num_frames != num_frames:
            chosen, by = type(sampler).__name__, type(detector).__name__
            raise ValueError(
                f"{by}.reference_sampler: {chosen} makes clips of {sampler.num_frames} frames, but "
                f"the detector has num_frames={num_frames}; make them agree."
            )
        return sampler

    def shared_frames(self, split: SplitData) -> SharedFrames | None:
        """Decoded frames of a split, also for a part of it; None if they are not kept."""
        files = (split.json_path, split.image_root)
        whole = next(s for s in self.splits.values() if (s.json_path, s.image_root) == files)
        return self.frames.of(" in ".join(map(str, files)), whole.records, FrameCache(0).read)

    def clip_mapper(
        self, split: SplitData, detector: object, *, is_train: bool, keep: bool = True
    ) -> ClipMapper:
        """Record -> sample with the clip that a detector looks at; see `train_loader`."""
        data: Any = self.config.data
        sampler = self.reference_sampler(detector, is_train=is_train)
        num_frames = sampler.num_frames
        return ClipMapper(
            sampler=sampler,
            augmentations=build(
                self.config, f"data.augmentations.{'train' if is_train else 'test'}"
            ),
            is_train=is_train,
            min_visible=data.min_visible,
            # In order, each worker decodes a frame once (batches of several workers overlap); in
            # random order a cache would hardly ever hit.
            cache_frames=0
            if is_train or num_frames == 1
            else max(2 * data.window + 1, 2 * num_frames),
            shared=self.shared_frames(split) if keep else None,
        )


def load_splits(config: DictConfig, *, with_train: bool) -> dict[str, SplitData]:
    """Read and check all splits of a run, each and together; Detectron2 finds them by name.

    The names are ``v2idetr/<folder of the training JSON>/<split>``, see `register_splits`.

    Raises:
        ValueError: all that is wrong with any of them, see `load_split` and `data.split_set`.
    """
    names = stages_to_train(config) if with_train else list(config.train.stages)
    known = resolve_stages(config)
    stages = [known[name] for name in names]
    learned = {stage.split for stage in stages if stage.with_boxes}
    wanted = {stage.split: config.data[stage.split] for stage in stages} if with_train else {}
    if config.data.val is not None:
        wanted["val"] = config.data.val
    wanted |= {f"test/{name}": paths for name, paths in config.data.test.items()}
    splits, problems = {}, _problems_of_reports(config, stages)
    for name, paths in wanted.items():
        has_boxes = name in learned or bool(learned and name.startswith(("val", "test/")))
        try:
            splits[name] = load_split(
                paths.json,
                paths.image_root,
                on_bad_box=config.data.on_bad_box,
                class_names=list(config.data.class_names) if has_boxes else None,
                together=_together(config, stages, name),
            )
        except (ValueError, OSError) as error:
            problems.append(f"{_key(name)}: {error}")
    if learned and "val" in splits and not splits["val"].report.boxes:
        problems.append(
            f"{_key('val')}: {splits['val'].json_path} has no lesion, so neither a score threshold "
            "nor the best checkpoint can be chosen from it; give a split with lesions."
        )
    problems += _problems_together(splits, sorted(learned & splits.keys() if with_train else ()))
    if problems:
        raise ValueError("\n".join(problems))
    folder = next(iter(splits.values())).json_path.resolve().parent.name
    register_splits(splits, f"v2idetr/{folder}")
    return splits


def _problems_of_reports(config: DictConfig, stages: list[Stage]) -> list[str]:
    """Stages that are reported on need a validation and a test split."""
    reported = [stage.name for stage in stages if stage.reported]
    return [
        f"data.{split} is empty, but the stage {reported[0]} is evaluated on it: name "
        "{json: ..., image_root: ...}"
        + (" by the name of a test split." if split == "test" else ".")
        for split in ("val", "test")
        if reported and not config.data[split]
    ]


def _problems_together(splits: dict[str, SplitData], learned: list[str]) -> list[str]:
    """What is wrong with splits that are sound one by one; boxes are learned of some."""
    unlearnable, shared = [], Findings()
    for name in learned:
        problems, notes = Findings(), Findings()
        check_training_boxes(splits[name], problems, notes)
        unlearnable += [f"{_key(name)}: {line}" for line in problems.lines()]
        for line in notes.lines():
            logger.warning("%s: %s", _key(name), line)
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
    return [*unlearnable, *shared.lines()]


def _key(name: str) -> str:
    """Config key of a split."""
    return f"data.{name.replace('/', '.')}"


def _together(config: DictConfig, stages: list[Stage], split: str) -> Together:
    """Which frames of a split any stage looks at together."""
    found: set[Together] = {stage.together(config, split) for stage in stages}
    return "video" if "video" in found else "scene" if "scene" in found else "frame"
