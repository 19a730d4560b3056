"""Behaviour of DETR that parity with transformers does not show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import TinyBackbone, make_sample, tiny_detr, tiny_detr_detector
from v2idetr.modeling.detr import DETR
from v2idetr.modeling.interface import Context, Decoded, DetectorNetwork, Images, Memory, Queries
from v2idetr.modeling.neck import flatten_levels
from v2idetr.modeling.position import position_maps

OUTPUTS = ("hidden", "logits", "boxes")


def pad(pictures: list[Tensor], *, divisor: int = 32, fill: float = 0.0) -> Images:
    sizes = [(p.shape[1], p.shape[2]) for p in pictures]
    H, W = (-(-max(axis) // divisor) * divisor for axis in zip(*sizes, strict=True))
    pixels = torch.full((len(pictures), 3, H, W), fill)
    for row, picture in zip(pixels, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    return Images(pixels, sizes)


def remember(net: DETR, *sizes: tuple[int, int]) -> Memory:
    pictures = [torch.randn(3, *size) for size in sizes or ((64, 96), (96, 64))]
    return net.encode(net.extract(pad(pictures)))


def foreign(n: int, *, B: int = 2, d: int = 32) -> Queries:
    """Queries from elsewhere: with content, and references that mean something there."""
    return Queries(torch.randn(B, n, d), torch.randn(B, n, d), torch.rand(B, n, 2))


def run(net: DETR, images: Images) -> Decoded:
    with torch.no_grad():
        memory = net.encode(net.extract(images))
        return net.decode(memory, net.queries(memory))


# ------------------------------------------------------------------------- the network


def test_detr_implements_the_interface() -> None:
    assert isinstance(tiny_detr(), DetectorNetwork)


def test_its_queries_are_a_position_and_nothing_else() -> None:
    net = tiny_detr()
    queries = net.queries(remember(net))
    assert not queries.content.any()
    assert torch.equal(queries.position, net.query_embed.weight.expand(2, -1, -1))
    assert queries.reference.shape == (2, 12, net.reference_dim) and net.reference_dim == 2
    assert (queries.reference == 0.5).all()


def test_it_has_one_level_and_one_logit_more_than_classes() -> None:
    net = tiny_detr(num_classes=3)
    memory = remember(net)
    assert list(memory.features.maps) == [32] and memory.shapes == [(3, 3)]
    decoded = net.decode(memory, net.queries(memory))
    assert decoded.logits.shape == (2, 2, 12, 4) and net.num_logits == 4
    assert ((decoded.boxes > 0) & (decoded.boxes < 1)).all()


def test_the_level_can_be_another_one() -> None:
    net = tiny_detr(strides=(16,))
    assert remember(net).shapes == [(6, 6)]


def test_the_projection_is_bare() -> None:
    net = tiny_detr()
    images = pad([torch.randn(3, 64, 96)])
    want = net.neck.projections[0](net.backbone(images.pixels)["c2"])
    assert torch.equal(net.extract(images).maps[32], want)
    assert not list(net.neck.norms.parameters())


def test_the_outputs_are_the_normalised_stream_and_layers_go_on_with_the_stream_itself() -> None:
    net = tiny_detr().eval()
    nn.init.normal_(net.decoder_norm.weight)
    memory = remember(net)
    queries = net.queries(memory)
    decoded = net.decode(memory, queries)
    assert torch.equal(decoded.hidden, net.decoder_norm(decoded.content))
    assert (decoded.hidden - decoded.content).abs().max() > 0.1
    shallow = tiny_detr(num_decoder_layers=1).eval()
    shallow.load_state_dict(net.state_dict(), strict=False)
    first = shallow.decode(memory, queries)
    assert torch.equal(first.content[0], decoded.content[0])
    shallow.decoder[0].load_state_dict(net.decoder[1].state_dict())
    second = shallow.decode(memory, replace(queries, content=first.content[0]))
    assert torch.equal(second.boxes[0], decoded.boxes[1])


def test_all_layers_share_their_heads() -> None:
    net = tiny_detr().eval()
    decoded = net.decode(memory := remember(net), net.queries(memory))
    for layer in range(2):
        torch.testing.assert_close(decoded.logits[layer], net.class_head(decoded.hidden[layer]))
        boxes = net.box_head(decoded.hidden[layer]).sigmoid()
        torch.testing.assert_close(decoded.boxes[layer], boxes)


def test_weights_start_as_in_the_official_code() -> None:
    net = DETR(backbone=TinyBackbone(), num_classes=1, d=64, num_queries=50, ffn_dim=128)
    for name, parameter in [*net.encoder.named_parameters(), *net.decoder.named_parameters()]:
        if parameter.dim() > 1:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.8 * bound < parameter.abs().max() <= bound, name
    projection = net.neck.projections[0]
    assert projection.bias.any() and projection.weight.abs().max() <= 32**-0.5
    assert net.query_embed.weight.std().item() == pytest.approx(1.0, abs=0.1)


def test_several_levels_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"net\.strides must be one level for DETR, got \[16, 32\]"
    ):
        tiny_detr(strides=(16, 32))


# ------------------------------------------------------------------------- padding


SIZES = [(64, 96), (99, 64), (50, 131), (33, 40)]


@pytest.mark.parametrize("divisor", [1, 32, 128])
def test_a_picture_in_a_batch_gives_what_it_gives_alone(divisor: int) -> None:
    net = tiny_detr().eval()
    pictures = [torch.randn(3, *size) for size in SIZES]
    together = run(net, pad(pictures, divisor=divisor))
    for index, picture in enumerate(pictures):
        alone = run(net, pad([picture]))
        for name in OUTPUTS:
            have, want = getattr(together, name)[:, index], getattr(alone, name)[:, 0]
            torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)


def test_what_the_padding_holds_does_not_matter() -> None:
    net = tiny_detr().eval()
    pictures = [torch.randn(3, *size) for size in SIZES]
    black, bright = run(net, pad(pictures)), run(net, pad(pictures, fill=50.0))
    assert torch.equal(black.logits, bright.logits)
    assert torch.equal(black.boxes, bright.boxes)


def test_as_published_features_do_depend_on_padding() -> None:
    # The reason for isolate_padding: without it this very comparison fails.
    net = tiny_detr(isolate_padding=False).eval()
    pictures = [torch.randn(3, 50, 75), torch.randn(3, 128, 160)]
    together, alone = run(net, pad(pictures)), run(net, pad(pictures[:1], divisor=1))
    assert (together.hidden[:, 0] - alone.hidden[:, 0]).abs().max() > 1e-4


def test_losses_of_a_batch_are_the_mean_of_those_of_its_pictures() -> None:
    detector = tiny_detr_detector().train()
    samples = [make_sample(i, size=s) for i, s in enumerate([(64, 96), (128, 160)])]
    together = detector(samples)
    for name, loss in together.items():
        alone = [detector([sample])[name].item() for sample in samples]
        assert loss.item() == pytest.approx(sum(alone) / 2, rel=1e-4)


# ------------------------------------------------------------------------- queries


def test_the_order_of_queries_is_the_order_of_results() -> None:
    net = tiny_detr().eval()
    memory, queries = remember(net), foreign(9)
    order = torch.stack([torch.randperm(9), torch.randperm(9)])
    have, want = net.decode(memory, queries.select(order)), net.decode(memory, queries)
    for name in OUTPUTS:
        for picture in range(2):
            torch.testing.assert_close(
                getattr(have, name)[:, picture],
                getattr(want, name)[:, picture, order[picture]],
                atol=1e-5,
                rtol=1e-4,
            )


def test_references_are_not_read() -> None:
    net = tiny_detr().eval()
    memory, queries = remember(net), foreign(9)
    moved = replace(queries, reference=queries.reference.flip(1))
    assert torch.equal(net.decode(memory, moved).boxes, net.decode(memory, queries).boxes)


def test_foreign_queries_are_decoded_with_their_content_or_without() -> None:
    given, zero = tiny_detr().eval(), tiny_detr(query_content="zero").eval()
    zero.load_state_dict(given.state_dict())
    memory, queries = remember(given), foreign(9)
    blank = replace(queries, content=torch.zeros_like(queries.content))
    assert torch.equal(zero.decode(memory, queries).hidden, given.decode(memory, blank).hidden)
    assert (given.decode(memory, queries).hidden - given.decode(memory, blank).hidden).any()


# ------------------------------------------------------------------------- context


def decode_masked(net: DETR, memory: Memory, queries: Queries, hidden_from: Tensor) -> Decoded:
    """One decoder run in which query i does not see query j where ``hidden_from[i, j]``."""
    content, position = queries.content, queries.position
    if net.query_content == "zero":
        content = torch.zeros_like(content)
    key = memory.tokens + flatten_levels(position_maps(memory.features, offset=0.0))[0]
    stream = []
    for layer in net.decoder:
        where = content + position
        seen, _ = nn.MultiheadAttention.forward(
            layer.self_attention, where, where, content, attn_mask=hidden_from
        )
        content = layer.self_norm(content + seen)
        read, _ = nn.MultiheadAttention.forward(
            layer.cross_attention,
            content + position,
            key,
            memory.tokens,
            key_padding_mask=memory.padding,
        )
        content = layer.ffn(layer.cross_norm(content + read))
        stream.append(content)
    hidden = net.decoder_norm(torch.stack(stream))
    return Decoded(hidden, net.class_head(hidden), net.box_head(hidden).sigmoid())


@pytest.mark.parametrize("query_content", ["given", "zero"])
def test_a_context_is_a_one_way_attention_mask(query_content: str) -> None:
    net = tiny_detr(query_content=query_content).eval()
    memory, own, others = remember(net), foreign(7), foreign(5)
    decoded = net.decode(memory, own)
    with_context = net.decode(memory, others, Context(own, decoded))

    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[:7, 7:] = True  # own ones do not see the others
    both = decode_masked(net, memory, Queries.cat([own, others]), mask)
    for name in OUTPUTS:
        first, second = getattr(both, name).split([7, 5], dim=2)
        torch.testing.assert_close(getattr(decoded, name), first, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(getattr(with_context, name), second, atol=1e-5, rtol=1e-4)


def test_without_a_context_nothing_is_seen_of_other_queries() -> None:
    net = tiny_detr().eval()
    memory, own, others = remember(net), foreign(7), foreign(5)
    alone = net.decode(memory, others)
    seeing = net.decode(memory, others, Context(own, net.decode(memory, own)))
    assert (alone.hidden - seeing.hidden).abs().max() > 1e-3


# ------------------------------------------------------------------------- training and detections


@pytest.mark.parametrize("lesions", [0, 2])
def test_a_batch_trains_every_parameter_with_and_without_lesions(lesions: int) -> None:
    detector = tiny_detr_detector().train()
    losses = detector([make_sample(0, lesions=lesions), make_sample(1, lesions=0)])
    assert set(losses) == {f"loss_{k}{s}" for k in ("class", "l1", "giou") for s in ("", "_0")}
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name  # DistributedDataParallel waits for all of them
        assert parameter.grad.isfinite().all(), name
    assert detector.net.class_head.bias.grad.abs().sum() > 0


def test_content_that_is_left_out_still_has_a_gradient() -> None:
    # It may come from a layer that translates widths, for which DistributedDataParallel waits.
    net = tiny_detr(query_content="zero")
    queries = foreign(3)
    queries.content.requires_grad_()
    net.decode(remember(net), queries).boxes.sum().backward()
    assert queries.content.grad is not None and not queries.content.grad.any()


def test_dropout_is_active_in_training_alone() -> None:
    net = tiny_detr(dropout=0.5)
    images = pad([torch.randn(3, 64, 96)])
    assert not torch.equal(run(net.train(), images).logits, run(net, images).logits)
    assert torch.equal(run(net.eval(), images).logits, run(net, images).logits)


def test_every_query_is_one_detection() -> None:
    detector = tiny_detr_detector(num_classes=3).eval()
    samples = [make_sample(0), make_sample(1, size=(96, 64))]
    for result, (h, w) in zip(detector(samples), [(64, 96), (96, 64)], strict=True):
        found = result["instances"]
        assert len(found) == 12 and found.image_size == (h, w)
        assert (found.scores[:-1] >= found.scores[1:]).all()
        assert found.pred_classes.max() < 3


def test_mixed_precision_stays_near_single_precision() -> None:
    net, images = tiny_detr().eval(), pad([torch.randn(3, 64, 96), torch.randn(3, 96, 64)])
    want = run(net, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        have = run(net, images)
    assert have.boxes.dtype == torch.float32
    torch.testing.assert_close(have.boxes, want.boxes, atol=0.05, rtol=0)
