"""Slots of a network where the frames of a clip may be mixed.

A slot lies behind a step, and its module maps what the step gave to the same with frames mixed:

    features  Features -> Features            behind backbone and neck (MSI, CVA-Net)
    memory    Memory -> Memory                behind the encoder (TransVOD)
    queries   (Queries, Memory) -> Queries    behind the choice of queries (TransVOD)

Images are whole clips, clip-major; ``Features.num_frames`` says of how many frames.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

Slot = Literal["features", "memory", "queries"]
SLOTS: tuple[Slot, ...] = ("features", "memory", "queries")


class Fusion(nn.Module):
    """The modules in the slots; None leaves one empty.

    Raises:
        ValueError: all slots are empty.
    """

    def __init__(
        self,
        *,
        features: nn.Module | None = None,
        memory: nn.Module | None = None,
        queries: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.features, self.memory, self.queries = features, memory, queries
        if features is None and memory is None and queries is None:
            raise ValueError(
                "fusion has no module: give one for features, memory or queries, or set fusion=null"
            )

    def is_used_after(self, slot: Slot) -> bool:
        """Whether frames are mixed in a slot behind this one."""
        later = SLOTS[SLOTS.index(slot) + 1 :]
        return any(getattr(self, name) is not None for name in later)
