"""Recipe for a few hundred steps of a small detector: warm-up and cosine, higher learning rate."""

from detectron2.config import LazyCall as L

from .paper import evaluation, optimizer, stages, train  # noqa: F401 (parts of this config)

train.max_iter = 400
train.clips_at_once = 16
train.eval_period = 100
train.checkpoint_period = 50

optimizer.lr = 1e-3
optimizer.backbone_lr = 2e-4

lr_multiplier = L("detectron2.solver.WarmupParamScheduler")(
    scheduler=L("fvcore.common.param_scheduler.CosineParamScheduler")(
        start_value=1.0, end_value=0.02
    ),
    warmup_factor=0.01,
    warmup_length=0.05,  # share of the training
)
