"""The deformable read: where it looks, that all implementations agree, and how it starts."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.modeling.attention_cases import CASES, assert_same_read, textbook_read
from tests.modeling.attention_cases import outputs_and_gradients as gradients_of_case
from v2idetr.modeling import deformable_attention
from v2idetr.modeling.deformable_attention import (
    DeformableAttention,
    Implementation,
    deformable_read,
    implementation,
    reading_with,
)

ON_CPU: tuple[Implementation, ...] = ("numba", "grid_sample", "gather")


@pytest.fixture(params=[*ON_CPU, "compiled"])
def how(request: pytest.FixtureRequest) -> Implementation:
    if request.param == "compiled":
        pytest.importorskip("torch_ms_deform_attn", reason="torch-ms-deform-attn not installed")
    return request.param


def read_one_point(table: Tensor, x: float, y: float, how: Implementation) -> float:
    """One read at (x, y) in [0, 1] of an (h, w) table."""
    h, w = table.shape
    value = table.reshape(1, h * w, 1, 1).expand(-1, -1, -1, 8).contiguous()
    location = torch.tensor([x, y]).view(1, 1, 1, 1, 1, 2)
    read = deformable_read(value, [(h, w)], location, torch.ones(1, 1, 1, 1, 1), how)
    return read[0, 0, 0].item()


# ------------------------------------------------------------------------- where a read looks


def test_a_cell_centre_reads_that_cell(how: Implementation) -> None:
    table = torch.arange(35.0).view(5, 7)
    for y in range(5):
        for x in range(7):
            read = read_one_point(table, (x + 0.5) / 7, (y + 0.5) / 5, how)
            assert read == pytest.approx(table[y, x].item(), abs=1e-4)


def test_one_over_width_further_reads_the_next_cell(how: Implementation) -> None:
    table = torch.arange(35.0).view(5, 7)
    right = read_one_point(table, 2.5 / 7 + 1 / 7, 1.5 / 5, how)
    below = read_one_point(table, 2.5 / 7, 1.5 / 5 + 1 / 5, how)
    assert right == pytest.approx(table[1, 3].item(), abs=1e-4)
    assert below == pytest.approx(table[2, 2].item(), abs=1e-4)


def test_a_corner_of_ones_reads_a_quarter(how: Implementation) -> None:
    for corner in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        assert read_one_point(torch.ones(4, 6), *corner, how) == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("where", [-5.0, 7.0, -1e9, 1e9, -1e30, 1e30])
def test_outside_of_the_picture_there_are_zeros(how: Implementation, where: float) -> None:
    table = torch.ones(4, 6)
    assert read_one_point(table, where, 0.5, how) == 0.0
    assert read_one_point(table, 0.5, where, how) == 0.0


def test_levels_do_not_bleed_into_each_other(how: Implementation) -> None:
    shapes = [(3, 4), (2, 2)]
    value = torch.cat([torch.ones(1, 12, 1, 8), torch.full((1, 4, 1, 8), 100.0)], 1)
    edge = torch.tensor([0.875, 1.0]).expand(1, 1, 1, 2, 1, 2)  # last row, half outside
    first = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2, 1)
    assert deformable_read(value, shapes, edge, first, how)[0, 0, 0].item() == pytest.approx(0.5)


# ------------------------------------------------------------------------- implementations agree


def random_read(
    B: int, N: int, heads: int, points: int, shapes: list[tuple[int, int]], reach: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations between -reach and 1 + reach, and weights that are softmaxed."""
    generator = torch.Generator().manual_seed(seed)
    S = sum(h * w for h, w in shapes)
    value = torch.randn(B, S, heads, 8, generator=generator)
    locations = torch.rand(B, N, heads, len(shapes), points, 2, generator=generator)
    weights = torch.rand(B, N, heads, len(shapes), points, generator=generator)
    weights = weights / weights.sum((-1, -2), keepdim=True)
    return value, locations * (1 + 2 * reach) - reach, weights


def outputs_and_gradients(
    inputs: tuple[Tensor, ...], shapes: list[tuple[int, int]], how: Implementation
) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = deformable_read(leaves[0], shapes, leaves[1], leaves[2], how)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


sizes = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)


