"""RDN on Faster R-CNN in the C4 layout, and that Faster R-CNN alone."""

from detectron2.config import LazyCall as L

from .faster_rcnn_c4 import lr_multiplier, model, optimizer, train  # noqa: F401 (parts)
from .video_stage import stages, video  # noqa: F401 (parts of this config)

video.model = L("video_detectors.rdn.RDN")(
    net="${model.net}",
    class_names="${data.class_names}",
    weights="${model.weights}",
    num_proposals=75,
    num_groups=16,
    reference_sampler=L("v2idetr.data.reference_sampler.WindowSampler")(
        num_frames=3, window=18, sampling="random"
    ),
    evaluation_sampler=L("v2idetr.data.reference_sampler.AdjacentSampler")(before=18, after=18),
)

train["stages"] = ["plain", "video"]
