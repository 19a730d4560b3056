"""For a laptop: MEGA on the small Faster R-CNN; clips of frames that lie far apart."""

from .faster_rcnn_c4_small import model, optimizer, train  # noqa: F401 (parts of this config)
from .mega import stages, video  # noqa: F401

video.model.net.roi_heads.box_head.fc_dims = [256, 256, 256]
video.model.num_proposals = 20
video.model.num_distilled = 5
video.model.num_groups = 8
video.model.memory_frames = 5

_train = video.model.reference_sampler
_train.local.local.window = "${data.window}"
_train.nearest, _train.farthest = 3, 10
_evaluation = video.model.evaluation_sampler
_evaluation.local.before = _evaluation.local.after = "${data.window}"
_evaluation.distant.num_references = 4
del _train, _evaluation

train["stages"] = ["plain", "video"]
