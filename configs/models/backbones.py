"""Backbones. Weights are local files or come with a package; nothing is downloaded."""

from detectron2.config import LazyCall as L

resnet50 = L("detectron2.modeling.ResNet")(
    stem=L("detectron2.modeling.backbone.BasicStem")(
        in_channels=3, out_channels=64, norm="FrozenBN"
    ),
    stages=L("detectron2.modeling.ResNet.make_default_stages")(
        depth=50, stride_in_1x1=False, norm="FrozenBN"
    ),
    out_features=["res3", "res4", "res5"],
    freeze_at=2,  # stem and res2, as DETR and Deformable DETR
)

resnet18 = L("detectron2.modeling.ResNet")(
    stem=L("detectron2.modeling.backbone.BasicStem")(
        in_channels=3, out_channels=64, norm="FrozenBN"
    ),
    stages=L("detectron2.modeling.ResNet.make_default_stages")(depth=18, norm="FrozenBN"),
    out_features=["res3", "res4", "res5"],
    freeze_at=2,
)

efficientnet_lite0 = L("v2idetr.modeling.backbone.TimmBackbone")(
    name="tf_efficientnet_lite0", strides=[8, 16, 32], freeze_stem=True
)
