"""Data between the steps of a detector.

    images -> extract -> Features -> encode -> Memory -> queries -> Queries -> decode -> Decoded

Shape legend of the project::

    B  images (for video: clips x frames, clip-major)     d  width of the transformer
    C  clips            T  frames of a clip               h w  cells of one feature level
    N  queries          M  ground-truth boxes             H W  pixels
    K  classes          L  decoder layers                 S  tokens over all levels

A network that implements :class:`DetectorNetwork` can be trained, evaluated and distilled.
Distillation depends on networks through this file alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Width and height for a reference with only a centre: sigmoid(-2), the size of Deformable DETR's
# boxes before training (bias -2 on the last layer of the box head).
DEFAULT_REFERENCE_SIZE = 0.11920292


@dataclass
class Images:
    """A batch of normalised images, padded to one size.

    Attributes:
        pixels: normalised pixels; padding is zero, at the right and at the bottom only.
        sizes: (height, width) in pixels of each image without its padding, or one for all.
        num_frames: T when the batch holds whole clips, clip-major (``B = C * T``); otherwise 1.
    """

    pixels: Float[Tensor, "B 3 H W"]
    sizes: list[tuple[int, int]]
    num_frames: int = 1

    @cached_property
    def size_tensor(self) -> Int[Tensor, "B 2"]:
        """``sizes`` on the pixels' device; cached, because the copy synchronises with a GPU."""
        sizes = torch.tensor(self.sizes, device=self.pixels.device)
        return sizes.expand(self.pixels.shape[0], 2)

    def padding(self, stride: int, h: int, w: int) -> Bool[Tensor, "B h w"] | None:
        """True on the cells of a (h, w) map of this stride without a pixel of the image.

        None if no image of the batch is padded.
        """
        if all(size == tuple(self.pixels.shape[-2:]) for size in self.sizes):
            return None
        device = self.pixels.device
        cells = self.size_tensor.add(stride - 1) // stride
        rows = torch.arange(h, device=device) >= cells[:, :1]
        columns = torch.arange(w, device=device) >= cells[:, 1:]
        return rows.unsqueeze(2) | columns.unsqueeze(1)

    def fill(self, stride: int, h: int, w: int) -> bool:
        """Whether every image exactly fills a (h, w) map of this stride."""
        return all(size == (h * stride, w * stride) for size in self.sizes)

    def valid_ratio(self, stride: int, h: int, w: int) -> Float[Tensor, "B 2"]:
        """Share of a (h, w) map's width and height that the image covers.

        Exact in pixels: an image 144 px high ends in the middle of its fifth row of stride 32.
        """
        level = torch.tensor([w * stride, h * stride], device=self.pixels.device)
        return self.size_tensor.flip(1) / level


@dataclass
class Features:
    """Projected features of width d, before the encoder.

    Attributes:
        maps: (B, d, h, w) by stride in pixels, finest first.
        padding: (B, h, w), True on padding, by stride; None without padding.
        valid_ratios: (B, 2), share of a map's width and height covered by the image, by stride;
            None if images fill every map.
        num_frames: T if the images are whole clips, clip-major; otherwise 1.
    """

    maps: dict[int, Tensor]
    padding: dict[int, Tensor] | None
    valid_ratios: dict[int, Tensor] | None = None
    num_frames: int = 1

    def select(self, images: Int[Tensor, " n"]) -> Features:
        """The features of some images, by index."""

        def pick(by_stride: dict[int, Tensor]) -> dict[int, Tensor]:
            return {stride: x[images] for stride, x in by_stride.items()}

        return Features(
            pick(self.maps),
            self.padding and pick(self.padding),
            self.valid_ratios and pick(self.valid_ratios),
        )


@dataclass
class Proposals:
    """Boxes predicted by a two-stage encoder, one per token.

    Attributes:
        logits: class logits; only the first is trained, as lesion against background.
        boxes: cxcywh in [0, 1] of the unpadded image.
        valid: False for tokens on padding or within 1 % of the border, which are ignored.
    """

    logits: Float[Tensor, "B S K"]
    boxes: Float[Tensor, "B S 4"]
    valid: Bool[Tensor, "B S"]

    def select(self, images: Int[Tensor, " n"]) -> Proposals:
        """The proposals of some images, by index."""
        return Proposals(self.logits[images], self.boxes[images], self.valid[images])


@dataclass
class Memory:
    """The encoder's output for a batch of images.

    Attributes:
        features: input maps of the encoder, by stride.
        tokens: encoded tokens, levels concatenated, finest first.
        padding: True for tokens on padding; None without padding.
        shapes: (h, w) of each level.
        valid_ratios: share of each level's width and height covered by the image.
        proposals: boxes predicted from the tokens (two-stage detectors only).
    """

    features: Features
    tokens: Float[Tensor, "B S d"]
    padding: Bool[Tensor, "B S"] | None
    shapes: list[tuple[int, int]]
    valid_ratios: Float[Tensor, "B levels 2"]
    proposals: Proposals | None = None

    def level(self, stride: int) -> Float[Tensor, "B d h w"]:
        """The encoded tokens of one level as a map."""
        index = list(self.features.maps).index(stride)
        starts = [0]
        for h, w in self.shapes:
            starts.append(starts[-1] + h * w)
        h, w = self.shapes[index]
        tokens = self.tokens[:, starts[index] : starts[index + 1]]
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, h, w)

    def encoded(self) -> Features:
        """All levels of the encoded tokens, as maps."""
        return replace(self.features, maps={s: self.level(s) for s in self.features.maps})

    def select(self, images: Int[Tensor, " n"]) -> Memory:
        """The memory of some images, by index."""
        return Memory(
            self.features.select(images),
            self.tokens[images],
            None if self.padding is None else self.padding[images],
            self.shapes,
            self.valid_ratios[images],
            self.proposals and self.proposals.select(images),
        )


