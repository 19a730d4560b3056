"""The one training forward: further queries, losses and outputs come in from outside.

The toy network has denoising queries (DN-DETR), a head for the IoU of its boxes, and a
classification loss that looks at the IoU (varifocal). The package knows none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from tests.conftest import TinyBackbone, make_sample
from v2idetr.distillation.cqd import CrossViewQueryDistillation
from v2idetr.distillation.knowledge import teacher_knowledge
from v2idetr.distillation.student import DistilledStudent
from v2idetr.modeling.classification import FocalClassification
from v2idetr.modeling.criterion import LayerOutput, Matches, SetCriterion, Targets
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.extra_queries import ExtraQueries
from v2idetr.modeling.interface import Context, Decoded, Memory, Queries
from v2idetr.modeling.matcher import HungarianMatcher
from v2idetr.modeling.meta_arch import Detector


class Denoising(DeformableDETR):
    """Shifted ground-truth boxes as further queries, and the IoU of every box as further output."""

    def __init__(self) -> None:
        super().__init__(
            backbone=TinyBackbone(),
            weights=None,
            num_classes=1,
            d=32,
            num_queries=6,
            num_encoder_layers=1,
            num_decoder_layers=2,
            num_heads=4,
            ffn_dim=16,
            dropout=0.0,
            box_refine=True,
            two_stage=True,
        )
        self.iou_head = nn.Linear(32, 1)
        self.denoise = True

    def training_queries(self, memory: Memory, targets: Targets) -> list[ExtraQueries]:
        if not self.denoise:
            return []
        most = max(len(boxes) for boxes in targets.boxes)
        reference = torch.full((len(targets.boxes), max(most, 1), 4), 0.5)
        pairs = []
        for row, boxes in zip(reference, targets.boxes, strict=True):
            row[: len(boxes)] = (boxes + 0.02).clamp(0.05, 0.95)
            index = torch.arange(len(boxes))
            pairs.append((index, index))
        nothing = memory.tokens.new_zeros(*reference.shape[:2], self.d)
        queries = Queries(nothing, nothing, reference)
        return [ExtraQueries(queries, "isolated", pairs, "denoising")]

    def decode(self, memory: Memory, queries: Queries, context: Context | None = None) -> Decoded:
        decoded = super().decode(memory, queries, context)
        return replace(decoded, extras={"iou": self.iou_head(decoded.hidden).squeeze(-1)})


@dataclass(frozen=True, kw_only=True)
class Varifocal(FocalClassification):
    """Positives are trained towards the IoU of their boxes (Zhang et al., CVPR 2021)."""

    uses_quality: ClassVar[bool] = True
    seen: ClassVar[list[Tensor]] = []

    def loss(self, logits, label, num_boxes, quality=None):
        assert quality is not None
        self.seen.append(quality)
        weight = torch.where(label >= 0, quality, 0.75 * logits[..., 0].sigmoid() ** 2).detach()
        loss = F.binary_cross_entropy_with_logits(logits[..., 0], quality, reduction="none")
        return (weight * loss).sum() / num_boxes


class IouLoss(nn.Module):
    """L1 between the predicted and the real IoU of matched boxes."""

    def forward(self, output: LayerOutput, matches: Matches, num_boxes: float) -> dict[str, Tensor]:
        predicted = output.extras["iou"][matches.image, matches.query]
        boxes = output.boxes[matches.image, matches.query]
        real = box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (boxes, matches.boxes)))
        return {"iou": (predicted - real.diagonal().detach()).abs().sum() / num_boxes}


def denoising_detector(**settings) -> Detector:
    torch.manual_seed(0)
    criterion = SetCriterion(
        **{
            "classification": Varifocal(),
            "matcher": HungarianMatcher(),
            "terms": [IouLoss()],
        }
        | settings
    )
    return Detector(net=Denoising(), criterion=criterion, class_names=["polyp"]).train()


def batch() -> list[dict]:
    return [make_sample(0, lesions=2), make_sample(1, lesions=0), make_sample(2, lesions=1)]


def test_losses_of_denoising_queries_and_further_terms_are_part_of_the_training() -> None:
    losses = denoising_detector()(batch())
    for name in ("class", "l1", "giou", "iou"):
        for suffix in ("", "_0", "_denoising", "_denoising_0"):
            assert losses[f"loss_{name}{suffix}"].isfinite()
    assert "loss_class_encoder" in losses and "loss_iou_encoder" not in losses
    sum(losses.values()).backward()


def test_denoising_queries_leave_the_detectors_own_losses_as_they_are() -> None:
    detector = denoising_detector()
    both = detector(batch())
    detector.net.denoise = False
    alone = detector(batch())
    assert alone.keys() == {name for name in both if "denoising" not in name}
    assert all(torch.equal(alone[name], both[name]) for name in alone)


def test_denoising_queries_are_compared_with_the_lesions_that_they_were_made_of() -> None:
    detector, samples = denoising_detector(), batch()
    output = detector.losses(samples)
    targets = output.targets
    (denoising,) = detector.net.training_queries(output.memory, targets)
    decoded = detector.net.decode(output.memory, denoising.queries)
    total = sum(
        (decoded.boxes[-1, image, : len(boxes)] - boxes).abs().sum()
        for image, boxes in enumerate(targets.boxes)
    )
    want = 5.0 * total / targets.num_boxes
    torch.testing.assert_close(output.losses["loss_l1_denoising"], want)


def test_box_losses_of_several_copies_of_a_lesion_are_divided_by_their_number() -> None:
    detector = denoising_detector(terms=[])
    detector.criterion.classification = FocalClassification()
    once = detector(batch())
    own = detector.net.training_queries
    detector.net.training_queries = lambda *given: [replace(own(*given)[0], groups=4)]
    fourth = detector(batch())
    for name, loss in once.items():
        share = 0.25 if "denoising" in name else 1.0
        torch.testing.assert_close(fourth[name], share * loss, msg=name)


def test_the_quality_is_the_iou_of_matched_boxes_and_zero_elsewhere() -> None:
    Varifocal.seen.clear()
    detector, samples = denoising_detector(), batch()
    detector(samples)
    for quality in Varifocal.seen:
        assert bool(((quality >= 0) & (quality <= 1)).all()) and not quality.requires_grad
        assert quality[1].count_nonzero() == 0, "an image without lesions"
        assert quality[0].count_nonzero() <= 2 and quality[2].count_nonzero() <= 1
    assert any(quality.any() for quality in Varifocal.seen)


def test_a_denoising_network_can_be_distilled() -> None:
    detector, samples = denoising_detector(), batch()
    teacher = denoising_detector().eval()
    cqd = CrossViewQueryDistillation(student_dim=32, teacher_dim=32)
    student = DistilledStudent(student=detector, losses={"cqd": cqd}).train()
    knowledge = teacher_knowledge(teacher, samples)
    losses = student(samples, knowledge)
    assert {"loss_cqd", "loss_iou_denoising", "loss_iou"} <= losses.keys()
    with pytest.raises(AssertionError, match="knowledge"):
        student(samples)


def test_two_sets_of_queries_need_two_names() -> None:
    detector = denoising_detector()
    own = detector.net.training_queries
    detector.net.training_queries = lambda memory, targets: own(memory, targets) * 2
    with pytest.raises(ValueError, match=r"need different names, got \['denoising', 'denoising'\]"):
        detector(batch())
