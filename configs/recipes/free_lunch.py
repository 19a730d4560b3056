"""Pretraining of Free Lunch (arXiv 2205.09292) on frames without labels; settings that the abstract
omits: its released code.
"""

from copy import deepcopy

from detectron2.config import LazyCall as L

from ..models.encoders import resnet50 as encoder
from .paper import evaluation, train

train.stages = ["teacher", "student"]
train.batch_size = 128
train.clips_at_once = 128  # batch normalisation: a process's share of a batch is not cut
train.clip_grad_norm = 0
train.eval_period = 1000
train.checkpoint_period = 500
evaluation.batch_size = 64

views = L("lightly.transforms.MoCoV2Transform")(input_size=224, normalize=None)  # the encoder's own

optimizer = L("v2idetr.engine.optimizer.SGDRecipe")(lr=0.01, momentum=0.9, weight_decay=1e-4)

lr_multiplier = L("fvcore.common.param_scheduler.CosineParamScheduler")(
    start_value=1.0, end_value=0.0
)

# A public model, whose head alone is trained on the domain's frames.
teacher = dict(
    encoder=deepcopy(encoder),
    checkpoint="",  # of an earlier run, instead of training one
    init_checkpoint="",
    init_partial=False,
    max_iter=None,  # null: that of train
    batch_size=None,
    eval_period=None,
    optimizer="${optimizer}",
)
teacher["encoder"].weights = "weights/resnet50_imagenet.pth"  # torchvision's; MoCo v2's fits too
teacher["encoder"].freeze_backbone = True

# Phase recognition: single frames (Adam, batch 64), then a causal TCN on the features of videos.
finetune = dict(
    init_checkpoint="",
    init_partial=False,
    max_iter=None,
    batch_size=64,
    eval_period=None,
    optimizer=L("v2idetr.engine.optimizer.AdamWRecipe")(
        lr=1e-4, backbone_lr=1e-4, weight_decay=1e-4
    ),
)
phases = dict(
    init_checkpoint="",
    init_partial=False,
    max_iter=None,
    batch_size=1,  # videos
    eval_period=None,
    optimizer=L("v2idetr.engine.optimizer.AdamWRecipe")(
        lr=5e-4, backbone_lr=5e-4, weight_decay=0.0
    ),
)

stages = dict(
    teacher=L("free_lunch.pretraining.PretrainingStage")(
        encoder="teacher.encoder", settings="teacher", given="teacher.checkpoint"
    ),
    student=L("free_lunch.pretraining.PretrainingStage")(
        distillation_weight=5.0, needs=dict(teacher="teacher")
    ),
    # The control: the student without its teacher.
    contrastive=L("free_lunch.pretraining.PretrainingStage")(),
    # Phase recognition with the encoder's own weights; `needs.backbone` gives them others.
    probe=L("free_lunch.phases.probe.ProbeStage")(transitions=None),
    finetune=L("free_lunch.phases.finetuning.FinetuningStage")(settings="finetune"),
    phases=L("free_lunch.phases.temporal_stage.TemporalStage")(settings="phases"),
)

# Low-data regimes: a TCN on the student, fine-tuned with the labels of the same videos. All have as
# many steps.
for _percent in (10, 40, 50, 100):
    _shared = dict(share=_percent / 100, transitions="${stages.probe.transitions}")
    stages[f"finetune_{_percent}"] = L("free_lunch.phases.finetuning.FinetuningStage")(
        settings="finetune", needs=dict(backbone="student"), **_shared
    )
    stages[f"phases_{_percent}"] = L("free_lunch.phases.temporal_stage.TemporalStage")(
        settings="phases", needs=dict(backbone=f"finetune_{_percent}"), **_shared
    )
