"""The stage that pretrains an encoder on frames without labels.

It is MoCo v2 by itself, semantic-preserving training where the encoder's backbone is frozen, and
Free Lunch's student where an earlier stage is its teacher.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from free_lunch.contrast import KeyHook, MomentumContrast, views_of
from free_lunch.encoder import Encoder
from free_lunch.held_out import frames_to_leave_out
from free_lunch.key_queue import check_queue_size
from free_lunch.sync_norm import synchronised
from free_lunch.views import TwoViews
from v2idetr.atomic_file import write_text_atomically
from v2idetr.checkpoints.files import read_weights
from v2idetr.config.load import build
from v2idetr.config.stage_settings import batch_size_key, given_file, value_at
from v2idetr.data.clip_mapper import FrameCache, Mapper
from v2idetr.data.coco_vid import SplitData
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import Stage, StageModels
from v2idetr.engine.stage_training import started
from v2idetr.engine.trainer import TrainerHook, seed_step
from v2idetr.modeling.backbone_handover import check_file_pixels
from v2idetr.modeling.backbone_weights import load_imagenet_weights
from v2idetr.runs.checkpoint import load_into
from v2idetr.runs.stage_folder import FINAL

MOST_VALIDATED = 2048  # frames, evenly spaced over the validation split
METRIC = "views/top1"
LEFT_OUT = "left_out_frames.json"  # image ids, in the folder of the stage


class PretrainingStage(Stage):
    """Trains an encoder by momentum contrast, and by a teacher's similarities if it has one.

    The artefact is the encoder after the last step: the loss on held-out frames does not say which
    step gives the best backbone.

    Args:
        encoder: key of the :class:`Encoder` in the config.
        queue_size, temperature, momentum, contrast_weight, distillation_weight,
            distillation_temperature: see :class:`MomentumContrast`. Temperatures are above 0, the
            momentum in [0, 1), weights at least 0 and not both 0.
        shared_share: most of a training video that can be copies of frames of held-out videos, such
            as a title card: they are left out of training, and where they are more, it is refused.
        settings, given, needs, split: see :class:`Stage`. An earlier stage of this kind in the role
            "teacher" gives the similarities to be distilled; ``split`` may be one without labels.

    Raises:
        ValueError: a number is out of its range.
    """

    roles = ("teacher",)
    with_boxes = False
    reported = False
    in_steps = True  # in spite of its own `train`

    def __init__(
        self,
        *,
        encoder: str = "encoder",
        queue_size: int = 2048,
        temperature: float = 0.2,
        momentum: float = 0.999,
        contrast_weight: float = 1.0,
        distillation_weight: float = 0.0,
        distillation_temperature: float = 0.2,
        shared_share: float = 0.02,
        settings: str = "train",
        given: str = "",
        needs: Mapping[str, str] | None = None,
        split: str = "train",
    ) -> None:
        super().__init__(settings=settings, given=given, needs=needs, split=split)
        _check_ranges(
            {"temperature": temperature, "distillation_temperature": distillation_temperature},
            {"contrast_weight": contrast_weight, "distillation_weight": distillation_weight},
            momentum,
        )
        if not 0 <= shared_share < 1:
            raise ValueError(f"shared_share={shared_share:g} of a video must lie in [0, 1).")
        self.encoder, self.queue_size = encoder, queue_size
        self.temperature, self.momentum = temperature, momentum
        self.contrast_weight, self.distillation_weight = contrast_weight, distillation_weight
        self.distillation_temperature = distillation_temperature
        self.shared_share = shared_share
        self._left_out: list[int] = []  # image ids, see held_out.py

    def build(self, config: DictConfig, *, pretrained: bool = True) -> StageModels:
        batch_key = batch_size_key(config, self.name)
        key = f"stages.{self.name}"
        size = value_at(config, batch_key)
        check_queue_size(self.queue_size, size, key=f"{key}.queue_size", batch_key=batch_key)
        if bool(self.needs) != (self.distillation_weight > 0):
            raise ValueError(
                f"{key}.distillation_weight is {self.distillation_weight:g}, but {key}.needs is "
                f"{self.needs}: a weight above 0 and a teacher belong together."
            )
        if (normalize := value_at(config, "views.normalize")) is not None:
            raise ValueError(
                f"views.normalize is {normalize}, but must be null: the encoder normalises, by its "
                "pixel_mean and pixel_std."
            )
        encoder = build_encoder(config, self.encoder, pretrained=pretrained)
        teacher = self._teacher_stage
        known = None
        if teacher is not None:
            known = build_encoder(config, teacher.encoder, pretrained=False)
            known.eval().requires_grad_(False)
        contrast = MomentumContrast(
            encoder,
            queue_size=self.queue_size,
            temperature=self.temperature,
            momentum=self.momentum,
            contrast_weight=self.contrast_weight,
            distillation_weight=self.distillation_weight,
            distillation_temperature=self.distillation_temperature,
            teacher_dim=known.dim if known is not None else 0,
        )
        return StageModels(encoder, contrast, known)

    def training_split(self, run: RunContext) -> SplitData:
        split, left_out = run.splits[self.split], set(self._left_out)
        if not left_out:
            return split
        return replace(split, records=[r for r in split.records if r["image_id"] not in left_out])

    def training_mapper(self, run: RunContext, models: StageModels, *, keep: bool = True) -> Mapper:
        return self._views(run, self.training_split(run), is_train=True, keep=keep)

    def train(self, run: RunContext) -> None:
        file = run.stage_folder(self.name) / LEFT_OUT
        if started(run, self):  # the frames have been looked at
            self._left_out = json.loads(file.read_text()) if file.exists() else []
        else:
            key = f"stages.{self.name}.shared_share"
            self._left_out = frames_to_leave_out(run, self.split, most=self.shared_share, key=key)
            if comm.is_main_process():
                write_text_atomically(file, json.dumps(self._left_out) + "\n")
        super().train(run)

    def load_needs(self, run: RunContext, models: StageModels) -> None:
        teacher = self._teacher_stage
        if teacher is not None:
            assert models.teacher is not None
            file = teacher.artefact(run.config)
            load_into(models.teacher, read_weights(file).state, file)

    def hooks(self, models: StageModels) -> Sequence[TrainerHook]:
        assert isinstance(models.trained, MomentumContrast)
        teacher = models.teacher
        assert teacher is None or isinstance(teacher, Encoder)
        return [KeyHook(models.trained, teacher)]

    def artefact(self, config: DictConfig) -> Path:
        given = given_file(config, self.name)
        return Path(given or Path(config.train.output_dir) / self.name / FINAL)

    def best_metric(self, config: DictConfig) -> str:
        return METRIC

    def validate(self, run: RunContext, models: StageModels) -> dict[str, float]:
        """Share of validation frames whose query is nearest to their own key of all keys."""
        contrast = models.trained
        assert isinstance(contrast, MomentumContrast)
        split = _evenly(run.splits["val"], MOST_VALIDATED)
        mapper = self._views(run, split, is_train=False)
        contrast.eval()
        queries, keys = [], []
        with torch.no_grad():
            for batch in run.samples_in_order(split, mapper):
                first, second = views_of(batch, run.device)
                queries.append(contrast.encoder(first).cpu())
                keys.append(contrast.key_encoder(second).cpu())
        contrast.train()
        parts: Any = comm.all_gather((_joined(queries), _joined(keys)))
        asked, known = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        nearest = torch.cat([(chunk @ known.T).argmax(1) for chunk in asked.split(256)])
        return {METRIC: float((nearest == torch.arange(len(known))).float().mean())}

    def _views(
        self, run: RunContext, split: SplitData, *, is_train: bool, keep: bool = True
    ) -> TwoViews:
        frames = run.shared_frames(split) if is_train and keep else None
        read = (frames or FrameCache(0)).read
        return TwoViews(read, build(run.config, "views"), is_train=is_train)

    @property
    def _teacher_stage(self) -> PretrainingStage | None:
        teacher = self.earlier.get("teacher")
        if teacher is not None and not isinstance(teacher, PretrainingStage):
            raise ValueError(
                f"stages.{self.name}.needs.teacher is {teacher.name}, a {type(teacher).__name__}: "
                "the teacher's similarities are those of a PretrainingStage."
            )
        return teacher


def _check_ranges(
    temperatures: Mapping[str, float], weights: Mapping[str, float], momentum: float
) -> None:
    for name, value in temperatures.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value:g} must be a number above 0; 0.2 is usual.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum:g} must lie in [0, 1); 0.999 is usual.")
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value:g} must be a number of at least 0.")
    if not any(weights.values()):
        raise ValueError(f"{' and '.join(weights)} are both 0: give one of the losses a weight.")


def build_encoder(config: DictConfig, key: str, *, pretrained: bool) -> Encoder:
    """The encoder at a key with freshly drawn weights, the same ones for all stages.

    Args:
        pretrained: give its backbone the weights that the config names; else others follow.

    Raises:
        ValueError: there is none at the key, or it refuses its settings; names the key.
    """
    if value_at(config, key) is None:
        raise ValueError(f"{key}: the config has no encoder there.")
    weights = value_at(config, f"{key}.weights")
    if weights is not None:  # given below, where messages can name the whole key
        config = copy.deepcopy(config)
        OmegaConf.update(config, f"{key}.weights", None)
    seed_step(config.train.seed, "initial weights", 0, 0)
    encoder = build(config, key)
    if not isinstance(encoder, Encoder):
        raise ValueError(f"{key}: {type(encoder).__name__} is no free_lunch.encoder.Encoder.")
    if pretrained:
        load_imagenet_weights(encoder.backbone, weights, key=f"{key}.weights")
        check_file_pixels(encoder, weights, key=f"{key}.weights")
    if comm.get_world_size() > 1:
        synchronised(encoder)
    return encoder


def _evenly(split: SplitData, count: int) -> SplitData:
    """At most `count` evenly spaced frames of a split."""
    places = np.linspace(0, len(split.records) - 1, min(count, len(split.records))).astype(int)
    return replace(split, records=[split.records[place] for place in places])


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0)
