"""Backbone maps -> feature levels of one width (Deformable DETR, appendix A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from v2idetr.modeling.interface import Features, Images


class PaddedGroupNorm(nn.GroupNorm):
    """Group normalisation with statistics of the image without its padding."""

    def forward(
        self, x: Float[Tensor, "B d h w"], padding: Bool[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B d h w"]:
        if padding is None:
            return super().forward(x)
        x = x.float()  # half precision cannot count or sum the cells of a level
        B, d, h, w = x.shape
        keep = (~padding).view(B, 1, 1, h, w).to(x.dtype)
        groups = x.reshape(B, self.num_groups, -1, h, w)
        count = keep.sum((2, 3, 4), keepdim=True) * groups.shape[2]
        mean = (groups * keep).sum((2, 3, 4), keepdim=True) / count
        centred = (groups - mean) * keep
        variance = centred.square().sum((2, 3, 4), keepdim=True) / count
        normalised = (centred * torch.rsqrt(variance + self.eps)).view(B, d, h, w)
        scaled = normalised * self.weight.view(1, d, 1, 1) + self.bias.view(1, d, 1, 1)
        return scaled * (~padding).unsqueeze(1)


class PaddedIdentity(nn.Module):
    """No normalisation; padding becomes zero as after :class:`PaddedGroupNorm`."""

    def forward(
        self, x: Float[Tensor, "B d h w"], padding: Bool[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B d h w"]:
        return x if padding is None else x * (~padding).unsqueeze(1)


class Neck(nn.Module):
    """Projection of backbone maps to d channels, and coarser levels.

    Levels of the backbone: convolution 1x1 and normalisation. The first coarser level: convolution
    3x3 of stride 2 on the backbone's last map (C6 of Deformable DETR); further ones on the level
    before.

    Args:
        shapes: the backbone's ``output_shape()``.
        strides: strides of the levels in pixels, ascending.
        d: width; divisible by 32, the number of groups, for "group".
        norm: "group" (Deformable DETR) or "none" (DETR), after every projection.
        isolate_padding: zeros on padding, its exclusion from the group normalisation, and image
            edges exact in pixels; False counts whole cells, as in the published code.

    Raises:
        ValueError: strides do not ascend or do not fit the maps; d does not fit norm.
    """

    def __init__(
        self,
        shapes: dict,
        *,
        strides: Sequence[int],
        d: int,
        norm: Literal["group", "none"] = "group",
        isolate_padding: bool = True,
    ) -> None:
        super().__init__()
        self.source = {shape.stride: name for name, shape in shapes.items()}
        channels = {shape.stride: shape.channels for shape in shapes.values()}
        last = max(channels)
        self.strides, self.isolate_padding = tuple(strides), isolate_padding
        if list(self.strides) != sorted(set(self.strides)):
            raise ValueError(f"strides must ascend, got {self.strides}.")
        if norm == "group" and d % 32:
            raise ValueError(f"d={d} must be divisible by 32, the groups of the normalisation.")
        self.projections, self.norms = nn.ModuleList(), nn.ModuleList()
        width, reached = channels[last], last
        for stride in self.strides:
            if stride in channels:
                self.projections.append(nn.Conv2d(channels[stride], d, 1))
            elif stride == 2 * reached:
                self.projections.append(nn.Conv2d(width, d, 3, stride=2, padding=1))
                width, reached = d, stride
            else:
                raise ValueError(
                    f"A level of stride {stride} needs a backbone map of that stride or of half "
                    f"of it; the backbone has {sorted(channels)} and the levels are {strides}."
                )
            self.norms.append(PaddedGroupNorm(32, d) if norm == "group" else PaddedIdentity())
        for projection in self.projections:
            assert isinstance(projection, nn.Conv2d) and projection.bias is not None
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, maps: dict[str, Tensor], images: Images) -> Features:
        """Feature maps of the backbone -> levels by stride."""
        levels: dict[int, Tensor] = {}
        padding: dict[int, Tensor] = {}
        reached = max(self.source)
        last = maps[self.source[reached]]
        for stride, projection, norm in zip(
            self.strides, self.projections, self.norms, strict=True
        ):
            own = stride in self.source
            x = maps[self.source[stride]] if own else last
            if self.isolate_padding:
                edge = images.padding(stride if own else reached, *x.shape[-2:])
                x = x if edge is None else x * (~edge).unsqueeze(1)
            x = projection(x)
            mask = images.padding(stride, *x.shape[-2:])
            levels[stride] = norm(x, mask if self.isolate_padding else None)
            if mask is not None:
                padding[stride] = mask
            if not own:
                last, reached = levels[stride], stride
        ratios = self._valid_ratios(images, levels, padding)
        return Features(levels, padding or None, ratios, images.num_frames)

    def _valid_ratios(
        self, images: Images, levels: dict[int, Tensor], padding: dict[int, Tensor]
    ) -> dict[int, Tensor] | None:
        """See ``Features``. From sizes on the host, without synchronising with a GPU."""
        if not self.isolate_padding:
            return {stride: _share_of_cells(mask) for stride, mask in padding.items()} or None
        cells = {stride: level.shape[-2:] for stride, level in levels.items()}
        if all(images.fill(stride, *hw) for stride, hw in cells.items()):
            return None
        return {stride: images.valid_ratio(stride, *hw) for stride, hw in cells.items()}


def _share_of_cells(padding: Bool[Tensor, "B h w"]) -> Float[Tensor, "B 2"]:
    """Share of a level's columns and rows covered by the image."""
    keep = ~padding
    return torch.stack([keep[:, 0].float().mean(1), keep[:, :, 0].float().mean(1)], -1)


def flatten_levels(maps: dict[int, Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Levels (B, c, h, w) by stride -> tokens (B, S, c) and the (h, w) of each level."""
    shapes = [(m.shape[-2], m.shape[-1]) for m in maps.values()]
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps.values()], 1), shapes
