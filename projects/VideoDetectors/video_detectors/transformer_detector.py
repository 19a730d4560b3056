"""The Detectron2 side of a video detector that stands on one of our detection transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from jaxtyping import Int
from torch import Tensor, nn

from v2i_runtime.preprocess import IMAGENET_MEAN, IMAGENET_STD
from v2idetr.data.reference_sampler import ReferenceSampler
from v2idetr.modeling.criterion import SetCriterion
from v2idetr.modeling.interface import Decoded
from v2idetr.modeling.meta_arch import Detector
from v2idetr.modeling.trainable import Sample
from video_detectors.frame_states import VideoMemory


class TransformerVideoDetector(VideoMemory, Detector):
    """Base of the detectors of a clip's current frame, which alone is labelled.

    A subclass defines ``losses`` (of the frames of clips, clip-major), ``encode`` and ``detect``.

    Args:
        net, criterion, class_names, pixel_mean, pixel_std, score_topk, size_divisor: see
            ``Detector``. Modules of ``net`` have the names that they have in the single-frame
            detector, so that its weights fit.
        reference_sampler: choice of the frames of a training clip.
        evaluation_sampler: of those in evaluation; None for the same.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        criterion: SetCriterion,
        class_names: Sequence[str],
        reference_sampler: ReferenceSampler,
        evaluation_sampler: ReferenceSampler | None = None,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        score_topk: int = 100,
        size_divisor: int = 32,
    ) -> None:
        super().__init__(
            net=net,
            criterion=criterion,
            class_names=class_names,
            num_frames=reference_sampler.num_frames,
            reference_sampler=reference_sampler,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            score_topk=score_topk,
            size_divisor=size_divisor,
        )
        self.evaluation_sampler = evaluation_sampler

    def samplers(self) -> dict[str, ReferenceSampler]:
        """Those of training and, if it has its own, of evaluation, by their keys."""
        both = {
            "reference_sampler": self.reference_sampler,
            "evaluation_sampler": self.evaluation_sampler,
        }
        return {key: sampler for key, sampler in both.items() if sampler is not None}

    @torch.no_grad()
    def inference(self, batched_inputs: list[Sample]) -> list[dict[str, Instances]]:
        """Detections of successive frames of one video."""
        return self.follow(batched_inputs)

    def count_frames(self, batched_inputs: list[Sample]) -> int:
        """Number of labelled frames of a batch: the current ones."""
        return len(batched_inputs)

    def count_boxes(self, batched_inputs: list[Sample]) -> int:
        """Number of lesions in the labelled frames of a batch."""
        return sum(len(sample["instances"]) for sample in batched_inputs)

    def labelled(self, frames: list[Sample]) -> list[Sample]:
        """The current frames among those of training clips, clip-major."""
        return frames[self.reference_sampler.clip_index :: self.num_frames]

    def index_of_labelled(self, frames: list[Sample]) -> Int[Tensor, " C"]:
        """Index of every clip's current frame among those of training clips, clip-major."""
        first, T = self.reference_sampler.clip_index, self.num_frames
        return torch.arange(first, len(frames), T, device=self.device)

    def detections(self, decoded: Decoded, sample: Sample) -> Instances:
        """Detections of one image in pixels of the original frame."""
        return self.postprocess(decoded, [sample])[0]["instances"]
