"""What the stages of phase recognition share.

All choices (L2 weight, k, best step) are made on validation videos. Labels can be limited to the
first videos of the training split, for the low-data regimes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from free_lunch.encoder import PooledBackbone
from free_lunch.phases.labels import LabelledSplit, read_labels
from free_lunch.phases.metrics import allowed_transitions, phase_metrics
from free_lunch.phases.models import PhaseClassifier
from free_lunch.phases.table import phase_table
from free_lunch.phases.videos import VideoPhases, mean_accuracy
from free_lunch.pretraining import build_encoder
from v2idetr.atomic_file import write_text_atomically
from v2idetr.checkpoints.files import read_weights
from v2idetr.data.coco_vid import SplitData
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import Stage, StageModels
from v2idetr.modeling.backbone_handover import take_backbone
from v2idetr.runs.checkpoint import load_into

METRIC = "phases/accuracy"


class PhaseStage(Stage):
    """What all stages of phase recognition share.

    Args:
        encoder: key of the :class:`free_lunch.encoder.Encoder` whose backbone is used, with the
            weights that it names unless an earlier stage in the role "backbone" gives others.
        share: of the training videos, in (0, 1]: labels of the first ones only.
        transitions: of the relaxed metrics, see `phase_metrics`.
        settings, given, needs, split: see :class:`Stage`.
    """

    roles = ("backbone",)
    with_boxes = False

    def __init__(
        self,
        *,
        encoder: str = "encoder",
        share: float = 1.0,
        transitions: str | None = None,
        settings: str = "train",
        given: str = "",
        needs: Mapping[str, str] | None = None,
        split: str = "train",
    ) -> None:
        super().__init__(settings=settings, given=given, needs=needs, split=split)
        if not 0 < share <= 1:
            raise ValueError(f"share={share} of the labelled videos must lie in (0, 1]")
        self.encoder, self.share, self.transitions = encoder, share, transitions
        self._labelled: dict[str, LabelledSplit] = {}

    table = staticmethod(phase_table)

    def build(self, config: DictConfig, *, pretrained: bool = True) -> StageModels:
        model = self.classifier(config, pretrained=pretrained)
        return StageModels(model, model)

    def predictions(self, run: RunContext, model: nn.Module, name: str) -> list[VideoPhases]:
        """Predictions of a model in evaluation mode for the videos of a split, on all processes."""
        raise NotImplementedError

    def validate(self, run: RunContext, models: StageModels) -> dict[str, float]:
        models.model.eval()
        accuracy = mean_accuracy(self.predictions(run, models.model, "val"))
        models.model.train()
        return {METRIC: accuracy}

    def evaluate(self, run: RunContext, weights: Path, folder: Path) -> dict[str, Any]:
        model = self.build(run.config, pretrained=False).model
        load_into(model, read_weights(weights).state, weights)
        model.to(run.device).eval()
        return self.result(run, model, folder)

    def labelled(self, run: RunContext, name: str) -> LabelledSplit:
        """A split of the run with its labels."""
        if name not in self._labelled:
            self._labelled[name] = read_labels(run.splits[name], phases_of(run.config))
        return self._labelled[name]

    def training_split(self, run: RunContext) -> SplitData:
        return self.labelled(run, self.split).first_videos(self.share).split

    def best_metric(self, config: DictConfig) -> str:
        return METRIC

    def classifier(self, config: DictConfig, *, pretrained: bool) -> PhaseClassifier:
        """The backbone with a classifier of freshly drawn weights."""
        allowed_transitions(self.transitions, len(phases_of(config)))
        self._refuse_further_labels(self)
        # The weights of an earlier stage follow.
        given = pretrained and "backbone" not in self.needs
        encoder = build_encoder(config, self.encoder, pretrained=given)
        return PhaseClassifier(
            backbone=encoder.backbone,
            pixel_mean=encoder.pixel_mean.flatten().tolist(),
            pixel_std=encoder.pixel_std.flatten().tolist(),
            num_phases=len(phases_of(config)),
        )

    def _refuse_further_labels(self, stage: Stage) -> None:
        """Raise where a stage, or one before it, has seen labels that are left out here."""
        for role, earlier in stage.earlier.items():
            same_split = earlier.split == self.split
            if same_split and isinstance(earlier, PhaseStage) and earlier.share > self.share:
                raise ValueError(
                    f"stages.{self.name}.share={self.share} leaves labels out that the stage "
                    f"{earlier.name} before it has seen (stages.{earlier.name}.share="
                    f"{earlier.share}): set stages.{earlier.name}.share={self.share}, or another "
                    f"stage as stages.{stage.name}.needs.{role}."
                )
            self._refuse_further_labels(earlier)

    def load_backbone(self, run: RunContext, model: PooledBackbone) -> None:
        """Give a backbone what the earlier stage has learned, if there is one."""
        if (earlier := self.earlier.get("backbone")) is not None:
            key = f"stages.{self.name}.needs.backbone"
            take_backbone(model, earlier.artefact(run.config), key=key)

    def load_needs(self, run: RunContext, models: StageModels) -> None:
        if isinstance(models.model, PooledBackbone):
            self.load_backbone(run, models.model)

    def scores(self, run: RunContext, name: str, videos: list[VideoPhases]) -> dict[str, Any]:
        """Metrics of predictions for a split."""
        rate = self.labelled(run, name).frame_rate
        num_phases = len(phases_of(run.config))
        return phase_metrics(videos, num_phases=num_phases, fps=rate, transitions=self.transitions)

    def result(self, run: RunContext, model: nn.Module, folder: Path) -> dict[str, Any]:
        """Metrics on the validation and test splits; predictions go into the folder as CSV."""
        labelled = self.labelled(run, self.split) if self.split in run.splits else None
        result: dict[str, Any] = {
            "phases": phases_of(run.config),
            "share": self.share,
            "labelled_videos": labelled and len(labelled.first_videos(self.share).videos()),
            "tests": {},
        }
        for name in run.splits:
            if name == "val" or name.startswith("test/"):
                videos = self.predictions(run, model, name)
                metrics = self.scores(run, name, videos)
                if name == "val":
                    result["val"] = metrics
                else:
                    result["tests"][name.removeprefix("test/")] = metrics
                if comm.is_main_process():
                    self._write(run, name, videos, folder)
        return result

    def _write(self, run: RunContext, name: str, videos: list[VideoPhases], folder: Path) -> None:
        """phases_<split>.csv: video, frame_index, phase, predicted."""
        names, text = phases_of(run.config), io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["video", "frame_index", "phase", "predicted"])
        for (_, records), video in zip(self.labelled(run, name).videos(), videos, strict=True):
            for record, truth, guess in zip(records, video.truth, video.predicted, strict=True):
                writer.writerow([video.name, record["frame_index"], names[truth], names[guess]])
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / f"phases_{name.replace('/', '_')}.csv", text.getvalue())


def phases_of(config: DictConfig) -> list[str]:
    """Names of the phases.

    Raises:
        ValueError: the config has none.
    """
    names = list(config.data.get("phases") or [])
    if not names:
        raise ValueError(
            "data.phases must name the phases, in the order of the data set: "
            "phases: [Preparation, ...]."
        )
    return names