@dataclass
class Queries:
    """Object queries, the decoder's inputs.

    Attributes:
        content: content embedding.
        position: positional embedding, added to the content in attention.
        reference: centre (x, y) or box (cx, cy, w, h) of attention, in [0, 1] of the unpadded
            image.
    """

    content: Float[Tensor, "B N d"]
    position: Float[Tensor, "B N d"]
    reference: Float[Tensor, "B N ref"]

    @property
    def num_queries(self) -> int:
        return self.content.shape[1]

    def select(self, index: Tensor) -> Queries:
        """Selected queries of each image; ``index`` is (B, n), integers in [0, N)."""
        return Queries(
            select_queries(self.content, index),
            select_queries(self.position, index),
            select_queries(self.reference, index),
        )

    def of_images(self, images: Int[Tensor, " n"]) -> Queries:
        """The queries of some images, by index."""
        return Queries(self.content[images], self.position[images], self.reference[images])

    def detach(self) -> Queries:
        return Queries(self.content.detach(), self.position.detach(), self.reference.detach())

    def with_reference_dim(self, dim: int) -> Queries:
        """The same queries with references of ``dim`` numbers, 2 or 4.

        A box is reduced to its centre; a centre becomes a box of Deformable DETR's initial size.
        """
        have = self.reference.shape[-1]
        if have == dim:
            return self
        if dim == 2:
            return replace(self, reference=self.reference[..., :2])
        size = torch.full_like(self.reference, DEFAULT_REFERENCE_SIZE)
        return replace(self, reference=torch.cat([self.reference, size], dim=-1))

    @staticmethod
    def cat(queries: Sequence[Queries]) -> Queries:
        """Queries concatenated along N; all references must have the same dimension."""
        return Queries(
            torch.cat([q.content for q in queries], 1),
            torch.cat([q.position for q in queries], 1),
            torch.cat([q.reference for q in queries], 1),
        )


def select_queries(
    of_queries: Float[Tensor, "B N x"], index: Int[Tensor, "B n"]
) -> Float[Tensor, "B n x"]:
    """Selected queries of each image, by index in [0, N)."""
    return of_queries.gather(1, index.unsqueeze(-1).expand(-1, -1, of_queries.shape[-1]))


@dataclass
class Decoded:
    """Decoder outputs after every layer; the last one is the detection.

    Attributes:
        hidden: decoded features, each normalised by a LayerNorm.
        logits: class logits, see ``classification.py``.
        boxes: cxcywh in [0, 1] of the unpadded image.
        content: input of the next layer; ``hidden`` by default, other than that only in decoders
            that normalise their outputs separately (DETR).
        extras: further outputs of every query, (L, B, N, ...) each, for terms of the criterion.
    """

    hidden: Float[Tensor, "L B N d"]
    logits: Float[Tensor, "L B N logits"]
    boxes: Float[Tensor, "L B N 4"]
    content: Float[Tensor, "L B N d"] = None  # type: ignore[assignment]  # set below
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.content is None:
            self.content = self.hidden

    def slice(self, start: int, stop: int) -> Decoded:
        """Queries ``start`` to ``stop``."""
        return self._part((slice(None), slice(None), slice(start, stop)))

    def select(self, images: Int[Tensor, " n"]) -> Decoded:
        """The queries of some images, by index."""
        return self._part((slice(None), images))

    def _part(self, part: tuple[slice | Tensor, ...]) -> Decoded:
        extras = {name: extra[part] for name, extra in self.extras.items()}
        return Decoded(
            self.hidden[part], self.logits[part], self.boxes[part], self.content[part], extras
        )


@dataclass
class Place:
    """Positions and references of queries, as inputs of a decoder layer.

    Attributes:
        position: see ``Queries``; the same in all layers.
        reference: see ``Queries``; updated by each layer with box refinement.
    """

    position: Float[Tensor, "B N d"]
    reference: Float[Tensor, "B N ref"]


# Content and place of further queries, visible in a decoder layer's self-attention.
Beside = tuple[Float[Tensor, "B n d"], Place]


@dataclass
class Context:
    """Decoded queries, visible to other queries in self-attention.

    Decoding B with context A equals one decoder run on A and B with an attention mask that hides B
    from A, except that A is decoded exactly as without B.
    """

    queries: Queries
    decoded: Decoded

    def layer_input(self, layer: int) -> Beside:
        """Their content and place at the input of a decoder layer."""
        if layer == 0:
            return self.queries.content, Place(self.queries.position, self.queries.reference)
        place = Place(self.queries.position, self.decoded.boxes[layer - 1])
        return self.decoded.content[layer - 1], place


@runtime_checkable
class DetectorNetwork(Protocol):
    """A plain torch module with these methods and attributes.

    ``forward`` runs the steps in order. With ``current``, an index of images, only these images are
    processed after the last step that mixes frames.

    Optional members: ``training_queries(memory, targets)`` gives sets of extra queries for
    training, see ``extra_queries.py``. ``mixes_frames_after(slot)`` tells whether frames are mixed
    after the step "features" or "memory", see ``fusion.py``; without it they are not.
    """

    d: int
    num_classes: int
    num_logits: int
    num_queries: int
    strides: tuple[int, ...]
    reference_dim: int

    def extract(self, images: Images) -> Features: ...

    def encode(self, features: Features) -> Memory: ...

    def queries(self, memory: Memory) -> Queries: ...

    def decode(
        self, memory: Memory, queries: Queries, context: Context | None = None
    ) -> Decoded: ...

    def __call__(self, images: Images, current: Tensor | None = None) -> Decoded: ...
