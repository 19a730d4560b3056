"""Dropout: the right share, the same mask backwards, repeatable for any number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from v2idetr.modeling import dropout as module
from v2idetr.modeling import numba_kernels
from v2idetr.modeling.dropout import Dropout


def drawn(p: float, *shape: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return Dropout(p)(torch.ones(shape))


@settings(deadline=None, max_examples=25)
@given(p=st.floats(0.01, 0.99), seed=st.integers(0, 2**40))
def test_elements_are_zero_with_the_given_probability_and_the_mean_stays(
    p: float, seed: int
) -> None:
    n = 200_000
    out = drawn(p, n, seed=seed)
    assert torch.isin(out, torch.tensor([0.0, 1 / (1 - p)])).all()
    zeros = (out == 0).float()
    assert abs(float(zeros.double().mean()) - p) < 6 * (p * (1 - p) / n) ** 0.5
    variance_of_pairs = p * p * (1 - p * p) + 2 * p**3 * (1 - p)
    for step in (1, 2, 16, 256, 1024):  # neighbours, and the same channel of the next token
        both = float((zeros[:-step] * zeros[step:]).double().mean())
        assert abs(both - p * p) < 6 * (variance_of_pairs / n) ** 0.5


def test_masks_of_two_calls_are_independent() -> None:
    torch.manual_seed(0)
    first, second = (Dropout(0.5)(torch.ones(100_000)) == 0 for _ in range(2))
    assert abs(float((first & second).float().mean()) - 0.25) < 0.01


def test_torchs_seed_decides_and_any_number_of_threads_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    alone = drawn(0.1, 1000, 37)
    monkeypatch.setattr(numba_kernels, "MIN_WORK_PER_THREAD", 1)
    try:
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(drawn(0.1, 1000, 37), alone)
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(drawn(0.1, 1000, 37, seed=1), alone)


def test_gradients_pass_where_values_passed() -> None:
    x = torch.ones(50, 60, requires_grad=True)
    out = Dropout(0.3)(x)
    out.backward(torch.full((60, 50), 2.0).T)  # not contiguous
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * out.detach())


def test_a_value_that_is_not_finite_is_not_hidden() -> None:
    assert Dropout(0.5)(torch.full((100,), torch.inf)).isnan().any()


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_at_inference_nothing_is_dropped(p: float) -> None:
    x = torch.randn(100)
    assert torch.equal(Dropout(p).eval()(x), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_numbers_are_dropped_by_torch(dtype: torch.dtype) -> None:
    x = torch.ones(1000, dtype=dtype)
    torch.manual_seed(3)
    expected = nn.Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), expected)


def test_without_numba_torch_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_numba_works", lambda: False)
    torch.manual_seed(3)
    expected = nn.Dropout(0.5)(torch.ones(1000))
    assert torch.equal(drawn(0.5, 1000, seed=3), expected)
