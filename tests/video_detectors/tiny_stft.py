"""STFT on a tiny FCOS."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FCOS, FPN
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import nn

from tests.tiny_parts import TinyBackbone
from v2idetr.data.reference_sampler import WindowSampler
from v2idetr.modeling.detectron2_models import Detectron2Backbone
from video_detectors.stft import STFT

D = 8


def tiny_fcos(*, num_classes: int = 1, d: int = D) -> FCOS:
    """Three levels, one convolution a tower."""
    body = Detectron2Backbone(TinyBackbone(8))
    return FCOS(
        backbone=FPN(bottom_up=body, in_features=["c0", "c1", "c2"], out_channels=D),
        head=FCOSHead(
            input_shape=[ShapeSpec(channels=D)] * 3, conv_dims=[d], num_classes=num_classes
        ),
        head_in_features=["p3", "p4", "p5"],
        num_classes=num_classes,
        test_score_thresh=0.05,
        pixel_mean=[127.0] * 3,
        pixel_std=[64.0] * 3,
    )


def tiny_stft(
    *,
    num_frames: int = 3,
    num_evaluated: int = 5,
    window: int = 3,
    num_classes: int = 1,
    trained: bool = False,
) -> STFT:
    """A small STFT.

    Args:
        num_frames, num_evaluated: T of training and of evaluation.
        trained: give towers and heads varied values, as training would.
    """
    torch.manual_seed(0)
    names = ["benign", "malignant", "other"][:num_classes]

    def sampler(count: int, sampling: str) -> WindowSampler:
        return WindowSampler(num_frames=count, window=window if count > 1 else 0, sampling=sampling)

    detector = STFT(
        net=tiny_fcos(num_classes=num_classes),
        class_names=names,
        reference_sampler=sampler(num_frames, "random"),
        evaluation_sampler=sampler(num_evaluated, "fixed"),
    )
    if trained:
        for name, parameter in detector.named_parameters():
            if "backbone" not in name:
                nn.init.normal_(parameter, std=0.2)
        nn.init.constant_(detector.net.head.bbox_pred.bias, 1.5)
    return detector.eval()
