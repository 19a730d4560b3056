"""Free Lunch for a small encoder, two cores and minutes; the student beside its controls."""

from copy import deepcopy

from detectron2.config import LazyCall as L

from ..models.encoders import efficientnet_lite0
from ..models.encoders import resnet10 as encoder  # noqa: F401 (learns within minutes)
from .free_lunch import (  # noqa: F401 (parts of this config)
    evaluation,
    finetune,
    phases,
    stages,
    teacher,
    train,
    views,
)

train.stages = ["teacher", "contrastive", "student"]
train.batch_size = 64
train.clips_at_once = 64
train.max_iter = 1000
train.eval_period = 200
train.checkpoint_period = 100
views.input_size = 64

optimizer = L("v2idetr.engine.optimizer.AdamWRecipe")(lr=1e-3, backbone_lr=1e-3, weight_decay=1e-4)

lr_multiplier = L("detectron2.solver.WarmupParamScheduler")(
    scheduler=L("fvcore.common.param_scheduler.CosineParamScheduler")(
        start_value=1.0, end_value=0.0
    ),
    warmup_factor=0.01,
    warmup_length=0.05,  # share of the training
)

teacher["encoder"] = deepcopy(efficientnet_lite0)
teacher["encoder"].weights = "package:efficientnet-lite0"  # ImageNet, supervised
teacher["encoder"].freeze_backbone = True
teacher["max_iter"] = 300  # the head alone
teacher["eval_period"] = 60

for _name in ("teacher", "contrastive", "student"):
    stages[_name].queue_size = 1024
    stages[_name].momentum = 0.996  # of a training that is short

# What the student is compared with, by shares of the labelled videos.
_PROBED = dict(
    random=dict(),
    imagenet=dict(encoder="teacher.encoder"),  # whose backbone is the public model's
    contrastive=dict(needs=dict(backbone="contrastive")),
    student=dict(needs=dict(backbone="student")),
)
for _source, _which in _PROBED.items():
    for _share in (0.1, 0.4, 0.5, 1.0):
        _probe = f"probe_{_source}_{100 * _share:.0f}"
        stages[_probe] = L("free_lunch.phases.probe.ProbeStage")(share=_share, **_which)
        train.stages.append(_probe)

finetune.update(max_iter=400, eval_period=80)
phases.update(max_iter=600, eval_period=30)  # 40 epochs * 15 videos
