"""The data that flows between a detector's steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import tiny_net
from v2idetr.modeling.interface import (
    DEFAULT_REFERENCE_SIZE,
    Context,
    Decoded,
    DetectorNetwork,
    Features,
    Images,
    Memory,
    Queries,
)


def queries(B: int = 2, N: int = 5, d: int = 4, ref: int = 2) -> Queries:
    return Queries(torch.rand(B, N, d), torch.rand(B, N, d), torch.rand(B, N, ref))


# ------------------------------------------------------------------------- padding


def test_a_batch_of_one_size_has_no_padding() -> None:
    images = Images(torch.zeros(2, 3, 64, 96), [(64, 96), (64, 96)])
    assert images.padding(32, 2, 3) is None


@given(h=st.integers(1, 64), w=st.integers(1, 96), stride=st.sampled_from([1, 4, 8, 16, 32, 64]))
def test_a_cell_is_padding_when_no_pixel_of_the_picture_lies_in_it(
    h: int, w: int, stride: int
) -> None:
    images = Images(torch.zeros(2, 3, 64, 96), [(h, w), (64, 95)])
    rows, columns = -(-64 // stride), -(-96 // stride)
    padding = images.padding(stride, rows, columns)
    assert padding is not None
    picture = torch.zeros(rows * stride, columns * stride, dtype=torch.bool)
    picture[:h, :w] = True
    reached = picture.view(rows, stride, columns, stride).any(3).any(1)
    assert torch.equal(padding[0], ~reached)


# ------------------------------------------------------------------------- features and memory


def test_selected_features_are_those_of_the_images_asked_for() -> None:
    maps = {8: torch.rand(4, 2, 3, 5), 16: torch.rand(4, 2, 2, 3)}
    padding = {stride: torch.rand(4, *m.shape[-2:]) > 0.5 for stride, m in maps.items()}
    index = torch.tensor([3, 0])
    some = Features(maps, padding).select(index)
    assert some.padding is not None
    for stride in maps:
        assert torch.equal(some.maps[stride], maps[stride][[3, 0]])
        assert torch.equal(some.padding[stride], padding[stride][[3, 0]])
    assert Features(maps, None).select(index).padding is None


def test_a_level_of_the_memory_is_the_map_of_its_tokens() -> None:
    maps = {8: torch.rand(2, 4, 3, 5), 16: torch.rand(2, 4, 2, 3), 64: torch.rand(2, 4, 1, 1)}
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps.values()], 1)
    shapes = [(m.shape[-2], m.shape[-1]) for m in maps.values()]
    memory = Memory(Features(maps, None), tokens, None, shapes, torch.ones(2, 3, 2))
    for stride, want in maps.items():
        assert torch.equal(memory.level(stride), want)
        assert torch.equal(memory.encoded().maps[stride], want)


# ------------------------------------------------------------------------- queries


def test_selecting_queries_keeps_content_position_and_reference_together() -> None:
    all_of_them = queries()
    index = torch.tensor([[4, 0], [2, 2]])
    some = all_of_them.select(index)
    assert some.num_queries == 2
    for name in ("content", "position", "reference"):
        whole, part = getattr(all_of_them, name), getattr(some, name)
        for image in range(2):
            assert torch.equal(part[image], whole[image, index[image]])


def test_queries_are_joined_one_after_the_other() -> None:
    first, second = queries(N=3), queries(N=2)
    both = Queries.cat([first, second])
    assert both.num_queries == 5
    for name in ("content", "position", "reference"):
        assert torch.equal(getattr(both, name)[:, :3], getattr(first, name))
        assert torch.equal(getattr(both, name)[:, 3:], getattr(second, name))


def test_detached_queries_carry_no_gradient() -> None:
    source = queries()
    for tensor in (source.content, source.position, source.reference):
        tensor.requires_grad_()
    detached = source.detach()
    for tensor in (detached.content, detached.position, detached.reference):
        assert not tensor.requires_grad


def test_a_box_reference_gives_its_centre() -> None:
    source = queries(ref=4)
    assert torch.equal(source.with_reference_dim(2).reference, source.reference[..., :2])


def test_a_centre_becomes_a_box_of_the_size_that_heads_start_from() -> None:
    source = queries(ref=2)
    boxes = source.with_reference_dim(4).reference
    assert torch.equal(boxes[..., :2], source.reference)
    size = torch.tensor(-2.0).sigmoid().expand(2, 5, 2)
    torch.testing.assert_close(boxes[..., 2:], size)
    assert torch.tensor(-2.0).sigmoid().item() == pytest.approx(DEFAULT_REFERENCE_SIZE)


@pytest.mark.parametrize("dim", [2, 4])
def test_references_of_the_right_kind_stay_as_they_are(dim: int) -> None:
    source = queries(ref=dim)
    assert source.with_reference_dim(dim) is source


# ------------------------------------------------------------------------- decoded and context


def test_a_slice_of_decoded_queries_is_a_range_of_them_in_every_layer() -> None:
    decoded = Decoded(torch.rand(3, 2, 7, 4), torch.rand(3, 2, 7, 1), torch.rand(3, 2, 7, 4))
    part = decoded.slice(2, 5)
    for name in ("hidden", "logits", "boxes"):
        assert torch.equal(getattr(part, name), getattr(decoded, name)[:, :, 2:5])


def test_the_decoded_queries_of_some_images_are_theirs_in_every_layer() -> None:
    decoded = Decoded(torch.rand(3, 4, 7, 4), torch.rand(3, 4, 7, 1), torch.rand(3, 4, 7, 4))
    part = decoded.select(torch.tensor([3, 1]))
    for name in ("hidden", "logits", "boxes", "content"):
        assert torch.equal(getattr(part, name), getattr(decoded, name)[:, [3, 1]])


def test_a_context_gives_each_layer_what_the_layer_before_made() -> None:
    source = queries(N=7)
    decoded = Decoded(torch.rand(3, 2, 7, 4), torch.rand(3, 2, 7, 1), torch.rand(3, 2, 7, 4))
    context = Context(source, decoded)
    for layer, content in enumerate([source.content, *decoded.hidden[:2]]):
        before, place = context.layer_input(layer)
        assert torch.equal(before, content) and torch.equal(place.position, source.position)
    assert torch.equal(context.layer_input(0)[1].reference, source.reference)
    assert torch.equal(context.layer_input(2)[1].reference, decoded.boxes[1])


def test_deformable_detr_implements_the_interface() -> None:
    assert isinstance(tiny_net(), DetectorNetwork)
    assert not isinstance(torch.nn.Linear(1, 1), DetectorNetwork)


def test_the_picture_ends_where_its_last_pixel_is() -> None:
    # 144 px are four and a half rows of stride 32, in maps of 5 rows; 160 px of padding or none.
    pictures = Images(torch.zeros(2, 3, 160, 256), [(144, 256), (160, 192)])
    ratios = pictures.valid_ratio(32, 5, 8)
    torch.testing.assert_close(ratios, torch.tensor([[1.0, 0.9], [0.75, 1.0]]))
