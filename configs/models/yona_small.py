"""For a laptop: YONA on CenterNet with EfficientNet-Lite0."""

from .centernet_small import model, optimizer  # noqa: F401 (parts of this config)
from .yona import stages, video  # noqa: F401

train = dict(stages=["plain", "video"])
