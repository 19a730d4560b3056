"""Behaviour of the network that parity with transformers does not show."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import TinyBackbone, tiny_net
from v2idetr.modeling.deformable_attention import DeformableAttention
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.interface import (
    DEFAULT_REFERENCE_SIZE,
    Context,
    Decoded,
    Images,
    Memory,
    Queries,
)
from v2idetr.modeling.references import inverse_sigmoid

REFINED = {"box_refine": True}
TWO_STAGE = {"box_refine": True, "two_stage": True}
MIXED = {**TWO_STAGE, "mixed_queries": True}


def images(*sizes: tuple[int, int]) -> Images:
    sizes = sizes or ((64, 96), (96, 64))
    H, W = (max(axis) for axis in zip(*sizes, strict=True))
    pixels = torch.zeros(len(sizes), 3, H, W)
    for row, (h, w) in zip(pixels, sizes, strict=True):
        row[:, :h, :w] = torch.randn(3, h, w)
    return Images(pixels, list(sizes))


def remember(net: DeformableDETR) -> Memory:
    return net.encode(net.extract(images()))


def foreign(net: DeformableDETR, n: int, *, B: int = 2) -> Queries:
    """Queries from elsewhere, with the references that this network has."""
    reference = torch.rand(B, n, net.reference_dim) * 0.6 + 0.2
    return Queries(torch.randn(B, n, net.d), torch.randn(B, n, net.d), reference)


# ------------------------------------------------------------------------- initialisation


def untouched(**settings) -> DeformableDETR:
    defaults = {"num_classes": 1, "d": 32, "num_heads": 4, "ffn_dim": 48}
    depth = {"num_encoder_layers": 1, "num_decoder_layers": 3, "num_queries": 10}
    return DeformableDETR(backbone=TinyBackbone(), **defaults | depth | settings)


@pytest.mark.parametrize("settings", [{}, REFINED, TWO_STAGE, MIXED])
def test_every_score_starts_at_one_percent(settings: dict) -> None:
    for head in untouched(num_classes=3, **settings).class_heads:
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 0.01))


@pytest.mark.parametrize(
    ("settings", "heads", "with_a_size"), [({}, 1, 1), (REFINED, 3, 1), (TWO_STAGE, 4, 0)]
)
def test_a_box_starts_at_its_reference(settings: dict, heads: int, with_a_size: int) -> None:
    net = untouched(**settings)
    assert len(net.box_heads) == len(net.class_heads) == heads
    for index, head in enumerate(net.box_heads):
        assert not head.layers[-1].weight.any()
        size = -2.0 if index < with_a_size else 0.0
        assert head.layers[-1].bias.tolist() == [0.0, 0.0, size, size]
    memory = remember(net.eval())
    queries = net.queries(memory)
    boxes = net.decode(memory, queries).boxes
    start = queries.with_reference_dim(4).reference.expand(3, -1, -1, -1)
    torch.testing.assert_close(boxes, start, atol=1e-4, rtol=0)


def test_heads_of_all_layers_start_equal_and_are_not_shared() -> None:
    net = untouched(**REFINED)
    first, last = net.box_heads[0].layers[0], net.box_heads[-1].layers[0]
    assert torch.equal(first.weight, last.weight)
    assert first.weight is not last.weight


def test_two_stage_without_refinement_is_refused() -> None:
    with pytest.raises(ValueError, match="two_stage=true needs box_refine=true"):
        untouched(two_stage=True)


# ------------------------------------------------------------------------- queries


def test_one_stage_queries_are_the_same_for_every_picture() -> None:
    net = tiny_net().eval()
    queries = net.queries(remember(net))
    for tensor in (queries.content, queries.position, queries.reference):
        assert tensor.shape[:2] == (2, 12)
        assert torch.equal(tensor[0], tensor[1])
    assert queries.reference.shape[-1] == net.reference_dim == 2
    assert ((queries.reference > 0) & (queries.reference < 1)).all()


def test_two_stage_queries_are_the_best_proposals_of_each_picture() -> None:
    net = tiny_net(**TWO_STAGE).eval()
    memory = remember(net)
    proposals, queries = memory.proposals, net.queries(memory)
    assert proposals is not None
    assert queries.reference.shape == (2, 12, 4) and net.reference_dim == 4
    for picture in range(2):
        valid = proposals.valid[picture]
        best = proposals.logits[picture, valid, 0].argsort(descending=True)[:12]
        torch.testing.assert_close(
            queries.reference[picture], proposals.boxes[picture, valid][best]
        )
    assert not torch.allclose(queries.content[0], queries.content[1])


def test_mixed_queries_stand_at_the_proposals_with_learnt_content() -> None:
    net = tiny_net(**MIXED).eval()
    memory = remember(net)
    queries = net.queries(memory)
    assert net.content_embed is not None
    assert (queries.content == net.content_embed.weight).all()
    assert not torch.equal(queries.position[0], queries.position[1])
    assert not torch.equal(queries.reference[0], queries.reference[1])


def test_mixed_queries_without_proposals_are_refused() -> None:
    with pytest.raises(ValueError, match="mixed_queries=true needs two_stage=true"):
        untouched(**REFINED, mixed_queries=True)


def test_two_stage_references_carry_no_gradient() -> None:
    net = tiny_net(**TWO_STAGE)
    assert not net.queries(remember(net)).reference.requires_grad


def test_proposals_on_padding_or_at_the_border_are_never_chosen() -> None:
    net = tiny_net(**TWO_STAGE, num_queries=6).eval()
    memory = remember(net)
    proposals = memory.proposals
    assert proposals is not None and not proposals.valid.all()
    nothing = ~proposals.valid.unsqueeze(-1)
    tempting = replace(
        proposals,
        logits=proposals.logits.masked_fill(nothing, 50.0),
        boxes=proposals.boxes.masked_fill(nothing, 1.0),
    )
    queries = net.queries(replace(memory, proposals=tempting))
    assert (queries.reference < 1.0).all()
    assert torch.equal(queries.reference, net.queries(memory).reference)


def test_more_queries_than_tokens_are_refused_with_both_numbers() -> None:
    net = tiny_net(**TWO_STAGE, num_queries=500).eval()
    memory = remember(net)
    tokens = memory.tokens.shape[1]
    with pytest.raises(ValueError, match=rf"num_queries=500 .* only {tokens} tokens"):
        net.queries(memory)


def test_proposals_of_a_padded_picture_lie_on_the_picture() -> None:
    net = untouched(**TWO_STAGE).eval()  # boxes start at their anchors
    memory = net.encode(net.extract(images((64, 96), (128, 192))))
    proposals = memory.proposals
    assert proposals is not None and memory.padding is not None
    assert not (proposals.valid & memory.padding).any()
    size = [0.05 * 2**level for level, (h, w) in enumerate(memory.shapes) for _ in range(h * w)]
    for picture in range(2):
        valid = proposals.valid[picture]
        boxes = proposals.boxes[picture, valid]
        assert ((boxes[:, :2] > 0) & (boxes[:, :2] < 1)).all()
        want = torch.tensor(size)[valid].unsqueeze(1).expand(-1, 2)
        torch.testing.assert_close(boxes[:, 2:], want, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("settings", [{}, REFINED, TWO_STAGE, MIXED])
def test_the_order_of_queries_is_the_order_of_results(settings: dict) -> None:
    net = tiny_net(**settings).eval()
    memory, queries = remember(net), foreign(net, 9)
    order = torch.stack([torch.randperm(9), torch.randperm(9)])
    have = net.decode(memory, queries.select(order))
    want = net.decode(memory, queries)
    for name in ("hidden", "logits", "boxes"):
        for picture in range(2):
            torch.testing.assert_close(
                getattr(have, name)[:, picture],
                getattr(want, name)[:, picture, order[picture]],
                atol=1e-5,
                rtol=1e-4,
            )


@pytest.mark.parametrize("dim", [2, 4])
@pytest.mark.parametrize("settings", [{}, REFINED])
def test_any_number_of_queries_with_either_reference_can_be_decoded(
    settings: dict, dim: int
) -> None:
    net = tiny_net(**settings).eval()
    decoded = net.decode(remember(net), foreign(net, 31).with_reference_dim(dim))
    assert decoded.hidden.shape == (2, 2, 31, 32)
    assert decoded.logits.shape == (2, 2, 31, 1)
    assert ((decoded.boxes > 0) & (decoded.boxes < 1)).all()


def test_refined_boxes_start_from_those_of_the_layer_before() -> None:
    net = tiny_net(**REFINED).eval()
    memory = remember(net)
    decoded = net.decode(memory, net.queries(memory))
    delta = net.box_heads[1](decoded.hidden[1])
    want = (inverse_sigmoid(decoded.boxes[0]) + delta).sigmoid()
    torch.testing.assert_close(decoded.boxes[1], want)


def test_without_refinement_every_layer_starts_from_the_reference() -> None:
    net = tiny_net().eval()
    memory = remember(net)
    queries = net.queries(memory)
    decoded = net.decode(memory, queries)
    for layer in range(2):
        delta = net.box_heads[0](decoded.hidden[layer])
        centre = (inverse_sigmoid(queries.reference) + delta[..., :2]).sigmoid()
        torch.testing.assert_close(decoded.boxes[layer, ..., :2], centre)
        torch.testing.assert_close(decoded.boxes[layer, ..., 2:], delta[..., 2:].sigmoid())


def test_a_layer_is_not_trained_through_the_box_that_a_later_one_refines() -> None:
    net = tiny_net(**REFINED)
    memory = remember(net)
    decoded = net.decode(memory, net.queries(memory))
    (through_box,) = torch.autograd.grad(
        decoded.boxes[1].sum(), [net.box_heads[0].layers[-1].weight]
    )
    assert not through_box.any()


def test_a_reference_looks_at_the_picture_and_not_at_the_padded_square() -> None:
    # The same relative place of two pictures of different size in one batch.
    net = tiny_net().eval()
    with torch.no_grad():
        for layer in net.decoder:
            layer.cross_attention.sampling_offsets.bias.zero_()
    pictures = images((64, 128), (128, 256))
    memory = net.encode(net.extract(pictures))
    torch.testing.assert_close(
        memory.valid_ratios, torch.tensor([0.5, 1.0]).view(2, 1, 1).expand(2, 4, 2)
    )
    queries = foreign(net, 5)
    decoded = net.decode(memory, queries)
    alone = net.encode(net.extract(Images(pictures.pixels[:1, :, :64, :128], [(64, 128)])))
    first = Queries(queries.content[:1], queries.position[:1], queries.reference[:1])
    torch.testing.assert_close(
        decoded.logits[:, :1], net.decode(alone, first).logits, atol=1e-4, rtol=1e-4
    )


# ------------------------------------------------------------------------- context


def decode_masked(
    net: DeformableDETR, memory: Memory, queries: Queries, hidden_from: Tensor
) -> Decoded:
    """One decoder run in which query i does not see query j where ``hidden_from[i, j]``."""
    content, reference = queries.content, queries.reference
    hidden, logits, boxes = [], [], []
    for index, layer in enumerate(net.decoder):
        where = content + queries.position
        seen, _ = nn.MultiheadAttention.forward(
            layer.self_attention, where, where, content, attn_mask=hidden_from
        )
        content = layer.self_norm(content + seen)
        ratio = memory.valid_ratios.unsqueeze(1).repeat(1, 1, 1, reference.shape[-1] // 2)
        read = DeformableAttention.forward(
            layer.cross_attention,
            content + queries.position,
            reference.unsqueeze(2) * ratio,
            memory.tokens,
            memory.shapes,
            memory.padding,
        )
        content = layer.ffn(layer.cross_norm(content + read))
        head = index if net.box_refine else 0
        delta, start = net.box_heads[head](content), inverse_sigmoid(reference)
        start = start if start.shape[-1] == 4 else nn.functional.pad(start, (0, 2))
        hidden.append(content)
        logits.append(net.class_heads[head](content))
        boxes.append((start + delta).sigmoid())
        reference = boxes[-1].detach() if net.box_refine else reference
    return Decoded(torch.stack(hidden), torch.stack(logits), torch.stack(boxes))


@pytest.mark.parametrize("settings", [{}, REFINED, TWO_STAGE, MIXED])
def test_a_context_is_a_one_way_attention_mask(settings: dict) -> None:
    net = tiny_net(**settings).eval()
    memory, own, others = remember(net), foreign(net, 7), foreign(net, 5)
    decoded = net.decode(memory, own)
    with_context = net.decode(memory, others, Context(own, decoded))

    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[:7, 7:] = True  # own ones do not see the others
    both = decode_masked(net, memory, Queries.cat([own, others]), mask)
    for name in ("hidden", "logits", "boxes"):
        first, second = getattr(both, name).split([7, 5], dim=2)
        torch.testing.assert_close(getattr(decoded, name), first, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(getattr(with_context, name), second, atol=1e-5, rtol=1e-4)


def test_without_a_context_nothing_is_seen_of_other_queries() -> None:
    net = tiny_net().eval()
    memory, own, others = remember(net), foreign(net, 7), foreign(net, 5)
    alone = net.decode(memory, others)
    seeing = net.decode(memory, others, Context(own, net.decode(memory, own)))
    assert (alone.hidden - seeing.hidden).abs().max() > 1e-2


# ------------------------------------------------------------------------- training


@pytest.mark.parametrize("settings", [{}, REFINED, TWO_STAGE, MIXED, {"num_classes": 3}])
def test_every_parameter_takes_part(settings: dict) -> None:
    # A parameter without a gradient would stop DistributedDataParallel.
    net = tiny_net(**settings)
    memory = remember(net)
    decoded = net.decode(memory, net.queries(memory))
    loss = decoded.logits.sum() + decoded.boxes.sum()
    if memory.proposals is not None:
        loss = loss + memory.proposals.logits.sum() + memory.proposals.boxes.sum()
    loss.backward()
    without = [name for name, p in net.named_parameters() if p.grad is None]
    assert not without


def test_dropout_is_active_in_training_alone() -> None:
    net = tiny_net(dropout=0.5)
    pictures = images()

    def logits() -> Tensor:
        memory = net.encode(net.extract(pictures))
        return net.decode(memory, net.queries(memory)).logits

    net.train()
    assert not torch.equal(logits(), logits())
    net.eval()
    assert torch.equal(logits(), logits())


@pytest.mark.parametrize("settings", [{}, TWO_STAGE])
def test_mixed_precision_stays_near_single_precision(settings: dict) -> None:
    net, pictures = tiny_net(**settings).eval(), images((64, 96), (96, 64))
    memory = net.encode(net.extract(pictures))
    queries = foreign(net, 9)
    want = net.decode(memory, queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net.encode(net.extract(pictures))
        have = net.decode(half, queries)
        own = net.queries(half)
    assert have.boxes.dtype == torch.float32
    if not settings:  # learnt references are places, which a half rounds to 1/512 of the picture
        assert torch.equal(own.reference, net.queries(memory).reference)
    torch.testing.assert_close(have.boxes, want.boxes, atol=0.05, rtol=0)
    assert own.reference.isfinite().all()


@pytest.mark.parametrize("settings", [{}, TWO_STAGE])
def test_boxes_are_computed_in_single_precision(settings: dict) -> None:
    net, given = tiny_net(**settings).eval(), []
    for head in net.box_heads:
        head.register_forward_hook(lambda _head, _tokens, out: given.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = net.encode(net.extract(images((64, 96))))
        net.decode(memory, net.queries(memory))
    assert set(given) == {torch.float32}


# ------------------------------------------------------------------------- inverse sigmoid


def test_the_inverse_sigmoid_undoes_the_sigmoid() -> None:
    x = torch.linspace(-8, 8, 33)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x, atol=1e-3, rtol=0)
    assert torch.tensor(DEFAULT_REFERENCE_SIZE).logit().item() == pytest.approx(-2.0, abs=1e-6)


def test_the_inverse_sigmoid_is_finite_at_the_ends_and_beyond() -> None:
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    limit = math.log(1e-5)
    torch.testing.assert_close(ends, torch.tensor([limit, limit, -limit, -limit]))
