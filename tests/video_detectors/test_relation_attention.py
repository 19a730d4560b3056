"""Relation attention, region by region and group by group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from video_detectors.relation_attention import Regions, RelationAttention, geometry, waves

D, GROUPS = 12, 3


def random_regions(count: int, seed: int = 0, *, d: int = D) -> Regions:
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (count, 2)), rng.uniform(2, 40, (count, 2))
    boxes = torch.tensor(np.concatenate([corner, corner + size], 1)).float()
    return Regions(boxes, torch.tensor(rng.normal(size=(count, d))).float())


def random_relation(**settings) -> RelationAttention:
    torch.manual_seed(0)
    relation = RelationAttention(D, num_groups=GROUPS, **settings)
    for parameter in relation.parameters():
        nn.init.normal_(parameter, std=0.5)
    return relation


def embedded_geometry(box: np.ndarray, other: np.ndarray) -> np.ndarray:
    """64 numbers of one pair of boxes."""
    w, h, w2, h2 = (max(b[i + 2] - b[i], 1) for b in (box, other) for i in (0, 1))
    dx = (box[0] + box[2]) / 2 - (other[0] + other[2]) / 2
    dy = (box[1] + box[3]) / 2 - (other[1] + other[3]) / 2
    numbers = [np.log(abs(dx) / w + 1e-3), np.log(abs(dy) / h + 1e-3), np.log(w / w2)]
    numbers.append(np.log(h / h2))
    embedded = []
    for number in numbers:
        angles = [100 * number / 1000 ** (8 * k / 64) for k in range(8)]
        embedded += [np.sin(a) for a in angles] + [np.cos(a) for a in angles]
    return np.array(embedded)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("with_geometry", [True, False])
@torch.no_grad()
def test_regions_take_from_others_as_in_the_formulae(with_geometry: bool) -> None:
    relation = random_relation(geometry=with_geometry)
    regions, others = random_regions(4), random_regions(6, seed=1)
    parts = {name: p.double().numpy() for name, p in relation.named_parameters()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return parts[f"{name}.weight"] @ x + parts[f"{name}.bias"]

    x, y = regions.features.double().numpy(), others.features.double().numpy()
    boxes, theirs = regions.boxes_xyxy_px.double(), others.boxes_xyxy_px.double()
    c = D // GROUPS
    want = np.zeros((4, D))
    for i in range(4):
        for g in range(GROUPS):
            part = slice(g * c, (g + 1) * c)
            logits = []
            for j in range(6):
                logit = linear("query", x[i])[part] @ linear("key", y[j])[part] / np.sqrt(c)
                if with_geometry:
                    pair = embedded_geometry(boxes[i].numpy(), theirs[j].numpy())
                    logit += np.log(max(linear("geometry", pair)[g], 0) + 1e-6)
                logits.append(logit)
            weights = softmax(np.array(logits))
            # As in the released code: features are averaged, then mapped group by group.
            mean = sum(w * features for w, features in zip(weights, y, strict=True))
            want[i, part] = linear("value", mean)[part]
    np.testing.assert_allclose(relation(regions, others), want, atol=1e-3)


def test_geometry_is_finite_for_boxes_without_an_area() -> None:
    boxes = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0 + 1e-6, 9.0], [0.0, 0.0, 500.0, 1.0]]
    )
    numbers = geometry(boxes, boxes)
    assert numbers.isfinite().all()
    assert numbers[0, 0].tolist() == pytest.approx([np.log(1e-3)] * 2 + [0, 0])
    assert waves(numbers[..., 0]).isfinite().all()


def test_a_relation_to_nothing_gives_nothing() -> None:
    relation, regions = random_relation(), random_regions(3)
    assert not relation(regions, regions.first(0)).any()
    assert relation(regions.first(0), regions).shape == (0, D)


def test_regions_are_put_together_and_taken_apart() -> None:
    parts = [random_regions(count, seed=count) for count in (3, 0, 2)]
    for part, again in zip(parts, Regions.cat(parts).split([3, 0, 2]), strict=True):
        assert torch.equal(part.boxes_xyxy_px, again.boxes_xyxy_px)
        assert torch.equal(part.features, again.features)


def test_gradients_reach_every_parameter() -> None:
    relation = random_relation()
    relation(random_regions(4), random_regions(6, seed=1)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in relation.named_parameters())


def test_positions_keep_their_precision_under_autocast() -> None:
    relation, regions = random_relation(), random_regions(4)
    boxes = regions.boxes_xyxy_px
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bias = relation.geometry_bias(boxes, boxes)
        assert relation(regions, regions).isfinite().all()
    assert torch.equal(bias, relation.geometry_bias(boxes, boxes))


def test_a_width_that_has_no_such_groups_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_groups=16 must divide the width d=40"):
        RelationAttention(40, num_groups=16)
