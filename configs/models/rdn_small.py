"""For a laptop: RDN on the small Faster R-CNN; clips of frames that lie far apart."""

from .faster_rcnn_c4_small import model, optimizer, train  # noqa: F401 (parts of this config)
from .rdn import stages, video  # noqa: F401

video.model.num_proposals = 20
video.model.num_groups = 8
video.model.reference_sampler.window = "${data.window}"
video.model.evaluation_sampler.before = "${data.window}"
video.model.evaluation_sampler.after = "${data.window}"

train["stages"] = ["plain", "video"]
