"""For a laptop: FGFA on the small Faster R-CNN; clips of frames that lie far apart."""

from .faster_rcnn_c4_small import model, optimizer, train  # noqa: F401 (parts of this config)
from .fgfa import stages, video  # noqa: F401

video.model.flownet.width = 16
video.model.embedding.hidden = 64
video.model.embedding.out = 128
video.model.reference_sampler.window = "${data.window}"
# As many frames as in training: the softmax gives every further one a share of the sum, whatever it
# shows, and takes it from the current frame's.
video.model.evaluation_sampler = None

optimizer["slow_names"] = ["flownet"]  # moves what is read
train["stages"] = ["plain", "video"]
