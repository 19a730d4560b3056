"""Small SAM-DETR of the size of deformable_detr_small.py, its teacher."""

from ..recipes.small import optimizer as _optimizer
from .backbones import efficientnet_lite0
from .deformable_detr_small import model as _deformable_detr
from .deformable_detr_small import teacher
from .sam_detr import distillation, model  # noqa: F401 (parts of this config)
from .teachers import on_its_own

teacher = on_its_own(teacher, _deformable_detr)
teacher.optimizer = _optimizer  # as for the other students

optimizer = dict(lr=3e-4)  # at 1e-3 a single-scale one did not even overfit a dozen images

model.net.backbone = efficientnet_lite0
model.net.weights = "package:efficientnet-lite0"  # ImageNet
model.net.d = 128
model.net.num_queries = 30
model.net.num_encoder_layers = 2
model.net.multi_scale = True  # stride 32 alone has 12 cells at 128 x 96 px: training failed
model.net.num_decoder_layers = 3  # one per level
model.net.ffn_dim = 256
model.pixel_mean = [127.0, 127.0, 127.0]  # EfficientNet-Lite
model.pixel_std = [128.0, 128.0, 128.0]
