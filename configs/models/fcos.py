"""FCOS with FPN and ResNet-50, as Detectron2 has it; trained as the transformers are."""

from .retinanet import CHANNELS, model, optimizer, train  # noqa: F401 (parts of this config)

model.net._target_ = "detectron2.modeling.FCOS"
for _key in ("anchor_generator", "anchor_matcher", "box2box_transform", "input_format"):
    del model.net[_key]
model.net.test_score_thresh = 0.2  # of sqrt(class score * centerness)

model.net.backbone.top_block.in_feature = "p5"  # arXiv 2006.09214, section 2.2
model.net.backbone.top_block.in_channels = CHANNELS

model.net.head._target_ = "detectron2.modeling.meta_arch.fcos.FCOSHead"
del model.net.head.num_anchors
model.net.head.norm = "GN"
