"""The queue and both losses against numpy, written from the formulae."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from free_lunch.contrast import contrastive_loss, distillation_loss
from free_lunch.key_queue import KeyQueue, check_queue_size, cosine_logits


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@given(st.integers(1, 6), st.integers(0, 9), st.integers(0, 2**31))
def test_both_losses_are_the_formulae(batch: int, keys: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, queue, tq, tk, t_queue = (
        unit(rng, n, 4) for n in (batch, batch, keys, batch, batch, keys)
    )
    student, teacher = (
        np.concatenate([(a * b).sum(1, keepdims=True), a @ c.T], axis=1) / 0.2
        for a, b, c in ((q, k, queue), (tq, tk, t_queue))
    )
    contrast = -np.log(softmax(student)[:, 0]).mean()
    p, s = softmax(teacher), softmax(student)
    divergence = (p * (np.log(p) - np.log(s))).sum(1).mean()

    ours = [
        cosine_logits(*(torch.from_numpy(part) for part in parts)) / 0.2
        for parts in ((q, k, queue), (tq, tk, t_queue))
    ]
    assert float(contrastive_loss(ours[0])) == pytest.approx(contrast, abs=1e-9)
    assert float(distillation_loss(*ours)) == pytest.approx(divergence, abs=1e-9)


def test_an_equal_distribution_costs_nothing_and_any_other_something() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert float(distillation_loss(logits, logits)) == pytest.approx(0, abs=1e-6)
    assert float(distillation_loss(logits, logits.flip(1))) > 0


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 13))
def test_the_queue_holds_the_newest_keys_of_all_encoders_at_one_place(
    batch: int, batches: int, steps: int
) -> None:
    queue = KeyQueue(batch * batches, {"student": 2, "teacher": 3})
    added: list[int] = []
    for step in range(steps):
        images = torch.arange(step * batch, (step + 1) * batch).float()
        added += images.int().tolist()
        queue.enqueue(
            {"student": images[:, None].repeat(1, 2), "teacher": -images[:, None].repeat(1, 3)}
        )
    kept = queue.keys("student")[:, 0].int().tolist()
    assert sorted(kept) == added[-batch * batches :]
    assert (-queue.keys("teacher")[:, 0]).int().tolist() == kept, "the same image at each place"


def test_a_queue_in_a_state_dict_goes_on_where_it_was() -> None:
    queue, again = (KeyQueue(4, {"student": 1}) for _ in range(2))
    queue.enqueue({"student": torch.tensor([[1.0], [2.0]])})
    again.load_state_dict(queue.state_dict())
    for one in (queue, again):
        one.enqueue({"student": torch.tensor([[3.0], [4.0]])})
        one.enqueue({"student": torch.tensor([[5.0], [6.0]])})
    assert again.keys("student").tolist() == queue.keys("student").tolist() == [[5], [6], [3], [4]]


@pytest.mark.parametrize(("size", "nearest"), [(16, 32), (80, 64), (31, 32), (33, 32)])
def test_a_queue_that_a_batch_does_not_fit_is_refused(size: int, nearest: int) -> None:
    with pytest.raises(
        ValueError, match=rf"s\.queue_size is {size}.* p\.batch_size, 32.*={nearest}"
    ):
        check_queue_size(size, 32, key="s.queue_size", batch_key="p.batch_size")
    check_queue_size(64, 32, key="s.queue_size", batch_key="p.batch_size")
