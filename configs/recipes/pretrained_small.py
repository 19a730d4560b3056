"""small.py with a backbone that is pretrained first, on the training frames without labels."""

from copy import deepcopy

from detectron2.config import LazyCall as L

from ..models.encoders import efficientnet_lite0 as encoder
from .free_lunch import views
from .small import evaluation, lr_multiplier, optimizer, stages, train  # noqa: F401 (parts)

_settings = dict(
    init_checkpoint="",
    init_partial=False,
    batch_size=64,
    optimizer=L("v2idetr.engine.optimizer.AdamWRecipe")(
        lr=1e-3, backbone_lr=1e-3, weight_decay=1e-4
    ),
)
encoder.weights = "package:efficientnet-lite0"  # a few hundred frames: not from random weights
backbone = dict(max_iter=300, **_settings)
backbone_teacher = dict(max_iter=100, encoder=deepcopy(encoder), **deepcopy(_settings))
backbone_teacher["encoder"].freeze_backbone = True

train.clips_at_once = 64  # a batch of pretraining is not cut; detectors' are smaller
views.input_size = 64

_queue = dict(queue_size=256, momentum=0.996)  # of a training that is short
stages.backbone_teacher = L("free_lunch.pretraining.PretrainingStage")(
    encoder="backbone_teacher.encoder", settings="backbone_teacher", **_queue
)
stages.backbone = L("free_lunch.pretraining.PretrainingStage")(
    settings="backbone", distillation_weight=5.0, needs=dict(teacher="backbone_teacher"), **_queue
)
for _name in ("teacher", "plain"):
    stages[_name].needs = dict(backbone="backbone")
stages.student.needs = dict(teacher="teacher", backbone="backbone")
train.stages = ["backbone_teacher", "backbone", *train.stages]
