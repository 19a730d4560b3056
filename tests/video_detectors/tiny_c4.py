"""A tiny Faster R-CNN in the C4 layout, and what is asked of every detector on it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, ResNet, StandardROIHeads
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import nn

from v2idetr.evaluation.predictions import evaluating
from v2idetr.modeling.detectron2_models import Detectron2Detector
from video_detectors.c4_backbone import C4Backbone
from video_detectors.relation_attention import Regions

C4 = 12  # channels of the map c4
D = 16  # width of the box head
Sample = dict[str, Any]


def tiny_resnet(out_features: tuple[str, ...] = ("res4", "res5"), *, blocks: int = 2) -> ResNet:
    """Of four stages."""
    widths = [8, 10, C4, 16]
    stages = [
        ResNet.make_stage(
            BottleneckBlock,
            blocks,
            stride_per_block=[1 if index == 0 else 2, *[1] * (blocks - 1)],
            in_channels=8 if index == 0 else widths[index - 1],
            bottleneck_channels=6,
            out_channels=width,
            norm="FrozenBN",
        )
        for index, width in enumerate(widths)
    ]
    stem = BasicStem(in_channels=3, out_channels=8, norm="FrozenBN")
    return ResNet(stem, stages, out_features=list(out_features))


def tiny_rcnn(*, stages: int = 2, num_classes: int = 1, conv_dims: tuple[int, ...] = ()) -> Any:
    """Faster R-CNN on maps of stride 16; a layer of the box head a stage."""
    return GeneralizedRCNN(
        backbone=C4Backbone(tiny_resnet(), stride=16, out_channels=8),
        proposal_generator=RPN(
            in_features=["c4"],
            head=StandardRPNHead(in_channels=C4, num_anchors=2),
            anchor_generator=DefaultAnchorGenerator(
                sizes=[[16, 32]], aspect_ratios=[1.0], strides=[16]
            ),
            anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
            box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
            batch_size_per_image=16,
            positive_fraction=0.5,
            pre_nms_topk=(40, 40),
            post_nms_topk=(12, 12),
        ),
        roi_heads=StandardROIHeads(
            num_classes=num_classes,
            batch_size_per_image=8,
            positive_fraction=0.25,
            proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
            box_in_features=["c5"],
            box_pooler=ROIPooler(3, scales=[1 / 16], sampling_ratio=0, pooler_type="ROIAlignV2"),
            box_head=FastRCNNConvFCHead(
                ShapeSpec(channels=8, height=3, width=3),
                conv_dims=list(conv_dims),
                fc_dims=[D] * stages,
            ),
            box_predictor=FastRCNNOutputLayers(
                ShapeSpec(channels=D),
                box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
                num_classes=num_classes,
            ),
        ),
        pixel_mean=(127.0, 127.0, 127.0),
        pixel_std=(64.0, 64.0, 64.0),
    )


def as_if_trained(detector: nn.Module) -> None:
    """Varied values, so that frames, regions and cells differ from each other."""
    torch.manual_seed(1)
    for name, parameter in detector.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=(1.5 if "predict" in name else 1.0) / fan_in**0.5)
        elif "bias" in name:
            nn.init.normal_(parameter, std=0.1)


def base_detections(detector: Any, frames: list[Sample]) -> list[Instances]:
    """Of the single-frame detector with the same weights."""
    base = Detectron2Detector(net=detector.net, class_names=["polyp"])
    with evaluating(base):
        return [base([frame])[0]["instances"] for frame in frames]


def random_regions(count: int) -> Regions:
    """Of a frame, with features of the width of the box head."""
    corner = torch.rand(count, 2) * 40
    boxes = torch.cat([corner, corner + 2 + torch.rand(count, 2) * 30], 1)
    return Regions(boxes, torch.randn(count, D))


def calm(detector: Any) -> Any:
    """With little geometry, whose sines of logarithms enlarge rounding errors of other batches."""
    for relation in detector.relations:
        relation.geometry.weight.data.mul_(0.01)
        nn.init.ones_(relation.geometry.bias)
    return detector
