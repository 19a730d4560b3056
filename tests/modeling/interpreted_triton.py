"""The Triton kernels in Triton's interpreter; run by test_deformable_triton.py, not collected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.modeling.attention_cases import (
    CASES,
    assert_same_read,
    outputs_and_gradients,
    textbook_read,
)
from v2idetr.modeling.deformable_triton import read_triton


@pytest.fixture(params=[False, True], ids=["atomic", "deterministic"])
def _mode(request: pytest.FixtureRequest):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("_mode")
@pytest.mark.parametrize("case", CASES)
def test_reads_and_gradients_are_those_of_grid_sample(case: str) -> None:
    assert_same_read(
        outputs_and_gradients(read_triton, case), outputs_and_gradients(textbook_read, case)
    )


def test_double_precision_stays_double() -> None:
    case = "four levels, several images"
    have = outputs_and_gradients(read_triton, case, dtype=torch.float64)
    want = outputs_and_gradients(textbook_read, case, dtype=torch.float64)
    for name in want:
        torch.testing.assert_close(have[name], want[name], atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("_mode")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_location_that_is_not_finite_spoils_its_row_alone(bad: float) -> None:
    value = torch.randn(1, 4, 1, 3, requires_grad=True)
    locations = torch.full((1, 2, 1, 1, 1, 2), 0.5)
    locations[0, 0, 0, 0, 0, 0] = bad
    out = read_triton(value, [(2, 2)], locations, torch.ones(1, 2, 1, 1, 1))
    assert out[0, 0].isnan().all() and out[0, 1].isfinite().all()
    (grad,) = torch.autograd.grad(out, value, torch.ones_like(out))
    torch.testing.assert_close(grad, torch.full_like(grad, 0.25))


def test_inputs_in_any_memory_order_are_read() -> None:
    value = torch.randn(2, 3, 6, 5).permute(0, 2, 1, 3)  # (2, 6, 3, 5), not contiguous
    locations = torch.rand(4, 2, 3, 1, 2, 2).transpose(0, 1)
    weights = torch.rand(4, 2, 3, 1, 2).transpose(0, 1)
    torch.testing.assert_close(
        read_triton(value, [(2, 3)], locations, weights),
        textbook_read(value, [(2, 3)], locations, weights),
    )


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    value, weights = torch.randn(1, 4, 1, 2), torch.rand(1, 3, 1, 1, 1)
    locations = torch.rand(1, 3, 1, 1, 1, 2, requires_grad=True)
    read_triton(value, [(2, 2)], locations, weights).sum().backward()
    assert value.grad is None and locations.grad is not None


def test_no_query_gives_an_empty_read() -> None:
    value = torch.randn(1, 4, 2, 3, requires_grad=True)
    locations = torch.zeros(1, 0, 2, 1, 1, 2)
    out: Tensor = read_triton(value, [(2, 2)], locations, locations[..., 0])
    assert out.shape == (1, 0, 6)
    (grad,) = torch.autograd.grad(out.sum(), value)
    assert not grad.any()
