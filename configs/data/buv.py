"""Breast ultrasound video, the paper's Table II: datasets/prepare_buv.py."""

from detectron2.config import LazyCall as L

ROOT = "data/BUV"

data = dict(
    class_names=["benign", "malignant"],
    train=dict(json="data/buv/train.json", image_root=ROOT),
    val=dict(json="data/buv/val.json", image_root=ROOT),
    test=dict(test=dict(json="data/buv/test.json", image_root=ROOT)),
    num_frames=3,  # T, paper, section III
    window=10,  # in frames of the video; train.json may list only some of them
    sampling="random",
    side="both",
    # The paper states no sizes. No vertical flip: the probe is always at the top.
    augmentations=dict(
        train=[
            L("v2idetr.data.augmentation.horizontal_flip")(),
            L("v2idetr.data.augmentation.resize_or_crop_resize")(
                resize=L("v2idetr.data.augmentation.ResizeShortEdge")(
                    short_edges=[352, 384, 416, 448, 480, 512, 544], max_size=800
                )
            ),
            L("v2idetr.data.augmentation.color_jitter")(
                saturation=0.0, hue=0.0
            ),  # ultrasound is grey
        ],
        test=[L("v2idetr.data.augmentation.ResizeShortEdge")(short_edges=480, max_size=800)],
    ),
    min_visible=0.25,
    on_bad_box="raise",
    negative_share=None,
    cache_mib=512,  # shared cache of decoded frames; 0: none
)

train = dict(
    # The steps of the paper: 12 epochs * 150 training videos * 15 frames / batch 16; some 14 epochs
    # without the videos that prepare_buv.py excludes or keeps for validation.
    max_iter=1687,
    eval_period=281,  # 2 epochs: 2 * 2,250 / 16
    best_metric="AP",  # as the paper
)
