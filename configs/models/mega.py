"""MEGA on Faster R-CNN in the C4 layout, and that Faster R-CNN alone."""

from detectron2.config import LazyCall as L

from .rdn import lr_multiplier, model, optimizer, stages, train, video  # noqa: F401 (parts)

_net, _heads = model.net, model.net.roi_heads
video.model._target_ = "video_detectors.mega.MEGA"
video.model.net = L(_net._target_)(
    **{key: f"${{model.net.{key}}}" for key in _net if key not in ("_target_", "roi_heads")},
    roi_heads=L(_heads._target_)(
        **{
            key: f"${{model.net.roi_heads.{key}}}"
            for key in _heads
            if key not in ("_target_", "box_head")
        },
        box_head=L(_heads.box_head._target_)(
            input_shape="${model.net.roi_heads.box_head.input_shape}",
            conv_dims=[],
            fc_dims=[1024, 1024, 1024],  # three stages
        ),
    ),
)
del _net, _heads

video.model.num_distilled = 15
video.model.memory_frames = 25
video.model.reference_sampler = L("video_detectors.mega.MemorySampler")(
    local=L("v2idetr.data.reference_sampler.MixedSampler")(
        local=L("v2idetr.data.reference_sampler.WindowSampler")(
            num_frames=3, window=12, sampling="random"
        ),
        distant=L("v2idetr.data.reference_sampler.GlobalSampler")(num_references=2),
    ),
    num_memory=3,
    nearest=13,
    farthest=37,
)
video.model.evaluation_sampler = L("v2idetr.data.reference_sampler.MixedSampler")(
    local=L("v2idetr.data.reference_sampler.AdjacentSampler")(before=12, after=12),
    distant=L("v2idetr.data.reference_sampler.GlobalSampler")(
        num_references=10, in_evaluation="shuffled"
    ),
)
