"""For a laptop: RetinaNet with EfficientNet-Lite0; anchors for lesions of 10 to 60 px."""

from detectron2.config import LazyCall as L

from .faster_rcnn_small import model as _faster_rcnn
from .retinanet import CHANNELS, model, optimizer, train  # noqa: F401 (parts of this config)

model.weights = _faster_rcnn.weights
model.net.pixel_mean = _faster_rcnn.net.pixel_mean
model.net.pixel_std = _faster_rcnn.net.pixel_std
model.net.backbone = _faster_rcnn.net.backbone
model.net.head_in_features = ["p3", "p4", "p5"]
model.net.head.input_shape = [L("detectron2.layers.ShapeSpec")(channels=CHANNELS)] * 3
model.net.head.conv_dims = [64, 64]
model.net.head.norm = "GN"  # a few hundred steps are too few without
model.net.anchor_generator.sizes = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (12, 24, 48)]
model.net.anchor_generator.strides = [8, 16, 32]
