"""CVA-Net and its single-frame detector, Deformable DETR, at the size of the paper."""

from detectron2.config import LazyCall as L

from .deformable_detr import model
from .video_stage import stages, video  # noqa: F401 (parts of this config)

model.net.num_queries = 300  # this and the points: released code
model.net.num_points = 6

video.model = L("video_detectors.cva_net.CVANet")(
    net=L("v2idetr.modeling.deformable_detr.DeformableDETR")(
        **{key: f"${{model.net.{key}}}" for key in model.net if key not in ("_target_", "fusion")},
        fusion=L("v2idetr.modeling.fusion.Fusion")(
            features=L("video_detectors.cva_net.ClipFusion")(
                strides="${video.model.net.strides}",
                d="${video.model.net.d}",
                num_heads=4,
                dropout=0.1,
                shared=False,  # released code: true, one attention for everything
                copy_last=False,  # released code: true, a copy of the level before
            ),
            memory=None,
            queries=None,
        ),
    ),
    video_class_weight=1.0,  # released code: 0, no loss of the video's classes
    auxiliary_losses=True,  # released code: false, the last decoder layer alone
    reference_sampler=L("v2idetr.data.reference_sampler.MixedSampler")(
        local=L("v2idetr.data.reference_sampler.AdjacentSampler")(before=1, after=1),
        distant=L("v2idetr.data.reference_sampler.GlobalSampler")(
            num_references=3,
            in_evaluation="spaced",  # released code: random; "shuffled" is next to that
        ),
    ),
    evaluation_sampler=None,
    **{key: f"${{model.{key}}}" for key in model if key not in ("_target_", "net")},
)

train = dict(stages=["plain", "video"])
