"""Hard masks of lesions and attention masks of queries; TFD's soft one is tested with TFD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from v2idetr.distillation.spatial_masks import attended_queries, attention_mask, box_mask
from v2idetr.modeling.interface import Decoded


def boxes(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 4)


def answers(hidden: Tensor, where: Tensor) -> Decoded:
    """Decoded queries (L, B, N, d) with boxes (L, B, N, 4)."""
    return Decoded(hidden, torch.zeros(*hidden.shape[:3], 1), where)


# ------------------------------------------------------------------------- boxes


def test_a_box_selects_the_cells_whose_centre_lies_in_it() -> None:
    mask = box_mask(boxes((20, 10, 110, 60)), 32, 3, 5)
    # in cells: x from 0.625 to 3.44, y from 0.31 to 1.875; centres 1.5, 2.5 and 0.5, 1.5
    want = torch.zeros(3, 5)
    want[0:2, 1:3] = 1.0
    assert torch.equal(mask, want)


def test_boxes_that_overlap_select_the_cells_of_either() -> None:
    both = box_mask(boxes((0, 0, 64, 64), (32, 32, 96, 96)), 32, 3, 4)
    assert both.sum() == 4 + 4 - 1 and both.max() == 1.0


def test_a_box_between_cell_centres_selects_the_cell_it_lies_in() -> None:
    mask = box_mask(boxes((417.0, 307.5, 449.0, 332.5)), 64, 13, 17)
    assert mask[320 // 64, 433 // 64] == 1.0 and mask.sum() == 1.0


def test_without_boxes_nothing_is_selected() -> None:
    mask = box_mask(boxes(), 32, 3, 5)
    assert mask.shape == (3, 5) and not mask.any()


# ------------------------------------------------------------------------- queries


def test_a_query_weighs_its_score_times_its_iou_with_the_lesion() -> None:
    # The first query's box is the lesion, the second one covers half of it, the third none.
    where = boxes((0.5, 0.5, 0.4, 0.4), (0.4, 0.5, 0.2, 0.4), (0.1, 0.1, 0.1, 0.1)).view(1, 1, 3, 4)
    hidden = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]).view(1, 1, 3, 2)
    scores = torch.tensor([0.5, 0.8, 0.9]).view(1, 1, 3, 1)
    have = attended_queries(answers(hidden, where), scores, [boxes((0.5, 0.5, 0.4, 0.4))])
    torch.testing.assert_close(have, torch.tensor([[[0.5 * 1.0, 0.8 * 0.5]]]))


def test_the_lesion_that_a_query_covers_best_counts() -> None:
    where = boxes((0.5, 0.5, 0.4, 0.4)).view(1, 1, 1, 4)
    lesions = boxes((0.1, 0.1, 0.1, 0.1), (0.5, 0.5, 0.4, 0.4), (0.6, 0.6, 0.4, 0.4))
    hidden, scores = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.7]]]])
    have = attended_queries(answers(hidden, where), scores, [lesions])
    torch.testing.assert_close(have, torch.tensor([[[0.7, 0.0]]]))


def test_without_a_lesion_a_query_weighs_its_score_alone() -> None:
    where = boxes((0.5, 0.5, 0.4, 0.4)).view(1, 1, 1, 4)
    hidden, scores = torch.tensor([[[[0.0, 5.0]]]]), torch.tensor([[[[0.7]]]])
    have = attended_queries(answers(hidden, where), scores, [boxes()])
    torch.testing.assert_close(have, torch.tensor([[[0.0, 0.7]]]))


def test_the_hundred_best_pairs_of_query_and_class_take_part() -> None:
    L, B, N, K, d = 2, 3, 80, 2, 4
    hidden, where = torch.randn(L, B, N, d), torch.rand(L, B, N, 4) * 0.5 + 0.2
    scores = torch.rand(L, B, N, K)
    have = attended_queries(answers(hidden, where), scores, [boxes()] * B)
    for layer in range(L):
        for image in range(B):
            pairs = [(scores[layer, image, n, k].item(), n) for n in range(N) for k in range(K)]
            want = torch.zeros(d)
            for score, n in sorted(pairs, reverse=True)[:100]:
                want += score * hidden[layer, image, n] / hidden[layer, image, n].norm()
            torch.testing.assert_close(have[layer, image], want, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------- attention


def test_attention_is_the_weighted_sum_of_cosines_over_its_maximum() -> None:
    queries, weights = torch.randn(7, 6), torch.rand(7)
    maps = torch.randn(2, 6, 3, 4)
    attended = (weights.unsqueeze(1) * torch.nn.functional.normalize(queries, dim=1)).sum(0)
    have = attention_mask(attended.expand(2, -1), maps, None)
    for image in range(2):
        want = torch.tensor(
            [
                [
                    sum(
                        w * torch.cosine_similarity(q, maps[image, :, y, x], dim=0)
                        for w, q in zip(weights, queries, strict=True)
                    )
                    for x in range(4)
                ]
                for y in range(3)
            ]
        ).clamp(min=0.01)
        torch.testing.assert_close(have[image], want / want.max(), atol=1e-5, rtol=1e-4)


def test_a_teacher_that_looks_for_nothing_attends_to_all_cells_alike() -> None:
    mask = attention_mask(torch.zeros(1, 4), torch.randn(1, 4, 2, 3), None)
    assert torch.equal(mask, torch.ones(1, 2, 3))


def test_padding_is_not_attended_to_and_has_no_part_in_the_maximum() -> None:
    maps = torch.randn(1, 4, 2, 3)
    attended = torch.randn(1, 4)
    alone = attention_mask(attended, maps, None)
    grid = torch.nn.functional.pad(maps, (0, 2, 0, 1))
    grid[:, :, 2:] = grid[:, :, :, 3:] = attended.view(1, 4, 1, 1) * 9.0
    padding = torch.ones(1, 3, 5, dtype=torch.bool)
    padding[:, :2, :3] = False
    padded = attention_mask(attended, grid, padding)
    torch.testing.assert_close(padded[:, :2, :3], alone)
    assert not padded[padding].any()


@pytest.mark.parametrize("lesions", [0, 2])
def test_masks_of_half_precision_networks_are_in_single_precision(lesions: int) -> None:
    hidden, where = torch.randn(1, 1, 5, 4).half(), (torch.rand(1, 1, 5, 4) * 0.5 + 0.2).half()
    scores = torch.rand(1, 1, 5, 1)
    lesion = torch.rand(lesions, 4) * 0.5 + 0.2
    attended = attended_queries(answers(hidden, where), scores, [lesion])
    assert attended.dtype == torch.float32
    assert attention_mask(attended[0], torch.randn(1, 4, 2, 2).half(), None).dtype == torch.float32
