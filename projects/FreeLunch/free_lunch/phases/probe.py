"""The stage that measures a frozen backbone: linear probe, k-NN and retrieval on its features."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor, nn

from free_lunch.phases.features import features_of
from free_lunch.phases.knn import choose_k, knn_predict
from free_lunch.phases.linear import choose_linear
from free_lunch.phases.models import PhaseClassifier
from free_lunch.phases.retrieval import video_retrieval
from free_lunch.phases.stage import METRIC, PhaseStage, phases_of
from free_lunch.phases.videos import VideoFeatures, VideoPhases, stack_videos
from v2idetr.config.load import fingerprint, save_config
from v2idetr.engine.run_context import RunContext
from v2idetr.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from v2idetr.runs.folder import CONFIG, git_commit
from v2idetr.runs.stage_folder import FINAL

logger = logging.getLogger(__name__)

RETRIEVAL_GAP_S = 5.0  # frames of a video that are closer are near copies
NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)


class ProbeStage(PhaseStage):
    """Linear probe, k-NN and retrieval of the video on the features of a frozen backbone.

    Args:
        encoder, share, transitions, settings, given, needs, split: see :class:`PhaseStage`.
    """

    def artefact(self, config: DictConfig) -> Path:
        return Path(config.train.output_dir) / self.name / FINAL

    def train(self, run: RunContext) -> None:
        """Fit the classifier by L-BFGS; there are no steps to resume."""
        folder = run.stage_folder(self.name)
        if comm.is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            save_config(run.config, folder / CONFIG)
        model = self.classifier(run.config, pretrained=True)
        self.load_backbone(run, model)
        train, val = self._training_features(run, model), self._features(run, model, "val")
        choice = choose_linear(train, val, num_phases=len(phases_of(run.config)))
        for note in choice.probe.notes:
            logger.warning("%s: %s", self.name, note)
        with torch.no_grad():
            model.classifier.weight.copy_(torch.from_numpy(choice.probe.weight.T))
            model.classifier.bias.copy_(torch.from_numpy(choice.probe.bias))
        best = {
            "metric": METRIC,
            "value": choice.accuracies[choice.probe.l2],
            "l2": choice.probe.l2,
        }
        if comm.is_main_process():
            state = Checkpoint(
                stage=self.name,
                iteration=0,
                model=dict(model.state_dict()),
                best=best,
                config_fingerprint=fingerprint(run.config),
                git_commit=git_commit(),
            )
            save_checkpoint(state, folder / FINAL)
        comm.synchronize()

    def predictions(self, run: RunContext, model: nn.Module, name: str) -> list[VideoPhases]:
        assert isinstance(model, PhaseClassifier)
        return [
            video.with_predictions(_predicted(model.classifier, video, run.device))
            for video in self._features(run, model, name)
        ]

    def evaluate(self, run: RunContext, weights: Path, folder: Path) -> dict[str, Any]:
        result = super().evaluate(run, weights, folder)
        return {**result, "l2": (load_checkpoint(weights).best or {}).get("l2")}

    def result(self, run: RunContext, model: nn.Module, folder: Path) -> dict[str, Any]:
        assert isinstance(model, PhaseClassifier)
        result = super().result(run, model, folder)
        tests = {name: self._features(run, model, f"test/{name}") for name in run.tests}
        result["retrieval"] = {}
        for name, videos in tests.items():
            gap = math.ceil(RETRIEVAL_GAP_S * self.labelled(run, f"test/{name}").frame_rate)
            result["retrieval"][name] = video_retrieval(videos, gap=gap)
        if self.split in run.splits:
            result["knn"] = self._knn(run, model, tests)
        return result

    def _knn(
        self, run: RunContext, model: PhaseClassifier, tests: Mapping[str, list[VideoFeatures]]
    ) -> dict[str, Any]:
        """Metrics of k-NN among the labelled training frames."""
        num_phases = len(phases_of(run.config))
        train, val = self._training_features(run, model), self._features(run, model, "val")
        features, labels = stack_videos(train, num_phases)
        ks = [k for k in NEIGHBOURS if k <= len(labels)]
        k = choose_k(train, val, ks=ks, num_phases=num_phases).k
        metrics = {}
        for name, videos in tests.items():
            predicted = [
                video.with_predictions(
                    knn_predict(features, labels, video.features, k=k, num_phases=num_phases)
                )
                for video in videos
            ]
            metrics[name] = self.scores(run, f"test/{name}", predicted)
        return {"k": k, "tests": metrics}

    def _features(self, run: RunContext, model: PhaseClassifier, name: str) -> list[VideoFeatures]:
        return features_of(run, model, self.labelled(run, name), name)

    def _training_features(self, run: RunContext, model: PhaseClassifier) -> list[VideoFeatures]:
        count = len(self.labelled(run, self.split).first_videos(self.share).videos())
        return self._features(run, model, self.split)[:count]


def _predicted(classifier: nn.Module, video: VideoFeatures, device: torch.device) -> np.ndarray:
    with torch.no_grad():
        logits: Tensor = classifier(torch.from_numpy(video.features).to(device))
    return logits.argmax(1).cpu().numpy()
