"""For a laptop: YONA on CenterNet with EfficientNet-Lite0."""

from .centernet_small import model, optimizer  # noqa: F401 (parts of this config)
from .yona import stages, video  # noqa: F401

# "background" moves what is read: at CenterNet's rate its modulators are soon at their limits.
optimizer["slow_names"] = ["background.offsets", "background.modulator"]
train = dict(stages=["plain", "video"])
