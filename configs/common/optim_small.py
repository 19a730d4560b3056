"""For a few hundred steps of a small detector: warm-up, then a cosine, at a higher rate."""

from detectron2.config import LazyCall as L

from .optim import optimizer

optimizer.lr = 1e-3
optimizer.backbone_lr = 2e-4

lr_multiplier = L("detectron2.solver.WarmupParamScheduler")(
    scheduler=L("fvcore.common.param_scheduler.CosineParamScheduler")(
        start_value=1.0, end_value=0.02
    ),
    warmup_factor=0.01,
    warmup_length=0.05,  # share of the run
)
