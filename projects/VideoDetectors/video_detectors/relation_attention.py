"""Relation attention between regions (RDN, Deng et al., ICCV 2019, after Relation Networks).

Of a region i to regions j, in each of G groups g of channels::

    a_ij = softmax_j( (W_Q x_i) . (W_K x_j) / sqrt(d / G) + log(max(0, W_G E(geo_ij)) + 1e-6) )
    y_i  = concat_g sum_j a_ij W_V x_j
    geo  = log(|dx| / w_i), log(|dy| / h_i), log(w_i / w_j), log(h_i / h_j)

E embeds every number by eight sines and eight cosines. Without geometry the second term is left
out. MEGA's code also has u . W_K x_j in the softmax, the same as a bias of W_Q, which is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

WAVES = 8  # sines, and as many cosines, of each number
LONGEST = 1000.0  # wavelength, relative to the shortest
UNIT = 100.0  # what numbers are multiplied by
LEAST_WEIGHT = 1e-6
LEAST_MOVE = 1e-3  # in widths or heights


@dataclass(frozen=True)
class Regions:
    """Regions of one or several frames."""

    boxes_xyxy_px: Float[Tensor, "N 4"]
    features: Float[Tensor, "N d"]

    def __len__(self) -> int:
        return len(self.features)

    def first(self, count: int) -> Regions:
        """The first ones, which have the highest scores."""
        return Regions(self.boxes_xyxy_px[:count], self.features[:count])

    def with_features(self, features: Float[Tensor, "N d"]) -> Regions:
        return Regions(self.boxes_xyxy_px, features)

    def detach(self) -> Regions:
        return Regions(self.boxes_xyxy_px, self.features.detach())

    @staticmethod
    def cat(parts: Sequence[Regions]) -> Regions:
        boxes, features = zip(*((p.boxes_xyxy_px, p.features) for p in parts), strict=True)
        return Regions(torch.cat(boxes), torch.cat(features))

    def split(self, counts: Sequence[int]) -> list[Regions]:
        """The inverse of :meth:`cat`."""
        boxes, features = (x.split(list(counts)) for x in (self.boxes_xyxy_px, self.features))
        return [Regions(*pair) for pair in zip(boxes, features, strict=True)]


class RelationAttention(nn.Module):
    """What regions take from others, to be added to their features.

    Args:
        d: width of the features.
        num_groups: G.
        geometry: whether boxes matter.

    Raises:
        ValueError: the width is not divisible into groups.
    """

    def __init__(self, d: int, *, num_groups: int = 16, geometry: bool = True) -> None:
        super().__init__()
        if d % num_groups:
            raise ValueError(f"num_groups={num_groups} must divide the width d={d} of the boxes.")
        self.num_groups = num_groups
        self.query, self.key, self.value = (nn.Linear(d, d) for _ in range(3))
        self.geometry = nn.Linear(4 * 2 * WAVES, num_groups) if geometry else None
        for layer in (self.query, self.key):
            weight_init.c2_xavier_fill(layer)
        for layer in filter(None, (self.value, self.geometry)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Regions, others: Regions) -> Float[Tensor, "N d"]:
        if not (len(regions) and len(others)):
            return torch.zeros_like(regions.features)
        query = self._grouped(self.query(regions.features))
        key, value = (self._grouped(part(others.features)) for part in (self.key, self.value))
        bias = None
        if self.geometry is not None:
            bias = self.geometry_bias(regions.boxes_xyxy_px, others.boxes_xyxy_px).to(query.dtype)
            bias = bias[None]
        return F.scaled_dot_product_attention(query, key, value, bias)[0].transpose(0, 1).flatten(1)

    def geometry_bias(
        self, boxes: Float[Tensor, "N 4"], others: Float[Tensor, "M 4"]
    ) -> Float[Tensor, "G N M"]:
        """log(max(0, W_G E(geo)) + 1e-6), in float32 also under autocast."""
        assert self.geometry is not None
        with torch.autocast(boxes.device.type, enabled=False):
            numbers = geometry(boxes, others).unbind(-1)
            parts = self.geometry.weight.split(2 * WAVES, 1)
            weights = self.geometry.bias
            for number, part in zip(numbers, parts, strict=True):  # one at a time, for the memory
                weights = weights + F.linear(waves(number), part)
            return (weights.relu() + LEAST_WEIGHT).log().permute(2, 0, 1)

    def _grouped(self, x: Float[Tensor, "N d"]) -> Float[Tensor, "1 G N c"]:
        return x.unflatten(1, (self.num_groups, -1)).transpose(0, 1)[None]


def geometry(
    boxes_xyxy_px: Float[Tensor, "N 4"], others_xyxy_px: Float[Tensor, "M 4"]
) -> Float[Tensor, "N M 4"]:
    """Where boxes are to others; widths and heights of at least a pixel."""

    def centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
        return (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)

    centre, size = (x[:, None] for x in centre_and_size(boxes_xyxy_px))
    other_centre, other_size = centre_and_size(others_xyxy_px)
    move = ((centre - other_centre).abs() / size + LEAST_MOVE).log()
    return torch.cat([move, (size / other_size).log()], -1)


def waves(number: Float[Tensor, "N M"]) -> Float[Tensor, "N M waves"]:
    """Sines, then cosines, of a number at wavelengths from short to long."""
    exponents = torch.arange(WAVES, device=number.device) / WAVES
    angles = UNIT * number[..., None] / LONGEST**exponents
    return torch.cat([angles.sin(), angles.cos()], -1)