@pytest.mark.parametrize("how", ["numba", "gather"])
@settings(max_examples=60)
@given(
    B=st.integers(1, 3),
    N=st.integers(1, 9),
    heads=st.integers(1, 4),
    points=st.integers(1, 4),
    shapes=sizes,
    reach=st.sampled_from([0.0, 0.2, 3.0]),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients_equal_those_of_grid_sample(
    how: Implementation,
    B: int,
    N: int,
    heads: int,
    points: int,
    shapes: list[tuple[int, int]],
    reach: float,
    seed: int,
) -> None:
    inputs = random_read(B, N, heads, points, shapes, reach, seed)
    ours = outputs_and_gradients(inputs, shapes, how)
    textbook = outputs_and_gradients(inputs, shapes, "grid_sample")
    for have, want in zip(ours, textbook, strict=True):
        torch.testing.assert_close(have, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_awkward_reads_equal_the_textbook(how: Implementation, case: str) -> None:
    have = gradients_of_case(partial(deformable_read, how=how), case)
    want = gradients_of_case(textbook_read, case)
    if "borders" in case and how != "numba":  # which side of a kink is a matter of the last bit
        del want["grad locations"]
    assert_same_read(have, want)


@pytest.mark.parametrize("how", ["numba", "gather"])
def test_double_precision_passes_gradcheck(how: Implementation) -> None:
    shapes = [(3, 4), (2, 2)]
    inputs = [x.double().requires_grad_() for x in random_read(2, 3, 2, 2, shapes, 0.2, 5)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: deformable_read(value, shapes, locations, weights, how),
        inputs,
    )


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_location_that_is_not_finite_shows_in_its_own_output_alone(
    how: Implementation, number: float
) -> None:
    if how in ("grid_sample", "compiled"):
        pytest.skip("torch and torch-ms-deform-attn decide this themselves")
    locations = torch.tensor([[number, 0.5], [0.5, 0.5]]).view(1, 2, 1, 1, 1, 2)
    read = deformable_read(
        torch.ones(1, 12, 1, 8), [(3, 4)], locations, torch.ones(1, 2, 1, 1, 1), how
    )
    assert read[0, 0].isnan().all()
    assert (read[0, 1] == 1).all()


def test_gradients_are_finite_differences(how: Implementation) -> None:
    # Reads are computed in float32, so the step is large; the read is bilinear between cells, and
    # central differences are exact there.
    shapes = [(3, 4)]
    value, locations, weights = random_read(1, 2, 1, 2, shapes, 0.0, 3)
    cells = torch.tensor([4.0, 3.0])
    fraction = (locations * cells - 0.5) % 1.0
    locations = (locations * cells + 0.5 - fraction) / cells  # halfway between cells
    inputs = [value, locations, weights]
    analytic = outputs_and_gradients((value, locations, weights), shapes, how)[1:]
    gradient = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(1))

    def objective() -> Tensor:
        return (deformable_read(inputs[0], shapes, inputs[1], inputs[2], how) * gradient).sum()

    step = 2.0**-5
    for x, dx in zip(inputs, analytic, strict=True):
        numeric = torch.zeros_like(x)
        for index in range(x.numel()):
            here = x.view(-1)[index].item()
            x.view(-1)[index] = here + step
            above = objective()
            x.view(-1)[index] = here - step
            numeric.view(-1)[index] = (above - objective()) / (2 * step)
            x.view(-1)[index] = here
        torch.testing.assert_close(dx, numeric, atol=1e-3, rtol=1e-3)


def test_eighty_frames_go_through_at_once(how: Implementation) -> None:
    # Implementations with an im2col step of 64 refuse a clip batch of 16 x 5 frames.
    inputs = random_read(80, 3, 2, 2, [(4, 4), (2, 2)], 0.1, 0)
    together = deformable_read(inputs[0], [(4, 4), (2, 2)], inputs[1], inputs[2], how)
    one = [x[77:78] for x in inputs]
    alone = deformable_read(one[0], [(4, 4), (2, 2)], one[1], one[2], how)
    torch.testing.assert_close(together[77:78], alone, atol=1e-6, rtol=0)


def test_half_precision_is_read_in_single_precision(how: Implementation) -> None:
    shapes = [(100, 134)]
    value, locations, weights = random_read(1, 4, 1, 2, shapes, 0.0, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read = deformable_read(value, shapes, locations, weights, how)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, deformable_read(value, shapes, locations, weights, how))


@pytest.mark.parametrize(
    ("device", "works", "deterministic", "want"),
    [
        ("cpu", {"numba", "triton", "compiled"}, False, "numba"),
        ("cpu", {"triton", "compiled"}, True, "grid_sample"),
        ("cuda", {"numba"}, False, "grid_sample"),
        ("cuda", {"numba", "compiled"}, False, "compiled"),
        ("cuda", {"numba", "compiled"}, True, "gather"),
        ("cuda", {"numba", "compiled", "triton"}, False, "triton"),
        ("cuda", {"numba", "compiled", "triton"}, True, "triton"),
        ("mps", {"numba", "triton"}, False, "grid_sample"),
    ],
)
def test_the_default_depends_on_the_device_on_what_works_and_on_determinism(
    monkeypatch: pytest.MonkeyPatch, device: str, works: set[str], deterministic: bool, want: str
) -> None:
    for name in ("numba", "triton", "compiled"):
        monkeypatch.setattr(
            deformable_attention, f"_{name}_works", lambda *_, name=name: name in works
        )
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    assert implementation(device) == want


def test_an_implementation_is_chosen_for_a_block_and_no_longer() -> None:
    default = implementation("cpu")
    with pytest.raises(RuntimeError, match="within"), reading_with("gather"):
        assert implementation("cpu") == implementation("cuda") == "gather"
        raise RuntimeError("within")
    assert implementation("cpu") == default


# ------------------------------------------------------------------------- the module


def fresh(num_levels: int = 4, num_points: int = 4) -> DeformableAttention:
    return DeformableAttention(d=64, num_heads=8, num_levels=num_levels, num_points=num_points)


def test_heads_start_in_eight_compass_directions_one_to_four_cells_away() -> None:
    offsets = fresh().sampling_offsets.bias.detach().view(8, 4, 4, 2)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(compass):
        for point in range(4):
            want = torch.tensor(direction, dtype=torch.float32) * (point + 1)
            torch.testing.assert_close(
                offsets[head, :, point], want.expand(4, 2), atol=1e-5, rtol=0
            )


def test_attention_starts_uniform_and_independent_of_the_query() -> None:
    attention = fresh()
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
    assert not attention.attention_weights.bias.any()
    for projection in (attention.value_proj, attention.output_proj):
        assert not projection.bias.any()
        assert projection.weight.abs().max() <= math.sqrt(6 / 128)  # xavier uniform


def tokens_that_tell_their_cell(shapes: list[tuple[int, int]]) -> Tensor:
    """Tokens (1, S, 64) whose first two channels are x and y in cells, the third the level."""
    tokens = []
    for level, (h, w) in enumerate(shapes):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        cell = torch.stack([x, y, torch.full((h, w), level)], -1).view(-1, 3).float()
        tokens.append(torch.cat([cell, torch.zeros(h * w, 61)], 1))
    return torch.cat(tokens).unsqueeze(0)


def transparent(num_levels: int, num_points: int) -> DeformableAttention:
    """Attention whose output is the plain average of what its heads read."""
    attention = DeformableAttention(d=64, num_heads=1, num_levels=num_levels, num_points=num_points)
    for projection in (attention.value_proj, attention.output_proj):
        torch.nn.init.eye_(projection.weight)
    torch.nn.init.zeros_(attention.sampling_offsets.bias)
    return attention


def test_offsets_count_cells_of_each_level_around_a_centre() -> None:
    shapes = [(8, 16), (4, 8)]
    attention = transparent(2, 1)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(torch.tensor([2.0, 1.0, -1.0, 0.0]))
        attention.attention_weights.bias.copy_(torch.tensor([50.0, 0.0]))
    centre = torch.tensor([5.5 / 16, 3.5 / 8]).expand(1, 1, 2, 2)
    read = attention(
        torch.zeros(1, 1, 64), centre, tokens_that_tell_their_cell(shapes), shapes, None
    )
    torch.testing.assert_close(read[0, 0, :3], torch.tensor([7.0, 4.0, 0.0]), atol=1e-4, rtol=0)
    with torch.no_grad():
        attention.attention_weights.bias.copy_(torch.tensor([0.0, 50.0]))
    centre = torch.tensor([5.5 / 8, 2.5 / 4]).expand(1, 1, 2, 2)
    read = attention(
        torch.zeros(1, 1, 64), centre, tokens_that_tell_their_cell(shapes), shapes, None
    )
    torch.testing.assert_close(read[0, 0, :3], torch.tensor([4.0, 2.0, 1.0]), atol=1e-4, rtol=0)


def test_offsets_count_half_sizes_of_a_box_over_the_number_of_points() -> None:
    shapes = [(8, 16)]
    attention = transparent(1, 2)
    with torch.no_grad():  # the second point looks 2 / 2 half widths right and half of that up
        attention.sampling_offsets.bias.copy_(torch.tensor([0.0, 0.0, 2.0, -1.0]))
        attention.attention_weights.bias.copy_(torch.tensor([0.0, 50.0]))
    box = torch.tensor([5.5 / 16, 3.5 / 8, 6 / 16, 4 / 8]).expand(1, 1, 1, 4)
    read = attention(torch.zeros(1, 1, 64), box, tokens_that_tell_their_cell(shapes), shapes, None)
    torch.testing.assert_close(read[0, 0, :2], torch.tensor([8.0, 2.0]), atol=1e-4, rtol=0)


def test_padding_contributes_nothing_whatever_it_holds() -> None:
    shapes = [(4, 4), (2, 2)]
    attention = fresh(num_levels=2)
    tokens = torch.randn(1, 20, 64)
    padding = torch.zeros(1, 20, dtype=torch.bool)
    padding[:, [3, 7, 11, 15, 17, 19]] = True
    query, centre = torch.randn(1, 5, 64), torch.rand(1, 5, 1, 2).expand(-1, -1, 2, -1)
    want = attention(query, centre, tokens, shapes, padding)
    other = tokens.masked_fill(padding.unsqueeze(-1), 1e4)
    torch.testing.assert_close(attention(query, centre, other, shapes, padding), want)
    assert not torch.allclose(attention(query, centre, tokens, shapes, None), want)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="divisible by num_heads=7"):
        DeformableAttention(d=64, num_heads=7, num_levels=1, num_points=1)
