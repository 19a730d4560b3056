"""Data of your own: tools/import_labels.py, whose train.yaml has the sizes and folders."""

from detectron2.config import LazyCall as L

ROOT = "data/own/frames"

data = dict(
    class_names=["polyp"],
    train=dict(json="data/own/train.json", image_root=ROOT),
    val=dict(json="data/own/val.json", image_root=ROOT),
    test=dict(test=dict(json="data/own/test.json", image_root=ROOT)),
    num_frames=3,  # T, paper, section III
    window=10,  # in frames of the video
    sampling="random",
    side="both",
    augmentations=dict(
        train=[
            L("v2idetr.data.augmentation.horizontal_flip")(),
            L("v2idetr.data.augmentation.vertical_flip")(),
            L("v2idetr.data.augmentation.ScaleJitter")(width=256, height=192),
            L("v2idetr.data.augmentation.color_jitter")(),
        ],
        test=[L("v2idetr.data.augmentation.resize_fixed")(width=256, height=192)],
    ),
    min_visible=0.25,
    on_bad_box="raise",
    negative_share=None,
    cache_mib=512,  # shared cache of decoded frames; 0: none
)
