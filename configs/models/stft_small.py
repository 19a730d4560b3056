"""For a laptop: STFT on FCOS with EfficientNet-Lite0; clips of frames that lie far apart."""

from .fcos_small import model, optimizer, train  # noqa: F401 (parts of this config)
from .stft import stages, video  # noqa: F401

model.net.test_score_thresh = 0.05  # of FCOS's own score, in both

video.model.reference_sampler.window = "${data.window}"
video.model.evaluation_sampler.window = "${data.window}"
video.model.evaluation_sampler.num_frames = 5

train["stages"] = ["plain", "video"]
