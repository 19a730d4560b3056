"""Sine embeddings of positions."""

from __future__ import annotations

import math

import pytest
import torch

from v2idetr.modeling.position import sine_embedding, sine_map


def test_each_coordinate_gives_sines_and_cosines_of_falling_frequency() -> None:
    embedding = sine_embedding(torch.tensor([[0.25, 0.5]]), 4)
    slow = 2 * math.pi / 100  # temperature 10000 to the power 2/4
    want = [
        *(math.sin(math.pi / 2), math.cos(math.pi / 2)),
        *(math.sin(0.25 * slow), math.cos(0.25 * slow)),
        *(math.sin(math.pi), math.cos(math.pi)),
        *(math.sin(0.5 * slow), math.cos(0.5 * slow)),
    ]
    torch.testing.assert_close(embedding, torch.tensor([want]), atol=1e-6, rtol=0)


def test_rows_take_the_first_half_of_the_channels_and_columns_the_second() -> None:
    map_ = sine_map(None, size=(1, 3, 5), d=8, offset=-0.5, device=torch.device("cpu"))
    assert map_.shape == (1, 8, 3, 5)
    assert torch.equal(map_[:, :4], map_[:, :4, :, :1].expand(-1, -1, -1, 5))
    assert torch.equal(map_[:, 4:], map_[:, 4:, :1].expand(-1, -1, 3, -1))


@pytest.mark.parametrize(("offset", "first"), [(0.0, 1 / 5), (-0.5, 0.5 / 5)])
def test_the_offset_decides_whether_centres_or_ends_of_cells_are_embedded(
    offset: float, first: float
) -> None:
    map_ = sine_map(None, size=(1, 3, 5), d=8, offset=offset, device=torch.device("cpu"))
    want = sine_embedding(torch.tensor([first]), 4)
    torch.testing.assert_close(map_[0, 4:, 0, 0], want, atol=1e-5, rtol=0)


def test_positions_are_counted_over_the_picture_without_its_padding() -> None:
    padding = torch.ones(1, 6, 8, dtype=torch.bool)
    padding[:, :3, :5] = False
    device = torch.device("cpu")
    padded = sine_map(padding, size=(1, 6, 8), d=8, offset=-0.5, device=device)
    alone = sine_map(None, size=(1, 3, 5), d=8, offset=-0.5, device=device)
    torch.testing.assert_close(padded[:, :, :3, :5], alone)
    assert padded.isfinite().all()
