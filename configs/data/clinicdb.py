"""CVC-ClinicDB split by sequences, at half size: datasets/prepare_clinicdb.py."""

import os

from detectron2.config import LazyCall as L

ROOT = os.environ.get("V2I_REAL_DATA", "data") + "/cvc_clinicdb"

data = dict(
    class_names=["polyp"],
    train=dict(json="data/clinicdb/train.json", image_root=ROOT),
    val=dict(json="data/clinicdb/val.json", image_root=ROOT),
    test=dict(test=dict(json="data/clinicdb/test.json", image_root=ROOT)),
    num_frames=3,  # T, paper, section III
    window=2,  # its frames are a selection of the videos: neighbours are far apart
    sampling="random",
    side="both",
    augmentations=dict(  # half of 384 x 288 px
        train=[
            L("v2idetr.data.augmentation.horizontal_flip")(),
            L("v2idetr.data.augmentation.vertical_flip")(),
            L("v2idetr.data.augmentation.ScaleJitter")(width=192, height=144),
            L("v2idetr.data.augmentation.color_jitter")(),
        ],
        test=[L("v2idetr.data.augmentation.resize_fixed")(width=192, height=144)],
    ),
    min_visible=0.25,
    on_bad_box="raise",
    negative_share=None,
    cache_mib=512,  # shared cache of decoded frames; 0: none
)

# The 400 steps of recipes/small.py are 11 epochs * 297 frames of sequences 1-14 / batch 8.
train = dict(batch_size=8)
