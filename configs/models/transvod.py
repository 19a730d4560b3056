"""TransVOD and its single-frame detector, Deformable DETR on DC5, at the size of the paper."""

from detectron2.config import LazyCall as L

from .backbones import resnet50
from .deformable_detr import model
from .video_stage import stages, video

model.net.backbone = resnet50
model.net.backbone.stages = L("video_detectors.dilated_resnet.dc5_stages")(
    depth=50, norm="FrozenBN"
)
model.net.backbone.out_features = ["res5"]
model.net.strides = [16]
model.net.num_queries = 300
model.net.box_refine = True

video.model = L("video_detectors.transvod.TransVOD")(
    net="${model.net}",
    temporal=L("video_detectors.transvod.TemporalTransformer")(
        d="${model.net.d}",
        num_classes="${model.net.num_classes}",
        num_levels=1,  # of net
        num_references="${video.model.reference_sampler.num_references}",
        memory_encoder=True,  # released code: false, TDTE is never run
        query_shares=[80 / 300, 50 / 300, 30 / 300],
        picks="queries",  # released code: "pairs", the best ones of query and class
        num_decoder_layers=1,
        num_heads="${model.net.num_heads}",
        num_points="${model.net.num_points}",
        ffn_dim="${model.net.ffn_dim}",
        dropout="${model.net.dropout}",
    ),
    freeze_net=True,  # as the released code; false: the single-frame network goes on learning
    reference_sampler=L("v2idetr.data.reference_sampler.GlobalSampler")(
        num_references=14, in_evaluation="spaced"
    ),
    evaluation_sampler=None,
    **{key: f"${{model.{key}}}" for key in model if key not in ("_target_", "net")},
)
video.base = ""  # checkpoint of a trained single-frame detector; its stage is then skipped
stages["plain"] = dict(given="video.base")
stages["video"].needs = dict(initial="plain")  # the second of two steps
train = dict(stages=["plain", "video"])
