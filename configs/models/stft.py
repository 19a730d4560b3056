"""STFT on FCOS with FPN and ResNet-50, and that FCOS alone, both trained as STFT's authors do."""

from detectron2.config import LazyCall as L

from .fcos import model
from .video_stage import stages, video  # noqa: F401 (parts of this config)

model.net.test_score_thresh = 0.05  # of FCOS's own score, in both

video.model = L("video_detectors.stft.STFT")(
    net="${model.net}",
    class_names="${data.class_names}",
    weights="${model.weights}",
    reference_sampler=L("v2idetr.data.reference_sampler.WindowSampler")(
        num_frames=3, window=9, sampling="random"
    ),
    evaluation_sampler=L("v2idetr.data.reference_sampler.WindowSampler")(
        num_frames=11, window=9, sampling="fixed"
    ),
)

train = dict(stages=["plain", "video"], clip_grad_norm=0)

# 1e-3 for 4 clips a step, here 16
optimizer = L("v2idetr.engine.optimizer.SGDRecipe")(lr=4e-3, momentum=0.9, weight_decay=1e-4)

# 24,000 steps: 2,000 of warm-up, halved at 16,000, 20,000 and 22,000
lr_multiplier = L("detectron2.solver.WarmupParamScheduler")(
    scheduler=L("fvcore.common.param_scheduler.MultiStepParamScheduler")(
        values=[1.0, 0.5, 0.25, 0.125], milestones=[16, 20, 22], num_updates=24
    ),
    warmup_factor=1 / 3,
    warmup_length=1 / 12,
)
