"""All ways to read deformable attention agree on a GPU, in outputs and gradients."""

from __future__ import annotations

import os
from functools import partial
from typing import get_args

import pytest
import torch

from tests.modeling.attention_cases import (
    CASES,
    assert_same_read,
    outputs_and_gradients,
    textbook_read,
)
from v2idetr.modeling import deformable_attention

pytestmark = pytest.mark.gpu

EVERYWHERE = {"grid_sample", "gather"}  # plain torch; others may lack a package or a kernel here
NAMES = get_args(deformable_attention.Implementation)


def read_of(name: str, device):
    """One backend; skips where it cannot run on this device."""
    if name == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("Triton needs a GPU (TRITON_INTERPRET=1: its interpreter)")
        from v2idetr.modeling.deformable_triton import read_triton

        return read_triton
    read = partial(deformable_attention.deformable_read, how=name)
    if name not in EVERYWHERE:
        try:
            outputs_and_gradients(read, "one cell", str(device))
        except (ImportError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            pytest.skip(f"{name} does not run on {device}: {error}")
    return read


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", dict.fromkeys([*NAMES, "triton"]))
def test_a_backend_reads_as_grid_sample_on_the_cpu(name: str, case: str, device) -> None:
    have = outputs_and_gradients(read_of(name, device), case, str(device))
    want = outputs_and_gradients(textbook_read, case)
    if "borders" in case:  # which side of a kink is taken there is a matter of the last bit
        del want["grad locations"]
    assert_same_read(have, want)


def test_triton_takes_the_side_of_a_border_that_grid_sample_takes_on_this_device(device) -> None:
    read = read_of("triton", device)
    for case in (name for name in CASES if "borders" in name):
        have = outputs_and_gradients(read, case, str(device))
        assert_same_read(have, outputs_and_gradients(textbook_read, case, str(device)))


def test_tritons_deterministic_gradients_are_the_same_bits_each_time(device) -> None:
    read = read_of("triton", device)
    torch.use_deterministic_algorithms(True)
    first, *others = (
        outputs_and_gradients(read, "c is no power of two", str(device)) for _ in range(5)
    )
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_half_precision_around_a_read_is_read_in_single_precision(device) -> None:
    shapes, inputs = CASES["four levels, several images"]
    value, locations, weights = (x.to(device) for x in inputs)
    want = deformable_attention.deformable_read(value, shapes, locations, weights)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        have = deformable_attention.deformable_read(value, shapes, locations, weights)
    assert have.dtype == torch.float32
    torch.testing.assert_close(have, want)
