"""Phase recognition as models that the trainer can train: frame by frame, and over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from free_lunch.encoder import PooledBackbone
from free_lunch.phases.features import pixels_of
from free_lunch.phases.temporal import CausalTCN, phase_losses

Sample = dict[str, Any]


class PhaseClassifier(PooledBackbone):
    """A frame -> its phase: a linear map of the backbone's features.

    Args:
        backbone, pixel_mean, pixel_std: see :class:`PooledBackbone`.
        num_phases: K.
    """

    num_frames = 1

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        num_phases: int,
    ) -> None:
        super().__init__(backbone=backbone, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.classifier = nn.Linear(self.num_features, num_phases)

    def count_frames(self, batched_inputs: list[Sample]) -> int:
        """Labelled frames of a batch."""
        return len(batched_inputs)

    def count_boxes(self, batched_inputs: list[Sample]) -> int:
        """Boxes: none are needed."""
        return 0

    def forward(self, batched_inputs: list[Sample], num_boxes: float = 1.0) -> dict[str, Tensor]:
        """Cross-entropy, mean over the frames of the batch."""
        device = self.pixel_mean.device
        labels = torch.tensor([sample["phase"] for sample in batched_inputs], device=device)
        logits = self.classifier(self.features(pixels_of(batched_inputs, device)))
        return {"loss_phase": F.cross_entropy(logits.float(), labels)}


class PhaseSequence(nn.Module):
    """The features of a video -> the phase of each frame, from it and the frames before it.

    Args:
        tcn: see :class:`CausalTCN`.
    """

    num_frames = 1

    def __init__(self, tcn: CausalTCN) -> None:
        super().__init__()
        self.tcn = tcn

    def count_frames(self, batched_inputs: list[Sample]) -> int:
        """Labelled frames of a batch of videos."""
        return sum(len(sample["phases"]) for sample in batched_inputs)

    def count_boxes(self, batched_inputs: list[Sample]) -> int:
        """Divisor of the losses: labelled frames, since videos differ in length."""
        return self.count_frames(batched_inputs)

    def forward(self, batched_inputs: list[Sample], num_boxes: float) -> dict[str, Tensor]:
        """Losses of videos with ``features`` (T, d) and ``phases`` (T), see `phase_losses`.

        Args:
            num_boxes: `num_frames` of `phase_losses`.
        """
        device = next(self.parameters()).device
        lengths = torch.tensor([len(sample["phases"]) for sample in batched_inputs])
        features, phases = (
            nn.utils.rnn.pad_sequence([s[key] for s in batched_inputs], batch_first=True).to(device)
            for key in ("features", "phases")
        )
        return phase_losses(self.tcn(features), phases, lengths, num_frames=num_boxes)

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Phase index of each frame of a video (T, d)."""
        return self.tcn(features[None])[-1, 0].argmax(-1)
