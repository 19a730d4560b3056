"""Encoders for pretraining, whose backbones fit the detectors' of backbones.py."""

from copy import deepcopy

from detectron2.config import LazyCall as L

resnet50 = L("free_lunch.encoder.Encoder")(
    backbone=L("detectron2.modeling.ResNet")(
        stem=L("detectron2.modeling.backbone.BasicStem")(in_channels=3, out_channels=64, norm="BN"),
        stages=L("detectron2.modeling.ResNet.make_default_stages")(
            depth=50, stride_in_1x1=False, norm="BN"
        ),
        out_features=["res5"],
        freeze_at=0,
    ),
    weights="",  # random ones, as the paper's student
    pixel_mean=[123.675, 116.28, 103.53],  # ImageNet, as torchvision
    pixel_std=[58.395, 57.12, 57.375],
    hidden_dim=2048,
    dim=128,
    freeze_backbone=False,
)

efficientnet_lite0 = L("free_lunch.encoder.Encoder")(
    backbone=L("v2idetr.modeling.backbone.TimmBackbone")(
        name="tf_efficientnet_lite0", strides=[32], freeze_stem=False, norm="BN"
    ),
    weights="",
    pixel_mean=[127.0, 127.0, 127.0],  # EfficientNet-Lite
    pixel_std=[128.0, 128.0, 128.0],
    hidden_dim=512,
    dim=128,
    freeze_backbone=False,
)

resnet10 = deepcopy(efficientnet_lite0)
resnet10.backbone.name = "resnet10t"
