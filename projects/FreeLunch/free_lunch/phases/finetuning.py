"""The stage that trains backbone and classifier on single frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from omegaconf import DictConfig

from free_lunch.phases.features import pixels_of
from free_lunch.phases.models import PhaseClassifier
from free_lunch.phases.stage import METRIC, PhaseStage
from free_lunch.phases.videos import VideoPhases, mean_accuracy
from v2idetr.checkpoints.files import read_weights
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import StageModels
from v2idetr.runs.checkpoint import load_into


class FinetuningStage(PhaseStage):
    """Trains backbone and classifier on single frames.

    Args:
        encoder, share, transitions, settings, given, needs, split: see :class:`PhaseStage`.
    """

    def build(self, config: DictConfig, *, pretrained: bool = True) -> StageModels:
        model = self.classifier(config, pretrained=pretrained)
        return StageModels(model, model)

    def validate(self, run: RunContext, models: StageModels) -> dict[str, float]:
        assert isinstance(models.model, PhaseClassifier)
        models.model.eval()
        accuracy = mean_accuracy(self._predict(run, models.model, "val"))
        models.model.train()
        return {METRIC: accuracy}

    def evaluate(self, run: RunContext, weights: Path, folder: Path) -> dict[str, Any]:
        model = self.classifier(run.config, pretrained=False)
        load_into(model, read_weights(weights).state, weights)
        model.to(run.device).eval()
        return self.result(run, lambda name: self._predict(run, model, name), folder)

    @torch.no_grad()
    def _predict(self, run: RunContext, model: PhaseClassifier, name: str) -> list[VideoPhases]:
        labelled = self.labelled(run, name)
        mapper = run.clip_mapper(labelled.split, model, is_train=False)
        own = [
            model.classifier(model.features(pixels_of(batch, run.device))).argmax(1).cpu()
            for batch in run.samples_in_order(labelled.split, mapper)
        ]
        everywhere: Any = comm.all_gather(torch.cat(own) if own else torch.empty(0).long())
        predicted, start, videos = torch.cat(everywhere).numpy(), 0, []
        for video, records in labelled.videos():
            truth = np.array([record["phase"] for record in records])
            videos.append(VideoPhases(video, truth, predicted[start : start + len(records)]))
            start += len(records)
        return videos
