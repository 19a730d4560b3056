"""SAM-DETR as a whole: its queries, its refinement, its levels, and what it does not depend on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import TinyBackbone, make_sample, tiny_sam_detr, tiny_sam_detr_detector
from tests.modeling.sam_levels import sine
from v2idetr.modeling.interface import (
    Context,
    Decoded,
    DetectorNetwork,
    Images,
    Memory,
    Place,
    Queries,
)
from v2idetr.modeling.neck import flatten_levels
from v2idetr.modeling.position import position_maps
from v2idetr.modeling.sam_detr import SAMDETR

VARIANTS = {
    "single_scale": {},
    "classes": {"num_classes": 3},
    "smca": {"smca": True},
    "multi_scale": {"multi_scale": True},
    "multi_scale_smca": {"multi_scale": True, "smca": True},
}
SIZES = [(64, 96), (99, 64), (50, 131), (33, 40)]

variants = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())


def pad(pictures: list[Tensor], divisor: int, *, fill: float = 0.0) -> Images:
    sizes = [(p.shape[1], p.shape[2]) for p in pictures]
    H, W = (-(-max(axis) // divisor) * divisor for axis in zip(*sizes, strict=True))
    pixels = torch.full((len(pictures), 3, H, W), fill)
    for row, picture in zip(pixels, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    return Images(pixels, sizes)


def some_images() -> Images:
    return pad([torch.randn(3, 64, 96), torch.randn(3, 96, 64)], 32)


def remember(net: SAMDETR) -> Memory:
    return net.encode(net.extract(some_images()))


def foreign(n: int, *, B: int = 2, d: int = 32) -> Queries:
    """Queries from elsewhere; their boxes lie on the picture."""
    reference = torch.rand(B, n, 4) * 0.4 + 0.2
    return Queries(torch.randn(B, n, d), torch.randn(B, n, d), reference)


@torch.no_grad()
def run(net: SAMDETR, images: Images) -> Decoded:
    memory = net.encode(net.extract(images))
    return net.decode(memory, net.queries(memory))


def untouched(**settings) -> SAMDETR:
    defaults = {"num_classes": 1, "d": 32, "num_heads": 4, "ffn_dim": 48}
    depth = {"num_encoder_layers": 1, "num_decoder_layers": 3, "num_queries": 10}
    return SAMDETR(backbone=TinyBackbone(), **defaults | depth | settings)


# ------------------------------------------------------------------------- initialisation


def test_every_score_starts_at_one_percent() -> None:
    for head in untouched(num_classes=3).class_heads:
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 0.01))


def test_a_box_starts_at_its_reference() -> None:
    net = untouched().eval()
    for head in net.box_heads:
        assert not head.layers[-1].weight.any()
        assert not head.layers[-1].bias.any()
    memory = remember(net)
    queries = net.queries(memory)
    boxes = net.decode(memory, queries).boxes
    start = queries.reference.expand(3, -1, -1, -1)
    torch.testing.assert_close(boxes, start, atol=1e-5, rtol=0)


def test_heads_of_all_layers_start_equal_and_are_not_shared() -> None:
    net = untouched()
    assert len(net.box_heads) == len(net.class_heads) == 3
    for heads in (net.box_heads, net.class_heads):
        first, last = heads[0].state_dict(), heads[-1].state_dict()
        for name, tensor in first.items():
            assert torch.equal(tensor, last[name])
            assert tensor.data_ptr() != last[name].data_ptr()


def test_salient_points_start_apart() -> None:
    # Zeros, as the constructor of the official layer sets them, would put all points on one spot;
    # the official initialisation of the whole transformer overwrites them.
    for layer in untouched().decoder:
        last = layer.aligner.salient_points.layers[-1]
        limit = math.sqrt(6 / sum(last.weight.shape))
        assert 0.8 * limit < last.weight.abs().max() <= limit
        assert not last.bias.any()


# ------------------------------------------------------------------------- queries


def test_a_query_is_a_learnt_box_and_nothing_else() -> None:
    net = tiny_sam_detr().eval()
    assert isinstance(net, DetectorNetwork)
    queries = net.queries(remember(net))
    assert queries.reference.shape == (2, 12, 4) and net.reference_dim == 4
    want = 1 / (1 + (-net.query_embed.weight).exp())
    torch.testing.assert_close(queries.reference, want.expand(2, -1, -1))
    assert queries.content.shape == queries.position.shape == (2, 12, 32)
    assert not queries.content.any()
    assert not queries.position.any()


@torch.no_grad()
def test_queries_from_elsewhere_bring_content_and_box_but_no_position() -> None:
    net = tiny_sam_detr().eval()
    memory, queries = remember(net), foreign(7)
    decoded = net.decode(memory, queries)
    elsewhere = net.decode(memory, replace(queries, position=torch.randn_like(queries.position)))
    assert torch.equal(decoded.hidden, elsewhere.hidden)
    for name in ("content", "reference"):
        other = net.decode(memory, replace(queries, **{name: getattr(foreign(7), name)}))
        assert (decoded.hidden - other.hidden).abs().max() > 1e-2


def test_what_made_a_position_has_a_gradient_of_zero() -> None:
    # A learnt adapter of another width's positions, under DistributedDataParallel.
    net = tiny_sam_detr()
    queries = foreign(3)
    queries.position.requires_grad_()
    net.decode(remember(net), queries).hidden.sum().backward()
    assert queries.position.grad is not None and not queries.position.grad.any()


def test_a_bare_centre_is_refused() -> None:
    net = tiny_sam_detr()
    with pytest.raises(AssertionError, match="SAM-DETR needs reference boxes"):
        net.decode(remember(net), foreign(3).with_reference_dim(2))


@variants
@torch.no_grad()
def test_the_order_of_queries_is_the_order_of_their_results(settings: dict) -> None:
    net = tiny_sam_detr(**settings).eval()
    memory, queries = remember(net), foreign(7)
    order = torch.stack([torch.randperm(7), torch.randperm(7)])
    decoded, shuffled = net.decode(memory, queries), net.decode(memory, queries.select(order))
    for b in range(2):
        for name in ("hidden", "logits", "boxes"):
            have, want = getattr(shuffled, name)[:, b], getattr(decoded, name)[:, b, order[b]]
            torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------- refinement


def logit(p: Tensor) -> Tensor:
    return (p / (1 - p)).log()


@torch.no_grad()
def test_every_layer_moves_the_box_of_the_layer_before() -> None:
    net = tiny_sam_detr(num_decoder_layers=4).eval()
    memory, queries = remember(net), foreign(7)
    decoded = net.decode(memory, queries)
    reference = queries.reference
    for index, head in enumerate(net.box_heads):
        want = 1 / (1 + (-logit(reference) - head(decoded.hidden[index])).exp())
        torch.testing.assert_close(decoded.boxes[index], want, atol=1e-5, rtol=0)
        reference = want


@torch.no_grad()
def test_every_layer_looks_where_the_layer_before_put_the_box() -> None:
    net = tiny_sam_detr().eval()
    memory, queries = remember(net), foreign(7)
    decoded = net.decode(memory, queries)
    seen = []
    net.decoder[1].register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    net.decode(memory, queries)
    content, place = seen[0]
    assert torch.equal(content, decoded.hidden[0])
    assert torch.equal(place.reference, decoded.boxes[0])


def test_a_layer_is_not_trained_through_the_box_that_a_later_one_refines() -> None:
    net = tiny_sam_detr(smca=True)
    memory = remember(net)
    decoded = net.decode(memory, net.queries(memory))
    (through_box,) = torch.autograd.grad(
        decoded.boxes[1].sum(), [net.box_heads[0].layers[-1].weight]
    )
    assert not through_box.any()


def test_learnt_boxes_are_trained_by_the_first_layer_alone() -> None:
    net = tiny_sam_detr()
    memory = remember(net)
    decoded = net.decode(memory, net.queries(memory))
    for layer, trained in ((0, True), (1, False)):
        (gradient,) = torch.autograd.grad(
            decoded.boxes[layer].sum(), [net.query_embed.weight], retain_graph=True
        )
        assert bool(gradient.any()) is trained


# ------------------------------------------------------------------------- levels


def test_a_single_scale_is_the_last_stage_and_multiple_scales_are_three() -> None:
    for settings, strides in (({}, (32,)), ({"multi_scale": True}, (8, 16, 32))):
        net = tiny_sam_detr(**settings)
        assert net.strides == strides
        assert tuple(remember(net).features.maps) == strides


@pytest.mark.parametrize(("num_layers", "coarsest"), [(3, 1), (6, 2)])
@torch.no_grad()
def test_decoder_layers_read_from_the_coarsest_level_to_the_finest(
    num_layers: int, coarsest: int
) -> None:
    net = tiny_sam_detr(multi_scale=True, num_decoder_layers=num_layers).eval()
    memory, queries = remember(net), foreign(7)
    decoded = net.decode(memory, queries)
    starts = {8: 0, 16: 96 * 96 // 64, 32: 96 * 96 // 64 + 96 * 96 // 256}
    for turn, stride in enumerate((32, 16, 8)):
        tokens = memory.tokens.clone()
        tokens[:, starts[stride] : starts[stride] + 96 * 96 // stride**2] += 3.0
        changed = net.decode(replace(memory, tokens=tokens), queries)
        first = turn * coarsest  # the first layer that reads this level
        assert torch.equal(changed.hidden[:first], decoded.hidden[:first])
        assert not torch.equal(changed.hidden[first], decoded.hidden[first])


def test_layers_that_the_levels_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match=r"each of 3 levels .* net\.num_decoder_layers=4"):
        tiny_sam_detr(multi_scale=True, num_decoder_layers=4)


def test_the_norm_of_the_neck_is_an_option_and_a_misspelt_one_is_refused() -> None:
    def norms(net: SAMDETR) -> list[str]:
        return [name for name, _ in net.neck.named_parameters() if name.startswith("norms")]

    assert norms(tiny_sam_detr()) and not norms(tiny_sam_detr(neck_norm="none"))
    with pytest.raises(ValueError, match=r"net\.neck_norm must be 'group' or 'none', got 'layer'"):
        tiny_sam_detr(neck_norm="layer")


@variants
@torch.no_grad()
def test_tokens_and_references_are_placed_in_one_space(settings: dict) -> None:
    # Two pictures that end inside cells of the levels: 100 x 144 px and 144 x 100 px.
    net = tiny_sam_detr(**settings).eval()
    for stage in [*net.level_embed] if net.multi_scale else []:
        stage.zero_()
    images = pad([torch.randn(3, 144, 100), torch.randn(3, 100, 144)], 32)
    memory = net.encode(net.extract(images))
    for stride, level in zip(net.strides, net._levels(memory), strict=True):
        h, w = level.shape
        places = level.position.view(2, h, w, 32)
        for b, (height, width) in enumerate(images.sizes):
            assert level.image_cells[b].tolist() == pytest.approx([width / stride, height / stride])
            assert level.edge[b].tolist() == [-(-width // stride), -(-height // stride)]
            for row, column in ((0, 0), ((height - 1) // stride, (width - 1) // stride)):
                x, y = (column + 0.5) * stride / width, (row + 0.5) * stride / height
                torch.testing.assert_close(
                    places[b, row, column], sine(x, y, 32), atol=1e-5, rtol=0
                )


# ------------------------------------------------------------------------- encoder


@torch.no_grad()
def test_the_encoder_of_a_single_scale_is_ordinary_attention_over_its_cells() -> None:
    net = tiny_sam_detr(num_encoder_layers=1).eval()
    features = net.extract(pad([torch.randn(3, 64, 128)], 32))
    tokens = features.maps[32].flatten(2).transpose(1, 2)[0]  # (8, d)
    position = flatten_levels(position_maps(features, offset=-0.5))[0][0]
    layer = net.encoder[0]
    weight, bias = layer.attention.in_proj_weight, layer.attention.in_proj_bias
    q, k, v = (
        x @ w.T + b
        for x, w, b in zip(
            (tokens + position, tokens + position, tokens),
            weight.chunk(3),
            bias.chunk(3),
            strict=True,
        )
    )
    heads = [
        (q[:, part] @ k[:, part].T / math.sqrt(8)).softmax(-1) @ v[:, part]
        for part in (slice(i, i + 8) for i in range(0, 32, 8))
    ]
    want = layer.attention_norm(tokens + layer.attention.out_proj(torch.cat(heads, -1)))
    want = layer.ffn(want.unsqueeze(0))
    torch.testing.assert_close(net.encode(features).tokens, want, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------- padding


@pytest.mark.parametrize("divisor", [1, 32, 128])
@variants
def test_a_picture_in_a_batch_gives_what_it_gives_alone(settings: dict, divisor: int) -> None:
    net = tiny_sam_detr(**settings).eval()
    pictures = [torch.randn(3, *size) for size in SIZES]
    together = run(net, pad(pictures, divisor))
    for index, picture in enumerate(pictures):
        alone = run(net, pad([picture], 32))
        for name in ("logits", "boxes", "hidden"):
            have, want = getattr(together, name)[:, index], getattr(alone, name)[:, 0]
            torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_what_the_padding_holds_does_not_matter(norm: str) -> None:
    net = tiny_sam_detr(neck_norm=norm).eval()
    pictures = [torch.randn(3, *size) for size in SIZES]
    black, bright = run(net, pad(pictures, 64)), run(net, pad(pictures, 64, fill=50.0))
    assert torch.equal(black.logits, bright.logits)
    assert torch.equal(black.boxes, bright.boxes)


def test_as_published_results_do_depend_on_padding() -> None:
    net = tiny_sam_detr(isolate_padding=False).eval()
    pictures = [torch.randn(3, 64, 96), torch.randn(3, 128, 160)]
    together, alone = run(net, pad(pictures, 32)), run(net, pad(pictures[:1], 32))
    assert (together.boxes[:, 0] - alone.boxes[:, 0]).abs().max() > 1e-3


# ------------------------------------------------------------------------- context


def decode_masked(net: SAMDETR, memory: Memory, queries: Queries, seen: list[Tensor]) -> Decoded:
    """One decoder run in which query i sees the queries ``seen[i]`` alone."""
    levels = net._levels(memory)
    content, reference = queries.content, queries.reference
    hidden, logits, boxes = [], [], []
    for index, layer in enumerate(net.decoder):
        level = levels[-1 - index * len(levels) // len(net.decoder)]
        attended = torch.cat(
            [
                layer.self_attention(
                    content[:, i : i + 1],
                    Place(content[:, i : i + 1], reference[:, i : i + 1]),
                    (content[:, others], Place(content[:, others], reference[:, others])),
                )
                for i, others in enumerate(seen)
            ],
            1,
        )
        content = layer.self_norm(content + attended)
        read = layer.cross_attention(layer.aligner(content, reference, level), level)
        content = layer.ffn(layer.cross_norm(content + read))
        reference = (logit(reference) + net.box_heads[index](content)).sigmoid()
        hidden.append(content)
        logits.append(net.class_heads[index](content))
        boxes.append(reference)
    return Decoded(torch.stack(hidden), torch.stack(logits), torch.stack(boxes))


@variants
@torch.no_grad()
def test_a_context_is_a_one_way_attention_mask(settings: dict) -> None:
    net = tiny_sam_detr(**settings).eval()
    memory, own, others = remember(net), foreign(4), foreign(3)
    decoded = net.decode(memory, own)
    with_context = net.decode(memory, others, Context(own, decoded))

    seen = [torch.tensor([j for j in range(4) if j != i]) for i in range(4)]
    seen += [torch.tensor([j for j in range(7) if j != i]) for i in range(4, 7)]
    both = decode_masked(net, memory, Queries.cat([own, others]), seen)
    for name in ("hidden", "logits", "boxes"):
        first, second = getattr(both, name).split([4, 3], dim=2)
        torch.testing.assert_close(getattr(decoded, name), first, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(getattr(with_context, name), second, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_queries_that_others_looked_at_are_decoded_as_if_they_had_not() -> None:
    net = tiny_sam_detr().eval()
    memory, own = remember(net), foreign(7)
    before = net.decode(memory, own)
    net.decode(memory, foreign(5), Context(own, before))
    after = net.decode(memory, own)
    for name in ("hidden", "logits", "boxes"):
        assert torch.equal(getattr(before, name), getattr(after, name))


@torch.no_grad()
def test_without_a_context_nothing_is_seen_of_other_queries() -> None:
    net = tiny_sam_detr().eval()
    memory, own, others = remember(net), foreign(7), foreign(5)
    alone = net.decode(memory, others)
    seeing = net.decode(memory, others, Context(own, net.decode(memory, own)))
    assert (alone.hidden - seeing.hidden).abs().max() > 1e-2


# ------------------------------------------------------------------------- training


@variants
def test_every_parameter_takes_part(settings: dict) -> None:
    # A parameter without a gradient would stop DistributedDataParallel.
    model = tiny_sam_detr_detector(**settings).train()
    sum(model([make_sample(0), make_sample(1, size=(96, 64))]).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_pictures_without_a_lesion_train_and_are_detected_in() -> None:
    model, samples = (
        tiny_sam_detr_detector().train(),
        [make_sample(0, lesions=0), make_sample(1, lesions=0)],
    )
    losses = model(samples)
    assert losses["loss_class"].item() > 0
    assert losses["loss_l1"].item() == losses["loss_giou"].item() == 0.0
    sum(losses.values()).backward()
    found = model.eval()(samples)[0]["instances"]
    assert len(found) == 12
    assert found.pred_boxes.tensor.isfinite().all()


def test_losses_and_gradients_of_a_batch_are_those_of_its_pictures() -> None:
    model = tiny_sam_detr_detector(smca=True).train()
    samples = [make_sample(0, size=(64, 96), lesions=2), make_sample(1, size=(128, 160))]
    sum(model(samples, num_boxes=3.0).values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for sample in samples:
        sum(model([sample], num_boxes=3.0).values()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=2e-4, rtol=1e-3)


def test_dropout_is_active_in_training_alone() -> None:
    net = tiny_sam_detr(dropout=0.5)
    pictures = some_images()
    net.train()
    assert not torch.equal(run(net, pictures).logits, run(net, pictures).logits)
    net.eval()
    assert torch.equal(run(net, pictures).logits, run(net, pictures).logits)


@variants
@torch.no_grad()
def test_mixed_precision_stays_near_single_precision(settings: dict) -> None:
    net, pictures = tiny_sam_detr(**settings).eval(), some_images()
    memory, queries = net.encode(net.extract(pictures)), foreign(9)
    want = net.decode(memory, queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        have = net.decode(net.encode(net.extract(pictures)), queries)
    assert have.boxes.dtype == torch.float32
    torch.testing.assert_close(have.boxes, want.boxes, atol=0.05, rtol=0)


@pytest.mark.parametrize(("d", "num_heads"), [(64, 4), (96, 8), (32, 1)])
def test_any_width_and_number_of_heads_fit(d: int, num_heads: int) -> None:
    net = tiny_sam_detr(d=d, num_heads=num_heads, smca=True).eval()
    assert run(net, some_images()).hidden.shape == (2, 2, 12, d)
    assert isinstance(net.decoder[0].aligner.content_gate, nn.Linear)
