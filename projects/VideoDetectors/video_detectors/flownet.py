"""FlowNet-S (Dosovitskiy et al., ICCV 2015) as FGFA uses it: optical flow between two frames.

A chain of strided convolutions, then flow from coarse to fine: at every level it is predicted from
the level's features, those of the coarser level upsampled, and the coarser flow upsampled. Frames
enter at half their size, in BGR, without their mean, divided by 255.
"""

from __future__ import annotations

import logging
import re
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from v2idetr.checkpoints.files import read_weights
from v2idetr.runs.checkpoint import blaming, load_into

logger = logging.getLogger(__name__)

SLOPE = 0.1  # of the leaky ReLU
# Layers of the encoder by level: (kernel size, stride); their widths are multiples of `width`.
ENCODER = {
    "conv1": (7, 2),
    "conv2": (5, 2),
    "conv3": (5, 2),
    "conv3_1": (3, 1),
    "conv4": (3, 2),
    "conv4_1": (3, 1),
    "conv5": (3, 2),
    "conv5_1": (3, 1),
    "conv6": (3, 2),
    "conv6_1": (3, 1),
}
WIDTHS = {1: 1, 2: 2, 3: 4, 4: 8, 5: 8, 6: 16}
UPSAMPLED = {5: 8, 4: 4, 3: 2, 2: 1}  # widths of the upsampled features
# The network was trained for flow / 20 in pixels of the halved frames.
PIXELS = 2 * 20
# Names in the file of github.com/Scalsol/mega.pytorch (after MXNet's) and ours.
RELEASED = (
    (r"flow_conv1\.", lambda _: "conv1."),
    (r"Convolution(\d)\.", lambda m: f"predict{7 - int(m[1])}."),
    (r"upsample_flow(\d)to(\d)\.", lambda m: f"upsample{m[1]}to{m[2]}."),
)


class FlowNetS(nn.Module):
    """Two frames -> where in the second one each cell of the first is seen.

    Args:
        width: channels of the first layer; 64 in the paper.
        stride: of the flow in pixels of the frame, 8 or 16.

    With random weights the flow is zero at the start of the training.

    Raises:
        ValueError: another stride.
    """

    def __init__(self, *, width: int = 64, stride: int = 16) -> None:
        super().__init__()
        if stride not in (8, 16):
            raise ValueError(f"flownet.stride={stride} must be 8 or 16, that of net.backbone.")
        self.stride = stride
        channels = 2 * 3
        for name, (kernel, step) in ENCODER.items():
            out = width * WIDTHS[int(name[4])]
            self.add_module(name, nn.Conv2d(channels, out, kernel, step, padding=kernel // 2))
            channels = out
        for level, multiple in UPSAMPLED.items():
            self.add_module(f"predict{level + 1}", nn.Conv2d(channels, 2, 3, padding=1))
            self.add_module(f"upsample{level + 1}to{level}", _doubled(2, 2))
            self.add_module(f"deconv{level}", _doubled(channels, width * multiple))
            channels = width * (WIDTHS[level] + multiple) + 2
        self.predict2 = nn.Conv2d(channels, 2, 3, padding=1)
        for layer in self.children():
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, a=SLOPE)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.predict2.weight)

    def forward(
        self, current: Float[Tensor, "B 3 h2 w2"], other: Float[Tensor, "B 3 h2 w2"]
    ) -> Float[Tensor, "B 2 h w"]:
        """Flow (x, y) in cells of ``stride`` pixels.

        Args:
            current, other: see :func:`flow_input`.
        """
        levels: dict[int, Tensor] = {}
        x = torch.cat([current, other], 1)
        for name in ENCODER:
            x = levels[int(name[4])] = F.leaky_relu(self._layer(name)(x), SLOPE)
        for coarse, fine in pairwise(range(6, 1, -1)):
            flow = self._layer(f"predict{coarse}")(x)
            skip = levels[fine]
            finer = _cropped(self._layer(f"deconv{fine}")(x), skip)
            flow = _cropped(self._layer(f"upsample{coarse}to{fine}")(flow), skip)
            x = torch.cat([skip, F.leaky_relu(finer, SLOPE), flow], 1)
        if self.stride == 16:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        return self.predict2(x) * (PIXELS / self.stride)

    def _layer(self, name: str) -> nn.Module:
        return self.get_submodule(name)


def flow_input(
    normalised: Float[Tensor, "B 3 H W"], std: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "B 3 h2 w2"]:
    """A network's RGB input, normalised -> frames for :class:`FlowNetS`.

    Args:
        std: that they were divided by, for pixels in [0, 255].
    """
    return F.avg_pool2d((normalised * std / 255).flip(1), 2, ceil_mode=True)


def load_flow_weights(flownet: FlowNetS, weights: str, *, key: str) -> None:
    """Load weights from a local file; nothing is ever downloaded.

    Args:
        weights: path of a file of ours or of mega.pytorch (``flownet.ckpt``); "" to keep the random
            initialisation, which a warning says.
        key: of ``weights`` in the config, for messages.

    Raises:
        CheckpointError: the file does not exist or does not fit.
    """
    if not weights:
        logger.warning("FlowNet starts from random weights (%s is empty).", key)
        return
    with blaming(key):
        state = read_weights(weights).state
        load_into(flownet, {_own_name(name): tensor for name, tensor in state.items()}, weights)


def _own_name(name: str) -> str:
    name = name.removeprefix("flownet.")
    for pattern, own in RELEASED:
        name = re.sub("^" + pattern, own, name)
    return name


def _doubled(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)


def _cropped(x: Tensor, like: Tensor) -> Tensor:
    """Without the row or column that an odd map does not have."""
    return x[..., : like.shape[-2], : like.shape[-1]]
