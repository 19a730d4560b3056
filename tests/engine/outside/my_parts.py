"""A detector, a stage and a sampler of references, as a user of the package would write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import Tensor, nn

from tests.tiny_parts import TinyBackbone
from v2idetr.data.reference_sampler import VideoFrames
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import Stage, StageModels
from v2idetr.engine.trainer import seed_step


class EveryOther:
    """The second listed frame before the current one, or the scene's first, and the current one."""

    num_frames, clip_index, num_global, look_ahead = 2, 1, 0, 0

    def __call__(
        self, video: VideoFrames, position: int, rng: np.random.Generator | None
    ) -> list[int]:
        return [max(video.scene.start, position - 2), position]


class Memory(nn.Module):
    """One box a frame, from what it has seen of this and of all earlier frames of the video."""

    num_frames = 2
    order = "video"

    def __init__(self, *, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.reference_sampler = EveryOther()
        self.backbone = TinyBackbone(8)
        self.head = nn.Linear(8, 5)
        self.reset()

    def reset(self) -> None:
        self.seen: Tensor | None = None

    def features(self, frames: list[dict[str, Any]]) -> Tensor:
        pixels = torch.stack([frame["image"] for frame in frames]).float() / 255
        return self.backbone(pixels)["c2"].mean((2, 3))

    def count_frames(self, batched_inputs: list[dict[str, Any]]) -> int:
        return len(batched_inputs)

    def count_boxes(self, batched_inputs: list[dict[str, Any]]) -> int:
        return sum(len(sample["instances"]) for sample in batched_inputs)

    def forward(self, batched_inputs: list[dict[str, Any]], num_boxes: float | None = None) -> Any:
        assert all(len(sample["clip"]) == 2 for sample in batched_inputs)
        features = self.features(batched_inputs)
        if not self.training:
            return [
                self.detect(sample, feature)
                for sample, feature in zip(batched_inputs, features, strict=True)
            ]
        out = self.head(features + self.features([sample["clip"][0] for sample in batched_inputs]))
        has = torch.tensor([float(len(s["instances"]) > 0) for s in batched_inputs])
        boxes = torch.stack(
            [
                s["instances"].gt_boxes.tensor[0] / 64 if len(s["instances"]) else torch.zeros(4)
                for s in batched_inputs
            ]
        )
        distance = ((out[:, :4].sigmoid() - boxes).abs().sum(1) * has).sum() / (num_boxes or 1.0)
        return {
            "loss_class": nn.functional.binary_cross_entropy_with_logits(out[:, 4], has),
            "loss_box": distance,
        }

    def detect(self, sample: dict[str, Any], feature: Tensor) -> dict[str, Instances]:
        self.seen = feature if self.seen is None else 0.5 * (self.seen + feature)
        out = self.head(feature + self.seen)
        low, high = out[:2].sigmoid() * 24, 24 + out[2:4].sigmoid() * 24
        instances = Instances((sample["height"], sample["width"]))
        instances.pred_boxes = Boxes(torch.cat([low, high])[None])
        instances.scores, instances.pred_classes = out[4:].sigmoid(), torch.zeros(1).long()
        return {"instances": instances}


class Pretext(nn.Module):
    """Learns the mean colour of a frame; what is kept is the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = TinyBackbone(8), nn.Linear(8, 3)

    def count_frames(self, batched_inputs: list[dict[str, Any]]) -> int:
        return 0

    def count_boxes(self, batched_inputs: list[dict[str, Any]]) -> int:
        return 0

    def forward(
        self, batched_inputs: list[dict[str, Any]], num_boxes: float = 1.0
    ) -> dict[str, Tensor]:
        pixels = torch.stack([sample["image"] for sample in batched_inputs]).float() / 255
        guess = self.head(self.backbone(pixels)["c2"].mean((2, 3)))
        return {"loss_colour": (guess - pixels.mean((2, 3))).square().mean()}


class Pretraining(Stage):
    """Trains a backbone without boxes, validates by its own metric, is not evaluated on tests."""

    with_boxes = False
    reported = False

    def build(self, config: DictConfig, *, pretrained: bool = True) -> StageModels:
        seed_step(config.train.seed, "initial weights", 0, 0)
        pretext = Pretext()
        return StageModels(pretext.backbone, pretext)

    def best_metric(self, config: DictConfig) -> str:
        return "colour/closeness"

    def validate(self, run: RunContext, models: StageModels) -> dict[str, float]:
        trained = models.trained
        with torch.no_grad():
            batches = run.eval_loader(run.splits["val"], trained)
            losses = [float(trained(batch)["loss_colour"]) for batch in batches]
        return {"colour/closeness": -sum(losses) / len(losses)}
