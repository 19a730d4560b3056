"""Frames without labels, from any folder of videos or frames: datasets/prepare_frames.py."""

data = dict(
    class_names=[],
    phases=[],  # names of surgical phases, for frames with labels
    train=dict(json="data/frames/unlabelled.json", image_root="data/frames/frames"),
    val=None,  # with train.eval_period=0
    test=dict(),
    num_frames=1,
    window=0,
    sampling="fixed",
    side="both",
    augmentations=dict(train=[], test=[]),
    min_visible=0.0,
    on_bad_box="raise",
    negative_share=None,
    cache_mib=512,  # shared cache of decoded frames; 0: none
)
