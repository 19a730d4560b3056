"""RetinaNet with FPN and ResNet-50, as Detectron2 has it; trained as the transformers are."""

from copy import deepcopy

from detectron2.config import LazyCall as L

from .backbones import resnet50

CHANNELS = "${model.net.backbone.out_channels}"

model = L("v2idetr.modeling.detectron2_models.Detectron2Detector")(
    net=L("detectron2.modeling.RetinaNet")(
        num_classes=1,
        backbone=L("detectron2.modeling.FPN")(
            bottom_up=deepcopy(resnet50),
            in_features=["res3", "res4", "res5"],
            out_channels=256,
            top_block=L("detectron2.modeling.backbone.fpn.LastLevelP6P7")(
                in_channels=2048, out_channels=CHANNELS, in_feature="res5"
            ),
        ),
        head=L("detectron2.modeling.meta_arch.retinanet.RetinaNetHead")(
            input_shape=[L("detectron2.layers.ShapeSpec")(channels=CHANNELS)] * 5,
            num_classes="${model.net.num_classes}",
            conv_dims=[256, 256, 256, 256],
            prior_prob=0.01,
            num_anchors=9,
            norm="",
        ),
        head_in_features=["p3", "p4", "p5", "p6", "p7"],
        anchor_generator=L("detectron2.modeling.anchor_generator.DefaultAnchorGenerator")(
            sizes=[[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
            offset=0.0,
        ),
        box2box_transform=L("detectron2.modeling.box_regression.Box2BoxTransform")(
            weights=[1.0, 1.0, 1.0, 1.0]
        ),
        anchor_matcher=L("detectron2.modeling.matcher.Matcher")(
            thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        focal_loss_alpha=0.25,
        focal_loss_gamma=2.0,
        test_score_thresh=0.05,
        pixel_mean=[123.675, 116.28, 103.53],  # ImageNet, RGB
        pixel_std=[58.395, 57.12, 57.375],
        input_format="RGB",
    ),
    class_names="${data.class_names}",
    weights="weights/resnet50_imagenet.pth",  # torchvision's; Detectron2's is a .pkl
)

train = dict(stages=["plain"])
optimizer = dict(backbone_name="bottom_up")  # the FPN is new
