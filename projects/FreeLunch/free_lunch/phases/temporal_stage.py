"""The stage that trains a causal TCN on the features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from free_lunch.encoder import PooledBackbone
from free_lunch.phases.features import features_of
from free_lunch.phases.models import PhaseSequence
from free_lunch.phases.stage import PhaseStage, phases_of
from free_lunch.phases.temporal import CausalTCN
from free_lunch.phases.videos import VideoFeatures, VideoPhases
from v2idetr.data.clip_mapper import Mapper
from v2idetr.data.coco_vid import SplitData
from v2idetr.data.reference_sampler import WindowSampler
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import StageModels


class TemporalStage(PhaseStage):
    """Trains a causal TCN on the features of a frozen backbone.

    Args:
        num_stages, num_layers, width: of the :class:`CausalTCN`.
        encoder, share, transitions, settings, given, needs, split: see :class:`PhaseStage`.
    """

    def __init__(
        self,
        *,
        num_stages: int = 1,
        num_layers: int = 12,
        width: int = 64,
        encoder: str = "encoder",
        share: float = 1.0,
        transitions: str | None = None,
        settings: str = "train",
        given: str = "",
        needs: Mapping[str, str] | None = None,
        split: str = "train",
    ) -> None:
        super().__init__(
            encoder=encoder,
            share=share,
            transitions=transitions,
            settings=settings,
            given=given,
            needs=needs,
            split=split,
        )
        self.num_stages, self.num_layers, self.width = num_stages, num_layers, width
        self._backbone: PooledBackbone | None = None

    def build(self, config: DictConfig, *, pretrained: bool = True) -> StageModels:
        frozen = self.classifier(config, pretrained=False)  # for its width
        try:
            tcn = CausalTCN(
                d=frozen.num_features,
                num_phases=len(phases_of(config)),
                num_stages=self.num_stages,
                num_layers=self.num_layers,
                width=self.width,
            )
        except ValueError as error:
            raise ValueError(f"stages.{self.name}: {error}") from None
        model = PhaseSequence(tcn)
        return StageModels(model, model)

    def training_split(self, run: RunContext) -> SplitData:
        """One record a video: a step sees whole videos."""
        labelled = self.labelled(run, self.split).first_videos(self.share)
        records = [records[0] for _, records in labelled.videos()]
        return replace(labelled.split, records=records)

    def training_mapper(self, run: RunContext, models: StageModels, *, keep: bool = True) -> Mapper:
        assert isinstance(models.model, PhaseSequence)
        if not keep:  # a dry run: earlier stages have made no features
            return WholeVideos({}, d=models.model.tcn.d)
        videos = self._features(run, self.split)
        ids = [records[0]["video_id"] for _, records in self.labelled(run, self.split).videos()]
        return WholeVideos(dict(zip(ids, videos, strict=True)), d=models.model.tcn.d)

    def predictions(self, run: RunContext, model: nn.Module, name: str) -> list[VideoPhases]:
        assert isinstance(model, PhaseSequence)
        return [
            video.with_predictions(
                model.predict(torch.from_numpy(video.features).to(run.device)).cpu().numpy()
            )
            for video in self._features(run, name)
        ]

    def _features(self, run: RunContext, name: str) -> list[VideoFeatures]:
        if self._backbone is None:
            self._backbone = self.classifier(run.config, pretrained=True)
            self.load_backbone(run, self._backbone)
        return features_of(run, self._backbone, self.labelled(run, name), name)


class WholeVideos:
    """Record of a video's first frame -> the video's features and labels.

    Args:
        videos: features by video id; {} for zeros, of a dry run.
        d: width of the features.
    """

    sampler = WindowSampler(num_frames=1, window=0, sampling="fixed")  # its neighbours are not read
    is_train = True

    def __init__(self, videos: Mapping[int, VideoFeatures], *, d: int) -> None:
        self._videos, self._d = videos, d

    def __call__(
        self, record: dict[str, Any], seed: int, video: Any = None, frames: Any = None
    ) -> dict[str, Any]:
        """The sample: ``features`` (T, d), ``phases`` (T), and the keys of the record."""
        found = self._videos.get(record["video_id"])
        features, phases = torch.zeros(2, self._d), torch.zeros(2, dtype=torch.int64)
        if found is not None:
            features, phases = torch.from_numpy(found.features), torch.from_numpy(found.labels)
        return {**record, "features": features, "phases": phases}
