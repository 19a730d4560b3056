"""Exported file against torch on the same frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from v2i_runtime.backends import Backend
from v2i_runtime.model_info import Outputs, Probe, differences, probe_image
from v2idetr.modeling.inference import ImageDetector

PROBE_DETECTIONS = 5


@dataclass(frozen=True)
class Parity:
    """Largest differences of detections from torch's over some frames.

    Attributes:
        score: of a score.
        box: of a box coordinate in [0, 1] of the frame.
        detections: number of compared detections.
    """

    score: float
    box: float
    detections: int

    @property
    def largest(self) -> float:
        return max(self.score, self.box)

    @property
    def words(self) -> str:
        return (
            f"{self.detections} detections, largest difference of a score {self.score:.1e}, of a "
            f"box {self.box:.1e} of the frame"
        )


def torch_outputs(module: ImageDetector, images: UInt8[np.ndarray, "B H W 3"]) -> Outputs:
    """Detections by torch, on the CPU."""
    with torch.inference_mode():
        return Outputs(*(part.numpy() for part in module(torch.from_numpy(images))))


def compare(
    module: ImageDetector,
    backend: Backend,
    images: Sequence[UInt8[np.ndarray, "H W 3"]],
    *,
    score_threshold: float,
) -> Parity:
    """Detections of a file against torch's, frame by frame and in one batch.

    Every detection of torch's is compared with the nearest one of the file by score, class and
    box, and the other way round: detections of nearly equal score may come in another order.

    Args:
        module: the detector in torch.
        backend: the same detector in the exported file.
        images: frames of the network's input size.
        score_threshold: detections below it are left out, but for the best one of a frame.
    """
    worst, count = [0.0, 0.0], 0
    batches = [np.stack([image]) for image in images]
    if len(images) > 1:
        batches.append(np.stack(images[:2]))
    for batch in batches:
        expected, found = torch_outputs(module, batch), backend.run(batch)
        for index in range(len(batch)):
            one, other = expected.of_frame(index), found.of_frame(index)
            for this, that in ((one, other), (other, one)):
                kept = this.scores >= min(score_threshold, this.scores.max(initial=0))
                score, box = differences(this.where(kept), that)
                worst = [max(worst[0], score), max(worst[1], box)]
                count += int(kept.sum())
    return Parity(worst[0], worst[1], count)


def make_probe(
    size: tuple[int, int],
    detect: Callable[[UInt8[np.ndarray, "B H W 3"]], Outputs],
    tolerance: float,
) -> Probe:
    """The best detections of the probe image.

    Args:
        size: (height, width) of the network's input, px.
        detect: the exported network, or torch where it computes the same.
        tolerance: see ``Probe``.
    """
    outputs = detect(probe_image(*size)[None])
    scores, classes, boxes = (part[0][:PROBE_DETECTIONS].tolist() for part in outputs)
    return Probe(size, scores, classes, boxes, tolerance)
