"""SUN-SEG, the clips of the paper's Table I: datasets/prepare_sunseg.py."""

from detectron2.config import LazyCall as L

ROOT = "data/SUN-SEG"

data = dict(
    class_names=["polyp"],
    train=dict(json="data/sunseg/train.json", image_root=ROOT),
    val=dict(json="data/sunseg/val.json", image_root=ROOT),
    test=dict(  # seen and unseen clips: groups of videos in each
        easy=dict(json="data/sunseg/test_easy.json", image_root=ROOT),
        hard=dict(json="data/sunseg/test_hard.json", image_root=ROOT),
    ),
    num_frames=3,  # T, paper, section III
    window=10,  # in frames at 30 fps: references within a third of a second
    sampling="random",  # of training clips; those of evaluation are evenly spaced
    side="both",
    # The paper states no sizes. SUN's 1158 x 1008 px at a short edge of 480 are 551 x 480.
    augmentations=dict(
        train=[
            L("v2idetr.data.augmentation.horizontal_flip")(),
            L("v2idetr.data.augmentation.vertical_flip")(),
            L("v2idetr.data.augmentation.resize_or_crop_resize")(
                resize=L("v2idetr.data.augmentation.ResizeShortEdge")(
                    short_edges=[352, 384, 416, 448, 480, 512, 544], max_size=800
                )
            ),
            L("v2idetr.data.augmentation.color_jitter")(),
        ],
        test=[L("v2idetr.data.augmentation.ResizeShortEdge")(short_edges=480, max_size=800)],
    ),
    min_visible=0.25,
    on_bad_box="raise",
    negative_share=None,  # no resampling of lesion-free frames
    cache_mib=512,  # shared cache of decoded frames; 0: none
)

train = dict(
    # The steps of the paper: 12 epochs * 19,544 frames of the 112 training clips / batch 16; some
    # 13 epochs without the cases that prepare_sunseg.py keeps for validation.
    max_iter=14658,
    eval_period=2443,  # 2 epochs: 2 * 19,544 / 16
    best_metric="endovis_center/f1",  # as the paper
)
