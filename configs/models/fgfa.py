"""FGFA on Faster R-CNN in the C4 layout, and that Faster R-CNN alone."""

from detectron2.config import LazyCall as L

from .faster_rcnn_c4 import lr_multiplier, model, optimizer, train  # noqa: F401 (parts)
from .video_stage import stages, video  # noqa: F401 (parts of this config)

video.model = L("video_detectors.fgfa.FGFA")(
    net="${model.net}",
    class_names="${data.class_names}",
    weights="${model.weights}",
    flownet=L("video_detectors.flownet.FlowNetS")(width=64, stride="${model.net.backbone.stride}"),
    flow_weights="",  # file of a trained FlowNet-S, such as mega.pytorch's flownet.ckpt
    embedding=L("video_detectors.fgfa.Embedding")(
        channels="${model.net.proposal_generator.head.in_channels}", hidden=512, out=2048
    ),
    current_in_training=True,  # released code: false
    warp_embeddings=False,  # released code: true
    reference_sampler=L("v2idetr.data.reference_sampler.WindowSampler")(
        num_frames=3, window=9, sampling="random"
    ),
    evaluation_sampler=L("v2idetr.data.reference_sampler.AdjacentSampler")(before=9, after=9),
)

train["stages"] = ["plain", "video"]
