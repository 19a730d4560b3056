"""The Detectron2 side of a video detector: clips in, losses or detections of current frames out."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor, nn

from v2idetr.data.reference_sampler import ReferenceSampler
from v2idetr.modeling.detectron2_models import Detectron2Detector
from v2idetr.modeling.trainable import Sample
from video_detectors.frame_states import VideoMemory


class VideoDetector(VideoMemory, Detectron2Detector):
    """Base of the detectors that stand on a single-frame detector ``net`` of Detectron2's kind.

    A subclass defines ``losses``, ``encode`` and ``detect``. Modules of ``net`` keep the names that
    they have in the single-frame detector, so that its weights fit ("needs: {initial: plain}").

    Args:
        net: with ``backbone``, ``pixel_mean`` and ``pixel_std``, for RGB images in [0, 255].
        class_names, weights: see :class:`Detectron2Detector`.
        reference_sampler: choice of the frames of a training clip.
        evaluation_sampler: of those in evaluation; None for the same.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        class_names: Sequence[str],
        reference_sampler: ReferenceSampler,
        evaluation_sampler: ReferenceSampler | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__(net=net, class_names=class_names, weights=weights)
        self.reference_sampler = reference_sampler
        self.evaluation_sampler = evaluation_sampler

    @property
    def num_frames(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """T of training."""
        return self.reference_sampler.num_frames

    def forward(
        self, batched_inputs: list[Sample], num_boxes: float | None = None
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses of the current frames in training, their detections otherwise.

        Args:
            batched_inputs: one dict a clip, see ``data/clip_mapper.py``; in evaluation, successive
                frames of one video.
            num_boxes: not used, see :class:`Detectron2Detector`.
        """
        return self.losses(batched_inputs) if self.training else self.follow(batched_inputs)

    def losses(self, batched_inputs: list[Sample]) -> dict[str, Tensor]:
        """Weighted losses by name."""
        raise NotImplementedError


def in_original_pixels(instances: Instances, sample: Sample) -> Instances:
    """Detections in pixels of the network's input -> in those of the original frame."""
    return detector_postprocess(instances, sample["height"], sample["width"])
