"""Record of a frame -> two augmented views of it, the positive pair of the contrastive task."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from v2idetr.data.reference_sampler import WindowSampler

Record = dict[str, Any]


class TwoViews:
    """Record -> sample with two ``views``, uint8 RGB (3, H, W), and the record's own keys.

    Args:
        read: record -> RGB array of its frame.
        transform: image -> two float tensors (3, H, W) in 0..1, such as lightly's MoCoV2Transform
            with ``normalize=None``: normalisation is the encoder's.
        is_train: for training or for validation, which the loaders ask for.

    The same record and seed give the same views in any process.
    """

    sampler = WindowSampler(num_frames=1, window=0, sampling="fixed")  # the frame alone

    def __init__(
        self,
        read: Callable[[Record], UInt8[np.ndarray, "H W 3"]],
        transform: Callable[[Any], Sequence[Tensor]],
        *,
        is_train: bool,
    ) -> None:
        self._read, self._transform, self.is_train = read, transform, is_train

    def __call__(
        self, record: Record, seed: int, video: Any = None, frames: Any = None
    ) -> dict[str, Any]:
        """The sample; `video` and `frames`, for detectors that see clips, are not used."""
        image = Image.fromarray(self._read(record))
        with all_seeded(seed):
            views = self._transform(image)
        levels = [view.mul(255).round().clamp(0, 255).to(torch.uint8) for view in views]
        return {**record, "views": levels}


@contextmanager
def all_seeded(seed: int) -> Iterator[None]:
    """Context in which Python, numpy and torch draw from this seed; their states come back."""
    kept = random.getstate(), np.random.get_state()
    words = np.random.SeedSequence(seed).generate_state(3)
    with torch.random.fork_rng(devices=[]):
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))
        torch.manual_seed(int(words[2]))
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
