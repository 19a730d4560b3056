"""Synthetic endoscopy in SUN-SEG's layout: make_synthetic.py, then prepare_sunseg.py."""

from detectron2.config import LazyCall as L

ROOT = "data/synthetic"
JSON = "data/synthetic_json"

data = dict(
    class_names=["polyp"],
    train=dict(json=f"{JSON}/train.json", image_root=ROOT),
    val=dict(json=f"{JSON}/val.json", image_root=ROOT),
    test=dict(  # seen and unseen clips: groups of videos in each
        easy=dict(json=f"{JSON}/test_easy.json", image_root=ROOT),
        hard=dict(json=f"{JSON}/test_hard.json", image_root=ROOT),
        negative=dict(json=f"{JSON}/test_negative.json", image_root=ROOT),  # no lesion
    ),
    num_frames=3,  # T, paper, section III
    window=2,  # clips of 5 frames
    sampling="random",
    side="both",
    augmentations=dict(
        train=[
            L("v2idetr.data.augmentation.horizontal_flip")(),
            L("v2idetr.data.augmentation.vertical_flip")(),
            L("v2idetr.data.augmentation.ScaleJitter")(width=128, height=96, scale=[0.9, 1.3]),
            L("v2idetr.data.augmentation.color_jitter")(),
        ],
        test=[L("v2idetr.data.augmentation.resize_fixed")(width=128, height=96)],
    ),
    min_visible=0.25,
    on_bad_box="raise",
    negative_share=None,
    cache_mib=512,  # shared cache of decoded frames; 0: none
)

# The 400 steps of recipes/small.py are 3.5 epochs * 360 clips of 5 frames / batch 16.
