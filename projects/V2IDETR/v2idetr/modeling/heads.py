"""Heads: decoded queries -> class logits and boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

PRIOR = 0.01  # initial probability of "lesion" for the focal loss (Lin et al., 2017, section 3.3)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu_()
        return self.layers[-1](x)

    @property
    def last(self) -> nn.Linear:
        """The last layer."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer


@dataclass(frozen=True)
class DetectionHeads:
    """Class and box heads of a network.

    Attributes:
        classes, boxes: one head for all layers, or one per layer and, optionally, the encoder.
        refine: whether each layer has its own heads and refines the box of the layer before.
    """

    classes: nn.ModuleList
    boxes: nn.ModuleList
    refine: bool

    @classmethod
    def build(cls, *, d: int, num_logits: int, count: int, refine: bool) -> DetectionHeads:
        """Heads with random weights."""
        classes = nn.ModuleList(nn.Linear(d, num_logits) for _ in range(count))
        return cls(classes, nn.ModuleList(MLP([d, d, d, 4]) for _ in range(count)), refine)

    def of_layer(self, index: int) -> tuple[nn.Module, nn.Module]:
        """Class and box head of a decoder layer."""
        head = index if self.refine else 0
        return self.classes[head], self.boxes[head]

    def reset_parameters(self) -> None:
        """Equal initialisation of all heads: "lesion" unlikely, boxes at their references."""
        for head in self.classes:
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias, -math.log((1 - PRIOR) / PRIOR))
        for head in self.boxes:
            assert isinstance(head, MLP)
            nn.init.zeros_(head.last.weight)
            nn.init.zeros_(head.last.bias)
        for heads in (self.classes, self.boxes):
            for head in heads[1:]:
                head.load_state_dict(heads[0].state_dict())
