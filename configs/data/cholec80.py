"""Cholec80 at 1 frame/s: datasets/prepare_cholec80.py. Train 1-32, validation 33-40, test 41-80."""

from copy import deepcopy

from detectron2.config import LazyCall as L

from free_lunch.prepare.phase_files import CHOLEC80_PHASES

from .frames import data as _frames

JSON = "data/cholec80"
ROOT = f"{JSON}/frames"

data = deepcopy(_frames)
data.update(
    phases=list(CHOLEC80_PHASES),
    train=dict(json=f"{JSON}/train.json", image_root=ROOT),
    val=dict(json=f"{JSON}/val.json", image_root=ROOT),
    test=dict(test=dict(json=f"{JSON}/test.json", image_root=ROOT)),
    augmentations=dict(
        train=[
            L("v2idetr.data.augmentation.resize_fixed")(width=224, height=224),
            L("v2idetr.data.augmentation.horizontal_flip")(),
            L("v2idetr.data.augmentation.color_jitter")(),
        ],
        test=[L("v2idetr.data.augmentation.resize_fixed")(width=224, height=224)],
    ),
)

# 200 epochs * some 70,000 frames of videos 1-32 / batch 128
train = dict(max_iter=110_000, eval_period=5_500)
finetune = dict(max_iter=11_000, eval_period=1_100)  # 10 epochs / batch 64
phases = dict(max_iter=3_200, eval_period=32)  # 100 epochs * 32 videos
