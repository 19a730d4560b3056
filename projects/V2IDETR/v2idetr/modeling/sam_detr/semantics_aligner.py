"""Semantics aligner: queries sampled from the features they are compared with.

SAM-DETR (Zhang et al., CVPR 2022), section 3.3. For every query and head::

    R = RoIAlign(F, r)                 7 x 7 cells of the encoded features F under the reference r
    p = tanh(MLP(R))                   one salient point of the region, in [-1, 1]
    content  = R(p) * sigmoid(Linear(Q))
    position = sine(c + wh / 2 * p) * sigmoid(Linear(Q))

Q is the query's input content, (c, wh) the centre and size of r.

All reads are matrix products with weights of linear interpolation: the results of torchvision's
``roi_align`` and torch's ``grid_sample``, but deterministic on a GPU and without padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from v2idetr.modeling.heads import MLP
from v2idetr.modeling.position import sine_embedding

REGION = 7  # cells of a region along x and along y


@dataclass
class Level:
    """One level of the encoded features, the input of a decoder layer.

    Attributes:
        tokens: tokens, row-major.
        position: position embedding of the tokens.
        padding: True on padding; None without padding.
        shape: (h, w).
        image_cells: (width, height) of the unpadded image in cells.
        edge: (width, height) in cells of the area for regions: the image, or the whole level.
    """

    tokens: Float[Tensor, "B S d"]
    position: Float[Tensor, "B S d"]
    padding: Bool[Tensor, "B S"] | None
    shape: tuple[int, int]
    image_cells: Float[Tensor, "B 2"]
    edge: Float[Tensor, "B 2"]


@dataclass
class Aligned:
    """Queries in the space of the encoded features, one for each head.

    Attributes:
        content: features at the salient points, re-weighted.
        position: sine embedding of the salient points, re-weighted.
        points: the salient points (x, y) in [0, 1] of the unpadded image; may lie outside.
        sharpness: inverse width of the attention around them along x and y, before squaring; None
            without spatially modulated attention.
    """

    content: Float[Tensor, "B N heads d"]
    position: Float[Tensor, "B N heads d"]
    points: Float[Tensor, "B N heads 2"]
    sharpness: Float[Tensor, "B N heads 2"] | None


class SemanticsAligner(nn.Module):
    """Queries and their reference boxes -> queries in the space of the encoded features.

    Args:
        d: width.
        num_heads: number of heads and of salient points.
        smca: prediction of the sharpness of spatially modulated attention.
    """

    def __init__(self, *, d: int, num_heads: int, smca: bool) -> None:
        super().__init__()
        self.num_heads, self.smca = num_heads, smca
        self.region_proj = nn.Linear(d, d // 4)
        numbers = num_heads * (4 if smca else 2)
        self.salient_points = MLP([d // 4 * REGION**2, d, 2 * d, 2 * d, numbers])
        self.content_gate = nn.Linear(d, num_heads * d)
        self.position_gate = nn.Linear(d, num_heads * d)

    def forward(
        self,
        content: Float[Tensor, "B N d"],
        reference: Float[Tensor, "B N 4"],
        level: Level,
    ) -> Aligned:
        """Sample the level at the salient points of every query's region.

        Args:
            content: content of the queries.
            reference: cxcywh in [0, 1] of the unpadded image, without gradient through the sampled
                features or the sine embedding.
            level: level to sample.
        """
        B, N, d = content.shape
        heads = (B, N, self.num_heads, -1)
        # In float32, because half precision loses the sub-cell position of a read.
        with torch.autocast(content.device.type, enabled=False):
            regions = read_regions(level, reference.detach().float())
        inside, sharpness = self._salient_points(regions)
        with torch.autocast(content.device.type, enabled=False):
            sampled = read_points(regions, inside)
            centre, size = reference.float().unsqueeze(2).split(2, -1)
            points = centre + 0.5 * size * inside
            with torch.no_grad():
                sine = sine_embedding(points.flip(-1), d // 2)  # y before x, as in the level's own
        return Aligned(
            sampled * self.content_gate(content).view(heads).sigmoid(),
            sine * self.position_gate(content).view(heads).sigmoid(),
            points,
            sharpness,
        )

    def _salient_points(
        self, regions: Float[Tensor, "B N cells d"]
    ) -> tuple[Float[Tensor, "B N heads 2"], Float[Tensor, "B N heads 2"] | None]:
        """Salient point (x, y) of each head in [-1, 1] of its region, and its sharpness."""
        reduced = self.region_proj(regions).relu()
        # Channel by channel, in the order of published weights.
        numbers = self.salient_points(reduced.transpose(2, 3).flatten(2)).float()
        numbers = numbers.unflatten(-1, (-1, self.num_heads, 2))
        return numbers[:, :, 0].tanh(), numbers[:, :, 1] if self.smca else None


@torch.no_grad()
def _region_weights(
    start: Float[Tensor, "B N"], size: Float[Tensor, "B N"], edge: Float[Tensor, " B"], cells: int
) -> Float[Tensor, "B N region {cells}"]:
    """Share of each of a level's ``cells`` in each cell of the regions, along one axis.

    As in RoIAlign, every cell of a region is the mean of ceil(size / 7) evenly spaced reads. A read
    beyond the centre of the last cell, up to half a cell outside, takes that cell; further out it
    is zero.

    Args:
        start, size: starts and sizes of the regions in cells.
        edge: end of the level in cells.
        cells: number of cells of the level, at least ``edge``.
    """
    device = start.device
    most = -(-cells // REGION)  # no reference is larger than the image
    reads = (size / REGION).ceil().clamp(1, most).unsqueeze(-1)  # (B, N, 1)
    read = torch.arange(most, device=device)
    step = size.unsqueeze(-1) / REGION / reads
    within = (read + 0.5) * step  # (B, N, most)
    corner = start.unsqueeze(-1) + torch.arange(REGION, device=device) * size.unsqueeze(-1) / REGION
    at = corner.unsqueeze(-1) + within.unsqueeze(-2) - 0.5  # counted from the first cell's centre
    last = edge.view(-1, 1, 1, 1)
    counts = (at >= -1) & (at <= last) & (read < reads).unsqueeze(-2)
    at = at.clamp(min=0).minimum(last - 1)
    weights = interpolation(at, cells) * counts.unsqueeze(-1)
    return weights.sum(-2) / reads.unsqueeze(-1)


def interpolation(at: Float[Tensor, "*batch"], cells: int) -> Float[Tensor, "*batch {cells}"]:
    """Weights of linear interpolation between cells 0, 1, ...; zero outside."""
    index = torch.arange(cells, device=at.device)
    return (1 - (at.unsqueeze(-1) - index).abs()).clamp(min=0)


def read_regions(level: Level, reference: Float[Tensor, "B N 4"]) -> Float[Tensor, "B N cells d"]:
    """RoIAlign of the boxes, row-major: ``torchvision.ops.roi_align(..., 7, aligned=True)``.

    Args:
        level: level to read.
        reference: cxcywh in [0, 1] of the unpadded image, without gradient.
    """
    (h, w), (B, N, _) = level.shape, reference.shape
    size = reference[..., 2:] * level.image_cells.unsqueeze(1)
    start = reference[..., :2] * level.image_cells.unsqueeze(1) - size / 2
    along_x = _region_weights(start[..., 0], size[..., 0], level.edge[:, 0], w)
    along_y = _region_weights(start[..., 1], size[..., 1], level.edge[:, 1], h)
    rows = level.tokens.float().reshape(B, h, -1)  # (B, h, w * d)
    rows = (along_y.flatten(1, 2) @ rows).view(B, N, REGION, w, -1)
    return (along_x.unsqueeze(2) @ rows).flatten(2, 3)


def read_points(
    regions: Float[Tensor, "B N cells d"], points: Float[Tensor, "B N heads 2"]
) -> Float[Tensor, "B N heads d"]:
    """Bilinear reads: ``grid_sample(..., padding_mode="zeros", align_corners=False)``.

    Args:
        regions: cells of each region, row-major.
        points: (x, y) in [-1, 1] of each region.
    """
    weights = interpolation(((points + 1) * REGION - 1) / 2, REGION)
    along_x, along_y = weights.unbind(-2)
    return (along_y.unsqueeze(-1) * along_x.unsqueeze(-2)).flatten(-2) @ regions
