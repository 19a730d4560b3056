"""The stage that trains backbone and classifier on single frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import nn

from free_lunch.phases.features import pixels_of
from free_lunch.phases.models import PhaseClassifier
from free_lunch.phases.stage import PhaseStage
from free_lunch.phases.videos import VideoPhases
from v2idetr.engine.run_context import RunContext


class FinetuningStage(PhaseStage):
    """Trains backbone and classifier on single frames.

    Args:
        encoder, share, transitions, settings, given, needs, split: see :class:`PhaseStage`.
    """

    @torch.no_grad()
    def predictions(self, run: RunContext, model: nn.Module, name: str) -> list[VideoPhases]:
        assert isinstance(model, PhaseClassifier)
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
