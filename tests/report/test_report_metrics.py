"""The table and the sentences claim no more than the metrics show."""

from __future__ import annotations

from typing import Any

import pytest

from v2idetr.report import metrics

STAGES = ("teacher", "plain", "student")


def evaluation_of(ap50: float, found: list[int]) -> dict[str, Any]:
    """An evaluation of videos with ten lesions each, of which some are found."""
    rows = [
        {"split": "easy", "video_id": v, "rules": {"iou50": {"tp": n, "fp": 0, "fn": 10 - n}}}
        for v, n in enumerate(found)
    ]
    size = {"videos": len(found), "frames": 10 * len(found), "lesions": 10 * len(found)}
    rules = {"iou50": {"f1": 0.5, "precision": 0.5, "recall": 0.5}}
    coco = {"AP50": ap50, "AP": ap50 / 2}
    metrics = {**size, "coco": coco, "rules": rules, "per_video": rows, "groups": {}}
    return {"tests": {"easy": metrics}, "all_tests": None, "val": metrics, "cost": None}


@pytest.mark.parametrize(
    ("ap50", "found", "tone", "words"),
    [
        (0.7, [7, 8, 7, 8, 7, 8], "better", "In this run, the V2I student is better"),
        (0.6, [6, 4, 6, 5, 6, 5], "open", "not significantly"),
        (0.5, [5, 5, 5, 5, 5, 5], "open", "not better"),
        (0.3, [2, 3, 2, 3, 2, 3], "worse", "In this run, the V2I student is worse"),
        (0.7, [2, 3, 2, 3, 2, 3], "open", "Mixed"),
        (0.4, [6, 4, 6, 5, 6, 5], "open", "do not differ significantly"),
    ],
)
def test_the_headline_claims_no_more_than_the_metrics_show(
    ap50: float, found: list[int], tone: str, words: str
) -> None:
    plain, student = evaluation_of(0.5, [5] * 6), evaluation_of(ap50, found)
    verdict = metrics.verdict({"plain": plain, "student": student})
    assert verdict.tone == tone
    assert words in verdict.headline
    assert any("another seed" in sentence for sentence in verdict.sentences)


def test_models_that_learned_nothing_are_not_compared() -> None:
    results = {"plain": evaluation_of(0.001, [0, 0]), "student": evaluation_of(0.04, [3, 3])}
    assert metrics.verdict(results).headline == "The students have hardly learned to detect"


def test_a_teacher_that_is_no_better_is_mentioned() -> None:
    results: dict[str, Any] = dict.fromkeys(STAGES, evaluation_of(0.5, [5, 5]))
    sentences = " ".join(metrics.verdict(results).sentences)
    assert "teacher itself is not better" in sentences


def test_models_of_other_videos_are_not_compared_by_f1() -> None:
    plain, student = evaluation_of(0.5, [1, 2, 3]), evaluation_of(0.6, [1, 2])
    sentences = metrics.verdict({"plain": plain, "student": student}).sentences
    assert not any("F1" in sentence for sentence in sentences)


def test_ties_are_all_marked_and_equal_metrics_are_not() -> None:
    results = {
        stage: evaluation_of(ap, [5, 5]) for stage, ap in zip(STAGES, (0.5, 0.7, 0.7), strict=True)
    }
    ranked, counted = metrics.headline_table(results)
    assert [cell.best for cell in ranked.rows[0].cells] == [False, True, True]
    assert not any(cell.best for row in counted.rows for cell in row.cells)
    assert ranked.rows[0].difference == "0.0"


def test_the_table_and_the_sentence_give_one_difference() -> None:
    """46.06 and 40.94 are 46.1 and 40.9: 5.2 as rounded, 5.1 as they are."""
    results = {"plain": evaluation_of(0.4094, [5, 5]), "student": evaluation_of(0.4606, [5, 5])}
    ranked, _ = metrics.headline_table(results)
    assert ranked.rows[0].difference == "+5.1"
    assert "(+5.1 points)" in metrics.verdict(results).sentences[0]


def test_rules_without_a_known_name_keep_theirs() -> None:
    result = evaluation_of(0.5, [5, 5])
    result["val"]["rules"]["pixels"] = result["val"]["rules"]["iou50"]
    titles = [section.title for section in metrics.headline_table({"plain": result})]
    assert titles[-1] == "pixels"
