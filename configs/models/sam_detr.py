"""V2I-DETR with SAM-DETR as student; the teacher is the Deformable DETR of deformable_detr.py."""

from detectron2.config import LazyCall as L

from .backbones import resnet50
from .deformable_detr import distillation, model, teacher  # noqa: F401 (parts of this config)
from .teachers import on_its_own

teacher = on_its_own(teacher, model)

model.net = L("v2idetr.modeling.sam_detr.SAMDETR")(
    backbone=resnet50,
    weights="weights/resnet50_imagenet.pth",  # torchvision's; Detectron2's is a .pkl
    num_classes=1,
    d=256,
    num_queries=100,  # paper, section III
    num_encoder_layers=6,
    num_decoder_layers=6,
    num_heads=8,
    ffn_dim=2048,
    dropout=0.1,
    smca=False,
    multi_scale=False,
    num_points=4,  # for multi_scale only
    neck_norm="group",  # as SAM-DETR's 12 epochs; for "none" set distillation.tfd.align=conv1x1
    isolate_padding=True,
)
