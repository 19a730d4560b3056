"""V2I-DETR with DETR as student; the teacher is the Deformable DETR of deformable_detr.py."""

from detectron2.config import LazyCall as L

from .backbones import resnet50
from .deformable_detr import distillation, model, teacher
from .teachers import on_its_own

teacher = on_its_own(teacher, model)

model.net = L("v2idetr.modeling.detr.DETR")(
    backbone=resnet50,
    weights="weights/resnet50_imagenet.pth",  # torchvision's; Detectron2's is a .pkl
    num_classes=1,
    strides=[32],
    d=256,
    num_queries=100,  # paper, section III
    num_encoder_layers=6,
    num_decoder_layers=6,
    num_heads=8,
    ffn_dim=2048,
    dropout=0.1,
    query_content="given",  # given | zero: content of cross-view queries, the teacher's or zero
    isolate_padding=True,
)
model.criterion = L("v2idetr.modeling.criterion.SetCriterion")(
    classification=L("v2idetr.modeling.classification.SoftmaxClassification")(eos_coef=0.1),
    matcher=L("v2idetr.modeling.matcher.HungarianMatcher")(
        class_weight=1.0, l1_weight=5.0, giou_weight=2.0
    ),
    class_weight=1.0,
    l1_weight=5.0,
    giou_weight=2.0,
)

distillation.tfd.align = "conv1x1"  # the teacher's projection is normalised, DETR's is not
