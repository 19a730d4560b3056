"""Faster R-CNN in the C4 layout with ResNet-50, on which FGFA, RDN and MEGA stand.

Widths and numbers of proposals: github.com/Scalsol/mega.pytorch. Anchors and training: as for these
systems on colonoscopy in github.com/lingyunwu14/STFT.
"""

from copy import deepcopy

from detectron2.config import LazyCall as L

from .backbones import resnet50
from .faster_rcnn import model

model.net.backbone = L("video_detectors.c4_backbone.C4Backbone")(
    bottom_up=deepcopy(resnet50), stride=16, out_channels=256
)
model.net.backbone.bottom_up.out_features = ["res4", "res5"]

rpn = model.net.proposal_generator
rpn.in_features = ["c4"]
rpn.head.in_channels = 1024
rpn.head.num_anchors = 15
rpn.anchor_generator.sizes = [[32, 64, 128, 256, 512]]
rpn.anchor_generator.strides = [16]
rpn.pre_nms_topk = [6000, 6000]
rpn.post_nms_topk = [300, 300]
del rpn

heads = model.net.roi_heads
heads.batch_size_per_image = 128
heads.box_in_features = ["c5"]
heads.box_pooler.scales = [1 / 16]
del heads

train = dict(stages=["plain"], clip_grad_norm=0)

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
