"""Momentum contrast, and the distillation of a teacher's similarities (Free Lunch, section 2).

For an image's two views, a query q and a momentum encoder's key k, and the queue's keys n_j:

    s = [q.k, q.n_1, ..., q.n_K]                     the student's similarities
    t = [q'.k', q'.n'_1, ..., q'.n'_K]               the teacher's, of the same images
    L = w_c * (-log softmax(s / T)_0) + w_d * KL(softmax(t / T_d) || softmax(s / T_d))

Without a teacher this is MoCo v2 (He et al., CVPR 2020; Chen et al., 2020), which also trains the
teacher's head on its frozen backbone.

The momentum encoder runs in evaluation mode, its running statistics are momentum averages as its
weights are (EMAN, Cai et al., CVPR 2021): a key does not depend on its batch, so nothing about the
batch leaks to the contrastive task and no images are shuffled between GPUs.

Legend: B images, H W pixels, d dimensions of a key, M = 1 + the keys in the queue.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from free_lunch.encoder import Encoder
from free_lunch.key_queue import KeyQueue, cosine_logits
from v2idetr.engine.trainer import TrainerHook
from v2idetr.modeling.trainable import Sample

Views = tuple[Tensor, Tensor]


class MomentumContrast(nn.Module):
    """An encoder in training, with its momentum encoder and the queue.

    Args:
        encoder: is trained.
        queue_size: keys in the queue.
        temperature, distillation_temperature: T and T_d; 0.2 both in the released code.
        momentum: of the momentum encoder, per step.
        contrast_weight, distillation_weight: w_c and w_d. The paper's are 1 and 5; its released
            code adds the contrastive loss twice.
        teacher_dim: dimensions of the teacher's keys; 0 without a teacher.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        queue_size: int,
        temperature: float,
        momentum: float,
        contrast_weight: float = 1.0,
        distillation_weight: float = 0.0,
        distillation_temperature: float = 0.2,
        teacher_dim: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.key_encoder = copy.deepcopy(encoder)
        deactivate_requires_grad(self.key_encoder)
        dims = {"student": encoder.dim} | ({"teacher": teacher_dim} if teacher_dim else {})
        self.queue = KeyQueue(queue_size, dims)
        self.temperature, self.momentum = temperature, momentum
        self.distillation_temperature = distillation_temperature
        self.contrast_weight, self.distillation_weight = contrast_weight, distillation_weight
        self._new: list[dict[str, Tensor]] = []  # keys of the step's images
        self.train()

    def train(self, mode: bool = True) -> MomentumContrast:
        super().train(mode)
        self.key_encoder.eval()
        return self

    def count_frames(self, batched_inputs: list[Sample]) -> int:
        """Labelled frames: none are needed."""
        return 0

    def count_boxes(self, batched_inputs: list[Sample]) -> int:
        """Boxes: none are needed."""
        return 0

    def forward(
        self, batched_inputs: list[Sample], num_boxes: float = 1.0, teacher: Views | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch, means over its images.

        Args:
            batched_inputs: samples with two ``views``, uint8 RGB (3, H, W).
            num_boxes: not used; every loss of the trainer gets it.
            teacher: its queries and keys of the two views, (B, d) each, if there is one.
        """
        first, second = views_of(batched_inputs, self.encoder.pixel_mean.device)
        if not self.queue.filled and not self._new:
            self._begin(first)
        queries = self.encoder(first)
        with torch.no_grad():
            new = {"student": self.key_encoder(second)}
        logits = cosine_logits(queries, new["student"], self.queue.keys("student"))
        contrast = contrastive_loss(logits / self.temperature)
        losses = {"loss_contrast": self.contrast_weight * contrast}
        if teacher is not None:
            known, new["teacher"] = teacher
            wanted = cosine_logits(known, new["teacher"], self.queue.keys("teacher"))
            T = self.distillation_temperature
            distilled = distillation_loss(logits / T, wanted / T)
            losses["loss_distillation"] = self.distillation_weight * distilled
        self._new.append({name: keys.detach() for name, keys in new.items()})
        return losses

    @torch.no_grad()
    def _begin(self, pixels: Tensor) -> None:
        """Give the encoder the statistics of the first images, and the momentum encoder its state.

        The encoder may have been given other weights since both were made. And until freshly drawn
        statistics had followed, the momentum encoder would give all images one key, and moving away
        from the old keys in the queue would be the way to a low loss.
        """
        norms = [m for m in self.encoder.modules() if isinstance(m, _BatchNorm) and m.training]
        rates = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        self.encoder(pixels)
        for norm, rate in zip(norms, rates, strict=True):
            norm.momentum = rate
        self.key_encoder.load_state_dict(self.encoder.state_dict())

    def forget_new_keys(self) -> None:
        """Begin a step."""
        self._new.clear()

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the momentum encoder towards the encoder, and the step's keys into the queue."""
        update_momentum(self.encoder, self.key_encoder, self.momentum)
        averages = dict(self.key_encoder.named_buffers())
        for name, buffer in self.encoder.named_buffers():
            if buffer.is_floating_point():
                averages[name].lerp_(buffer, 1 - self.momentum)
            else:
                averages[name].copy_(buffer)
        keys = {name: torch.cat([new[name] for new in self._new]) for name in self._new[0]}
        self.queue.enqueue(keys)


def contrastive_loss(logits: Float[Tensor, "B M"]) -> Float[Tensor, ""]:
    """InfoNCE: cross-entropy with the positive in column 0."""
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def distillation_loss(
    student: Float[Tensor, "B M"], teacher: Float[Tensor, "B M"]
) -> Float[Tensor, ""]:
    """KL divergence of the student's distribution over the keys from the teacher's, mean over B."""
    return F.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean"
    )


def views_of(samples: list[Sample], device: torch.device) -> Views:
    """First views of all samples, and second ones, (B, 3, H, W)."""
    first, second = (torch.stack([s["views"][i] for s in samples]).to(device) for i in (0, 1))
    return first, second


class KeyHook(TrainerHook):
    """Gives every batch the teacher's queries and keys, and ends every step.

    Args:
        contrast: what is trained.
        teacher: frozen and in evaluation mode, or None.
    """

    def __init__(self, contrast: MomentumContrast, teacher: Encoder | None) -> None:
        self.contrast, self.teacher = contrast, teacher

    def before_step(self) -> None:
        self.contrast.forget_new_keys()

    @torch.no_grad()
    def before_forward(self, batch: list[Sample]) -> dict[str, Any]:
        if self.teacher is None:
            return {}
        first, second = views_of(batch, self.teacher.pixel_mean.device)
        return {"teacher": (self.teacher(first), self.teacher(second))}

    def after_step(self) -> None:
        self.contrast.end_step()
