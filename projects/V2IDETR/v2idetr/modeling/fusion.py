"""Slots for modules that mix the frames of a clip.

A slot follows a step of the network; its module maps the step's output to the same type:

    features  Features -> Features            after backbone and neck (MSI, CVA-Net)
    memory    Memory -> Memory                after the encoder
    queries   (Queries, Memory) -> Queries    after the choice of queries

Images are whole clips of ``Features.num_frames`` frames, clip-major.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

Slot = Literal["features", "memory", "queries"]
SLOTS: tuple[Slot, ...] = ("features", "memory", "queries")


class Fusion(nn.Module):
    """Modules of the slots; None for an empty slot.

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
        """Whether frames are mixed in a slot after this one."""
        later = SLOTS[SLOTS.index(slot) + 1 :]
        return any(getattr(self, name) is not None for name in later)
