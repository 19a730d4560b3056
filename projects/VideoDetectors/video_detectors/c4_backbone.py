"""Backbone of Faster R-CNN in the C4 layout: region proposals and boxes on two maps of one stride.

    pixels -> shallow -> c4    region proposals; FGFA mixes frames here
    c4     -> deep    -> c5    boxes: the last stage, reduced by a 1 x 1 convolution

The stride of the last stage becomes a dilation of the blocks after the strided one. So every second
row and column of the map is that of the ordinary backbone, where a block has one convolution over
neighbours, and pretrained weights keep their meaning. Detectron2's DC5 models and the code of FGFA
and MEGA (github.com/Scalsol/mega.pytorch) dilate the strided block, too. A block with dilation n is
computed as one without, on the n * n grids of every n-th cell: the same, and several times faster
on a CPU if it is depth-wise.
"""

from __future__ import annotations

from itertools import chain, groupby
from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, ResNet
from jaxtyping import Float
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn

from v2idetr.modeling.backbone import TimmBackbone


class C4Backbone(Backbone):
    """The maps ``c4`` and ``c5`` of an image backbone.

    Args:
        bottom_up: Detectron2's ResNet or a :class:`TimmBackbone` of an EfficientNet; its two
            coarsest maps are those before and after the last stage.
        stride: of both maps in pixels, at most half of ``bottom_up``'s.
        out_channels: width of ``c5``.

    Raises:
        ValueError: a backbone of another kind; it returns other maps; a stride that its stages do
            not have.
    """

    def __init__(self, bottom_up: nn.Module, *, stride: int = 16, out_channels: int = 256) -> None:
        super().__init__()
        self.bottom_up, self.stride = bottom_up, stride
        shapes: Any = bottom_up.output_shape()  # pyright: ignore[reportCallIssue]
        maps = sorted(shapes.values(), key=lambda shape: shape.stride)[-2:]
        if len(maps) < 2 or 2 * maps[0].stride != maps[1].stride:
            raise ValueError(
                f"net.backbone.bottom_up has maps of strides {[s.stride for s in shapes.values()]},"
                " C4Backbone needs those before and after its last stage, such as 16 and 32: set "
                "out_features=[res4, res5] of a ResNet, strides=[16, 32] of a TimmBackbone."
            )
        blocks = _blocks(bottom_up)
        strided = [index for index, block in enumerate(blocks) if _strided_convolutions(block)]
        last = maps[1].stride
        possible = [last >> count for count in range(1, len(strided))]
        if stride not in possible:
            raise ValueError(f"net.backbone.stride={stride} must be one of {possible}.")
        self._split = strided[-1]
        self._dilations = [1] * len(blocks)
        for index in strided[-1 - possible.index(stride) :]:
            for conv in _strided_convolutions(blocks[index]):
                conv.stride = (1, 1)
            after = slice(index + 1, None)
            self._dilations[after] = [2 * n for n in self._dilations[after]]
        self.reduce = nn.Conv2d(maps[1].channels, out_channels, 1)
        weight_init.c2_xavier_fill(self.reduce)
        self._shapes = {
            "c4": ShapeSpec(channels=maps[0].channels, stride=stride),
            "c5": ShapeSpec(channels=out_channels, stride=stride),
        }

    @property
    def size_divisibility(self) -> int:
        return self.stride * self._dilations[-1]

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def shallow(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B channels h w"]:
        """The map ``c4``; height and width are multiples of ``size_divisibility``."""
        return self._run(slice(self._split), pixels)

    def deep(self, c4: Float[Tensor, "B channels h w"]) -> dict[str, Tensor]:
        """Both maps."""
        c5 = self._run(slice(self._split, None), c4)
        return {"c4": c4, "c5": self.reduce(c5).relu()}

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Tensor]:
        return self.deep(self.shallow(pixels))

    def _run(self, which: slice, x: Tensor) -> Tensor:
        blocks = zip(self._dilations[which], _blocks(self.bottom_up)[which], strict=True)
        for dilation, group in groupby(blocks, key=lambda block: block[0]):
            x = in_grids(x, dilation)
            for _, block in group:
                x = block(x)
            x = from_grids(x, dilation)
        return x


def in_grids(x: Float[Tensor, "B d h w"], n: int) -> Float[Tensor, "BN d h_n w_n"]:
    """A map -> the n * n maps of every n-th row and column, as a batch."""
    if n == 1:
        return x
    rows = x.unflatten(3, (-1, n)).unflatten(2, (-1, n))
    return rows.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)


def from_grids(x: Float[Tensor, "BN d h w"], n: int) -> Float[Tensor, "B d H W"]:
    """The inverse of :func:`in_grids`."""
    if n == 1:
        return x
    grids = x.unflatten(0, (-1, n, n)).permute(0, 3, 4, 1, 5, 2)
    return grids.flatten(4, 5).flatten(2, 3)


def _blocks(bottom_up: nn.Module) -> list[nn.Module]:
    """The blocks of a backbone that follow each other, from the pixels to its last map.

    Raises:
        ValueError: they are not known.
    """
    body = getattr(bottom_up, "body", None)
    if isinstance(bottom_up, ResNet):
        first, stages = [bottom_up.stem], bottom_up.stages
    elif isinstance(bottom_up, TimmBackbone) and isinstance(body, EfficientNetFeatures):
        first, stages = [body.conv_stem, body.bn1], body.blocks
    else:
        raise ValueError(
            f"net.backbone.bottom_up: the blocks of {type(bottom_up).__name__} are not known; use "
            "Detectron2's ResNet, or a TimmBackbone of an EfficientNet."
        )
    return [*first, *chain.from_iterable(stage.children() for stage in stages)]


def _strided_convolutions(block: nn.Module) -> list[nn.Conv2d]:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
