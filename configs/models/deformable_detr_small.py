"""Small Deformable DETR: EfficientNet-Lite0, d 128, 2 + 2 layers, two-stage queries."""

from .backbones import efficientnet_lite0
from .deformable_detr import distillation, model, teacher  # noqa: F401 (parts of this config)

model.net.backbone = efficientnet_lite0
model.net.weights = "package:efficientnet-lite0"  # ImageNet
model.net.d = 128
model.net.num_queries = 30
model.net.num_encoder_layers = 2
model.net.num_decoder_layers = 2
model.net.ffn_dim = 256
model.net.box_refine = True
model.net.two_stage = True
model.net.mixed_queries = True
model.pixel_mean = [127.0, 127.0, 127.0]  # EfficientNet-Lite
model.pixel_std = [128.0, 128.0, 128.0]
teacher.model.net.fusion.features.ffn_dim = 256
