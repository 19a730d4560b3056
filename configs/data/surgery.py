"""Synthetic operations in Cholec80's layout: make_surgery.py, then prepare_cholec80.py."""

from detectron2.config import LazyCall as L

from .cholec80 import data

JSON = "data/surgery_json"
ROOT = f"{JSON}/frames"

for _split, _paths in dict(train=data["train"], val=data["val"], **data["test"]).items():
    _paths.update(json=f"{JSON}/{_split}.json", image_root=ROOT)

data["augmentations"] = dict(
    train=[
        L("v2idetr.data.augmentation.horizontal_flip")(),
        L("v2idetr.data.augmentation.ScaleJitter")(width=128, height=96, scale=[0.9, 1.3]),
        L("v2idetr.data.augmentation.color_jitter")(),
    ],
    test=[L("v2idetr.data.augmentation.resize_fixed")(width=128, height=96)],
)
