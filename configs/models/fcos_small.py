"""For a laptop: FCOS with EfficientNet-Lite0."""

from .fcos import model, optimizer, train  # noqa: F401 (parts of this config)
from .retinanet_small import model as _retinanet

model.weights = _retinanet.weights
for _key in ("pixel_mean", "pixel_std", "backbone", "head_in_features"):
    model.net[_key] = _retinanet.net[_key]
model.net.head.input_shape = _retinanet.net.head.input_shape
model.net.head.conv_dims = _retinanet.net.head.conv_dims
