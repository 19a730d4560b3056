"""Small DETR of the size of deformable_detr_small.py, its teacher."""

from copy import deepcopy

from ..recipes.small import optimizer as _optimizer
from ..recipes.small import train as _train
from .backbones import efficientnet_lite0
from .deformable_detr_small import model as _deformable_detr
from .deformable_detr_small import teacher
from .detr import distillation, model
from .teachers import on_its_own

teacher = on_its_own(teacher, _deformable_detr)
teacher.model.net.backbone = efficientnet_lite0  # DETR's own ends at stride 16
teacher.max_iter = _train.max_iter  # as for the other students
teacher.optimizer = _optimizer

train = dict(max_iter=1500)  # DETR converges slowly: its box error still decreases
optimizer = dict(lr=3e-4)

model.net.backbone = deepcopy(efficientnet_lite0)
model.net.backbone.strides = [16]
model.net.weights = "package:efficientnet-lite0"  # ImageNet
model.net.d = 128
model.net.strides = [16]  # stride 32 has 12 cells at 128 x 96 px: training failed
model.net.num_queries = (
    10  # with 30, each is matched, and thus trained, a third as often: AP50 9, not 36
)
model.net.num_encoder_layers = 2
model.net.num_decoder_layers = 4  # all but the first help to separate queries
model.net.dropout = 0.0
model.net.ffn_dim = 256
model.pixel_mean = [127.0, 127.0, 127.0]  # EfficientNet-Lite
model.pixel_std = [128.0, 128.0, 128.0]

distillation.tfd.stride = 16
