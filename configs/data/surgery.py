"""Synthetic operations in Cholec80's layout: make_surgery.py, then prepare_cholec80.py."""

from copy import deepcopy

from detectron2.config import LazyCall as L

from .frames import data as _frames

ROOT = "data/surgery_json/frames"
JSON = "data/surgery_json"

data = deepcopy(_frames)
data.update(
    phases=[
        "Preparation",
        "CalotTriangleDissection",
        "ClippingCutting",
        "GallbladderDissection",
        "GallbladderPackaging",
        "CleaningCoagulation",
        "GallbladderRetraction",
    ],
    train=dict(json=f"{JSON}/train.json", image_root=ROOT),
    val=dict(json=f"{JSON}/val.json", image_root=ROOT),
    test=dict(test=dict(json=f"{JSON}/test.json", image_root=ROOT)),
    augmentations=dict(
        train=[
            L("v2idetr.data.augmentation.horizontal_flip")(),
            L("v2idetr.data.augmentation.ScaleJitter")(width=128, height=96, scale=[0.9, 1.3]),
            L("v2idetr.data.augmentation.color_jitter")(),
        ],
        test=[L("v2idetr.data.augmentation.resize_fixed")(width=128, height=96)],
    ),
)
