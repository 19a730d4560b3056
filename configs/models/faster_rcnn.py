"""Faster R-CNN with FPN and ResNet-50, as Detectron2 has it; trained as the transformers are."""

from copy import deepcopy

from detectron2.config import LazyCall as L

from .backbones import resnet50

model = L("v2idetr.modeling.detectron2_models.Detectron2Detector")(
    net=L("detectron2.modeling.GeneralizedRCNN")(
        backbone=L("detectron2.modeling.FPN")(
            bottom_up=deepcopy(resnet50),
            in_features=["res2", "res3", "res4", "res5"],
            out_channels=256,
            top_block=L("detectron2.modeling.backbone.fpn.LastLevelMaxPool")(),
        ),
        proposal_generator=L("detectron2.modeling.proposal_generator.RPN")(
            in_features=["p2", "p3", "p4", "p5", "p6"],
            head=L("detectron2.modeling.proposal_generator.StandardRPNHead")(
                in_channels="${model.net.backbone.out_channels}", num_anchors=3
            ),
            anchor_generator=L("detectron2.modeling.anchor_generator.DefaultAnchorGenerator")(
                sizes=[[32], [64], [128], [256], [512]],
                aspect_ratios=[0.5, 1.0, 2.0],
                strides=[4, 8, 16, 32, 64],
                offset=0.0,
            ),
            anchor_matcher=L("detectron2.modeling.matcher.Matcher")(
                thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
            ),
            box2box_transform=L("detectron2.modeling.box_regression.Box2BoxTransform")(
                weights=[1.0, 1.0, 1.0, 1.0]
            ),
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_topk=[2000, 1000],  # a level, in training and evaluation
            post_nms_topk=[1000, 1000],
            nms_thresh=0.7,
        ),
        roi_heads=L("detectron2.modeling.StandardROIHeads")(
            num_classes=1,
            batch_size_per_image=512,
            positive_fraction=0.25,
            proposal_matcher=L("detectron2.modeling.matcher.Matcher")(
                thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
            ),
            box_in_features=["p2", "p3", "p4", "p5"],
            box_pooler=L("detectron2.modeling.poolers.ROIPooler")(
                output_size=7,
                scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32],
                sampling_ratio=0,
                pooler_type="ROIAlignV2",
                canonical_box_size=224,  # goes to level 4, stride 16
            ),
            box_head=L("detectron2.modeling.roi_heads.FastRCNNConvFCHead")(
                input_shape=L("detectron2.layers.ShapeSpec")(
                    channels="${model.net.backbone.out_channels}", height=7, width=7
                ),
                conv_dims=[],
                fc_dims=[1024, 1024],
            ),
            box_predictor=L("detectron2.modeling.roi_heads.FastRCNNOutputLayers")(
                input_shape=L("detectron2.layers.ShapeSpec")(channels=1024),
                test_score_thresh=0.05,
                box2box_transform=L("detectron2.modeling.box_regression.Box2BoxTransform")(
                    weights=[10.0, 10.0, 5.0, 5.0]
                ),
                num_classes="${model.net.roi_heads.num_classes}",
            ),
        ),
        pixel_mean=[123.675, 116.28, 103.53],  # ImageNet, RGB
        pixel_std=[58.395, 57.12, 57.375],
        input_format="RGB",
    ),
    class_names="${data.class_names}",
    weights="weights/resnet50_imagenet.pth",  # torchvision's; Detectron2's is a .pkl
)
model.net.backbone.bottom_up.out_features = ["res2", "res3", "res4", "res5"]

train = dict(stages=["plain"])
optimizer = dict(backbone_name="bottom_up")  # the FPN is new
