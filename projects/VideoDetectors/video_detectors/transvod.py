"""TransVOD (He et al., ACM MM 2021; Zhou et al., TPAMI 2023): queries and memories fused over time.

A Deformable DETR gives each of T frames its memory and, after the last decoder layer, its queries.
Then, for the current frame (section 3 of the first paper)::

    TDTE   its memory attends to itself, and by deformable attention to the R = T - 1 references'
    TQE    its queries attend to themselves and to the references' most confident ones, fewer of
           them in each of three layers
    TDTD   its queries attend to themselves, and by deformable attention to the memory of TDTE

and new heads detect. Training has two steps: the Deformable DETR alone, then these modules by the
losses of their heads. Without the first step the choice of queries means nothing; without freezing
what it has trained, boxes that no loss corrects any more drift away from under the new heads.

Layers and freezing are those of the released code (github.com/SJTU-LuHe/TransVOD), where TDTE is
never run. There are no position embeddings after TDTE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from detectron2.structures import Instances
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from v2idetr.data.reference_sampler import ReferenceSampler
from v2idetr.modeling.deformable_attention import DeformableAttention, Shapes
from v2idetr.modeling.detection_transformer import xavier
from v2idetr.modeling.dropout import Dropout
from v2idetr.modeling.extra_queries import ExtraQueries
from v2idetr.modeling.heads import MLP, DetectionHeads
from v2idetr.modeling.interface import Decoded, Memory, Place, Queries, select_queries
from v2idetr.modeling.references import token_centres
from v2idetr.modeling.token_attention import (
    GlobalAttention,
    LocalAttention,
    SelfAttention,
    TokenGrid,
)
from v2idetr.modeling.trainable import Sample
from v2idetr.modeling.training import TrainingOutput
from v2idetr.modeling.transformer import DecoderLayer, FeedForward, decode_with_boxes
from video_detectors.transformer_detector import TransformerVideoDetector

Picks = Literal["queries", "pairs"]


@dataclass
class FrameOutput:
    """What the single-frame detector knows of frames of one size.

    Attributes:
        tokens, position, padding, valid_ratios, shapes: of the memory, see ``TokenGrid``.
        hidden, logits, boxes: of the last decoder layer, see ``Decoded``.
        reference: of a further decoder layer, see ``Queries``.
    """

    tokens: Float[Tensor, "B S d"]
    position: Float[Tensor, "B S d"]
    padding: Bool[Tensor, "B S"] | None
    valid_ratios: Float[Tensor, "B levels 2"]
    shapes: Shapes
    hidden: Float[Tensor, "B N d"]
    logits: Float[Tensor, "B N logits"]
    boxes: Float[Tensor, "B N 4"]
    reference: Float[Tensor, "B N ref"]

    @property
    def image(self) -> TokenGrid:
        """The memory."""
        return TokenGrid(self.tokens, self.position, self.padding, self.shapes, self.valid_ratios)

    @property
    def decoded(self) -> Decoded:
        """The last decoder layer, L = 1."""
        return Decoded(self.hidden[None], self.logits[None], self.boxes[None])

    def select(self, images: Int[Tensor, " n"]) -> FrameOutput:
        """Some frames, by index."""
        return replace(self, **{name: x[images] for name, x in self._tensors().items()})

    @staticmethod
    def cat(frames: Sequence[FrameOutput]) -> FrameOutput:
        """Frames together."""
        parts = [frame._tensors() for frame in frames]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return replace(frames[0], **joined)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}


class TransVOD(TransformerVideoDetector):
    """Detector of a clip's current frame.

    Args:
        net: Deformable DETR of single frames. Below ``temporal`` its decoder's heads only choose
            queries and references, and no loss reaches them.
        temporal: what fuses the frames; None for the single-frame detector.
        freeze_net: train ``temporal`` alone; otherwise all but the heads that no loss reaches.
        detector: see :class:`TransformerVideoDetector`.

    Raises:
        ValueError: ``temporal`` does not fit ``net`` or the samplers.
    """

    net: Any

    def __init__(
        self,
        *,
        net: nn.Module,
        temporal: TemporalTransformer | None,
        freeze_net: bool = True,
        **detector: Any,
    ) -> None:
        super().__init__(net=net, **detector)
        self.temporal, self.freeze_net = temporal, freeze_net
        if temporal is None:
            return
        _check_fit(temporal, self.net)
        for key, sampler in self.samplers().items():
            _check_references(temporal, key, sampler)
        heads = [h for i in range(len(self.net.decoder)) for h in self.net.heads.of_layer(i)]
        for module in [self.net] if freeze_net else heads:
            module.requires_grad_(False)
        if not self.net.box_refine:  # references without size get an initial one
            head = temporal.box_heads[0]
            assert isinstance(head, MLP)
            nn.init.constant_(head.last.bias[2:], -2.0)

    def losses(
        self,
        frames: list[Sample],
        extra: Sequence[ExtraQueries] = (),
        num_boxes: float | None = None,
    ) -> TrainingOutput:
        """Losses of the current frames; with those of a two-stage encoder's proposals if it learns.

        Args:
            frames: all frames of all clips, clip-major.
            extra: not used here.
            num_boxes: see ``SetCriterion``.
        """
        assert not extra, "additional queries are of students"
        current, labelled = self.index_of_labelled(frames), self.labelled(frames)
        if self.temporal is None:
            frames, current = labelled, torch.arange(len(labelled), device=self.device)
        images, targets = self.images(frames), self.targets(labelled)
        memory, queries, decoded = self._single_frames(images)
        if self.temporal is not None:
            outputs = self._outputs(memory, queries, decoded)
            clips = torch.arange(len(frames), device=self.device).view(-1, self.num_frames)
            others = clips[clips != current.unsqueeze(1)]
            decoded = self._fused(outputs.select(current), outputs.select(others))
        memory, queries = memory.select(current), queries.of_images(current)
        proposals = memory.proposals if self.temporal is None or not self.freeze_net else None
        losses = self.criterion(decoded, targets, proposals=proposals, num_boxes=num_boxes)
        classification = self.criterion.classification
        return TrainingOutput(losses, images, targets, memory, queries, decoded, [], classification)

    def encode(self, frames: list[Sample]) -> list[FrameOutput]:
        """Memory and last queries of each frame."""
        outputs = self._outputs(*self._single_frames(self.images(frames)))
        each = torch.arange(len(frames), device=self.device).split(1)
        return [outputs.select(index) for index in each]

    def detect(self, sample: Sample, states: list[FrameOutput]) -> Instances:
        """Detections of the current frame."""
        index = sample["clip_index"]
        current, others = states[index], [*states[:index], *states[index + 1 :]]
        if self.temporal is None:
            return self.detections(current.decoded, sample)
        return self.detections(self._fused(current, FrameOutput.cat(others)), sample)

    def _single_frames(self, images: Any) -> tuple[Memory, Queries, Decoded]:
        memory = self.net.encode(self.net.extract(images))
        queries = self.net.queries(memory)
        return memory, queries, self.net.decode(memory, queries)

    def _outputs(self, memory: Memory, queries: Queries, decoded: Decoded) -> FrameOutput:
        grid, boxes = self.net.token_grid(memory), decoded.boxes[-1]
        # Where boxes are not refined, the references of all layers are the queries'.
        reference = boxes.detach() if self.net.box_refine else queries.reference
        image = (grid.tokens, grid.position, grid.padding, grid.valid_ratios, grid.shapes)
        return FrameOutput(*image, decoded.hidden[-1], decoded.logits[-1], boxes, reference)

    def _fused(self, current: FrameOutput, others: FrameOutput) -> Decoded:
        assert self.temporal is not None
        scores = self.criterion.classification.scores(others.logits)
        return self.temporal(current, others, scores)


class TemporalTransformer(nn.Module):
    """TDTE, TQE and TDTD with their heads: outputs of frames -> decoded current frames.

    Args:
        d, num_classes, num_levels: of the single-frame network.
        num_references: R, which TDTE is made for.
        memory_encoder: TDTE; false as in the released code, where the memory stays the frame's.
        query_shares: share of the references' queries that each layer of TQE reads; the paper's 80,
            50 and 30 of 300.
        picks: "queries": the most confident ones, each by its best class; "pairs": those of the
            most confident pairs of query and class, so that a query can be read twice, as in the
            released code. The same with one class.
        num_decoder_layers: of TDTD.
        num_heads, num_points, ffn_dim, dropout: of every layer.
    """

    def __init__(
        self,
        *,
        d: int = 256,
        num_classes: int = 1,
        num_levels: int = 1,
        num_references: int = 14,
        memory_encoder: bool = True,
        query_shares: Sequence[float] = (80 / 300, 50 / 300, 30 / 300),
        picks: Picks = "queries",
        num_decoder_layers: int = 1,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if picks not in get_args(Picks):
            raise ValueError(f"picks={picks!r} must be one of {', '.join(get_args(Picks))}.")
        if not all(0 < share <= 1 for share in query_shares):
            raise ValueError(f"query_shares={list(query_shares)} must be above 0 and at most 1.")
        self.d, self.num_classes, self.num_levels = d, num_classes, num_levels
        self.num_references, self.query_shares = num_references, tuple(query_shares)
        self.picks = picks
        attention = {"d": d, "num_heads": num_heads}
        layer = {"d": d, "ffn_dim": ffn_dim, "dropout": dropout}
        # As MSI: the weights of later modules must not depend on these.
        with torch.random.fork_rng(devices=[]):
            self.memory_encoder = None
            if memory_encoder:
                levels = num_levels * num_references
                self.memory_encoder = MemoryEncoderLayer(
                    num_heads=num_heads, num_levels=levels, num_points=num_points, **layer
                )
            self.query_encoder = nn.ModuleList(
                QueryEncoderLayer(num_heads=num_heads, **layer) for _ in query_shares
            )
            self.decoder = nn.ModuleList(
                DecoderLayer(
                    SelfAttention(**attention, dropout=dropout),
                    LocalAttention(**attention, num_levels=num_levels, num_points=num_points),
                    **layer,
                )
                for _ in range(num_decoder_layers)
            )
            xavier(self)
            for module in self.modules():
                if isinstance(module, DeformableAttention):
                    module.reset_parameters()
            heads = DetectionHeads.build(d=d, num_logits=num_classes, count=1, refine=False)
            heads.reset_parameters()
            self.class_heads, self.box_heads = heads.classes, heads.boxes

    def forward(
        self, current: FrameOutput, others: FrameOutput, scores: Float[Tensor, "CR N K"]
    ) -> Decoded:
        """Decoded current frames of C clips, with one output per layer of TDTD.

        Args:
            current: of the C current frames.
            others: of their references, clip-major.
            scores: of each class for the references' queries.
        """
        image = current.image
        if self.memory_encoder is not None:
            image = replace(image, tokens=self.memory_encoder(image, others.image))
        queries = self._encoded_queries(current.hidden, others.hidden, scores)
        start = Queries(queries, torch.zeros_like(queries), current.reference)
        heads = DetectionHeads(self.class_heads, self.box_heads, refine=False)
        return decode_with_boxes(self.decoder, start, [image] * len(self.decoder), heads, None)

    def _encoded_queries(
        self,
        content: Float[Tensor, "C N d"],
        others: Float[Tensor, "CR N d"],
        scores: Float[Tensor, "CR N K"],
    ) -> Float[Tensor, "C N d"]:
        """TQE."""
        C, N = content.shape[:2]
        R = len(others) // C
        clips = others.reshape(C, R * N, -1)
        by_query = scores.amax(2, keepdim=True) if self.picks == "queries" else scores
        ranked, each = by_query.reshape(C, -1), by_query.shape[2]
        for layer, share in zip(self.query_encoder, self.query_shares, strict=True):
            count = R * max(1, round(share * N))
            best = ranked.topk(count, 1).indices // each
            content = layer(content, select_queries(clips, best))
        return content


class MemoryEncoderLayer(nn.Module):
    """TDTE: tokens of the current frame, then those of the references around the same place.

    Each level of each reference is a level of the deformable attention.

    Args:
        d, num_heads, num_levels, num_points, ffn_dim, dropout: as of an encoder layer, but with the
            levels of all references.
    """

    def __init__(
        self,
        *,
        d: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        attention = {"d": d, "num_heads": num_heads}
        reads = {"num_levels": num_levels, "num_points": num_points}
        self.self_attention = GlobalAttention(**attention, dropout=dropout)
        self.self_norm = nn.LayerNorm(d)
        self.cross_attention = LocalAttention(**attention, **reads)
        self.cross_norm = nn.LayerNorm(d)
        self.dropout = Dropout(dropout)
        self.ffn = FeedForward(d=d, ffn_dim=ffn_dim, dropout=dropout)

    def forward(self, image: TokenGrid, others: TokenGrid) -> Float[Tensor, "C S d"]:
        """Tokens of the current frames, by those of their references, clip-major."""
        assert image.position is not None
        place = Place(image.position, token_centres(image.shapes, image.valid_ratios))
        seen = self.self_attention(image.tokens, place, image)
        tokens = self.self_norm(image.tokens + self.dropout(seen))
        read = self.cross_attention(tokens, place, _side_by_side(others, clips=len(tokens)))
        return self.ffn(self.cross_norm(tokens + self.dropout(read)))


class QueryEncoderLayer(nn.Module):
    """A layer of TQE: queries see each other, then others, without positions."""

    def __init__(self, *, d: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()

        def attention() -> nn.MultiheadAttention:
            return nn.MultiheadAttention(d, num_heads, dropout, batch_first=True)

        self.self_attention, self.self_norm = attention(), nn.LayerNorm(d)
        self.cross_attention, self.cross_norm = attention(), nn.LayerNorm(d)
        self.dropout = Dropout(dropout)
        self.ffn = FeedForward(d=d, ffn_dim=ffn_dim, dropout=dropout)

    def forward(
        self, content: Float[Tensor, "C N d"], others: Float[Tensor, "C k d"]
    ) -> Float[Tensor, "C N d"]:
        seen = self.self_attention(content, content, content, need_weights=False)[0]
        content = self.self_norm(content + self.dropout(seen))
        read = self.cross_attention(content, others, others, need_weights=False)[0]
        return self.ffn(self.cross_norm(content + self.dropout(read)))


def _side_by_side(others: TokenGrid, *, clips: int) -> TokenGrid:
    """Images of a clip's references -> one image of all their levels; positions in the tokens."""
    assert others.position is not None
    R = len(others.tokens) // clips

    def joined(of_frames: Tensor) -> Tensor:
        return of_frames.unflatten(0, (clips, R)).flatten(1, 2)

    return TokenGrid(
        joined(others.tokens + others.position),
        None,
        None if others.padding is None else joined(others.padding),
        others.shapes * R,
        joined(others.valid_ratios),
    )


def _check_fit(temporal: TemporalTransformer, net: Any) -> None:
    own = {"d": net.d, "num_classes": net.num_classes, "num_levels": len(net.strides)}
    for name, needed in own.items():
        have = getattr(temporal, name)
        if have != needed:
            raise ValueError(f"temporal.{name} is {have}, but net needs {needed}: set it to that.")


def _check_references(temporal: TemporalTransformer, key: str, sampler: ReferenceSampler) -> None:
    references = sampler.num_frames - 1
    if references < 1:
        raise ValueError(f"{key} chooses no reference: use one with more than one frame.")
    if temporal.memory_encoder is not None and references != temporal.num_references:
        raise ValueError(
            f"{key} chooses {references} references, but temporal.num_references is "
            f"{temporal.num_references}: its memory encoder needs them to agree."
        )
