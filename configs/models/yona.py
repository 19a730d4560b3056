"""YONA and its CenterNet with ResNet-50, both trained as in YONA's released code.

That also freezes the backbone in the first epoch.
"""

from detectron2.config import LazyCall as L

from .centernet import model
from .video_stage import stages, video  # noqa: F401 (parts of this config)

video.model = L("video_detectors.yona.YONA")(
    net="${model.net}",
    contrast_weight=0.3,
    previous_score=0.3,
    zero_init=True,  # released code: false
    released_masks=False,  # released code: true
    reference_sampler=L("v2idetr.data.reference_sampler.AdjacentSampler")(before=1, after=0),
    evaluation_sampler=None,
    **{key: f"${{model.{key}}}" for key in model if key not in ("_target_", "net")},
)

train = dict(
    stages=["plain", "video"],
    clips_at_once=8,  # for the statistics of batch normalisation
    clip_grad_norm=0,
)

optimizer = dict(lr=5e-4, backbone_lr=5e-4, weight_decay=5e-4)

lr_multiplier = dict(milestones=[40], num_updates=50)  # epochs
