"""Figures, jumps and matches of a split are those of the evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.review.tiny_review import FOUND, FRAMES, RULES, STAGES, THRESHOLD, VIDEOS
from v2idetr.evaluation.false_alarms import alarms_by_video
from v2idetr.evaluation.lesion_metrics import MATCHERS, match_scores
from v2idetr.evaluation.pool import Pool
from v2idetr.review.judged_split import DUPLICATE, FALSE, HIT, JudgedSplit
from v2idetr.review.run_review import RunReview

TITLES = dict(zip(STAGES, ("Teacher", "Plain student", "V2I student"), strict=True))
PLAIN = TITLES["plain"]


@pytest.fixture(scope="module")
def judged(run_review: RunReview) -> JudgedSplit:
    return run_review.judged(0)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rule", RULES)
def test_metrics_at_the_chosen_threshold_are_those_of_the_evaluation(
    finished_run: Path, judged: JudgedSplit, stage: str, rule: str
) -> None:
    evaluation = json.loads((finished_run / stage / "evaluation.json").read_text())
    threshold = evaluation["thresholds"][rule]
    assert threshold == THRESHOLD
    test = evaluation["tests"]["held_out"]
    for video in range(VIDEOS):
        metrics = judged.metrics(TITLES[stage], rule, threshold, video)
        expected = test["rules"][rule]
        keys = ("tp", "fp", "fn", "precision", "recall", "f1")
        assert {k: metrics["split"][k] for k in keys} == {k: expected[k] for k in keys}
        own = test["per_video"][video]["rules"][rule]
        assert {k: metrics["video"][k] for k in keys} == {k: own[k] for k in keys}


def test_false_alarms_are_runs_of_frames_and_counted_by_the_minute(judged: JudgedSplit) -> None:
    metrics = judged.metrics(PLAIN, "iou50", 0.5, 0)
    assert (metrics["video"]["fp"], metrics["video"]["alarms"]) == (2, 1)
    assert (metrics["split"]["fp"], metrics["split"]["alarms"]) == (3, 2)
    minutes = FRAMES / 25 / 60
    assert metrics["video"]["alarms_a_minute"] == pytest.approx(1 / minutes)
    assert metrics["split"]["alarms_a_minute"] == pytest.approx(2 / (VIDEOS * minutes))


@settings(max_examples=25)
@given(threshold=st.floats(0, 1))
def test_false_alarms_are_those_of_the_deployment_report(
    judged: JudgedSplit, threshold: float
) -> None:
    pool, frames = Pool({"held_out": judged.truth}), judged.frames[PLAIN]
    expected = alarms_by_video(pool, frames, "iou50", threshold)
    for video, video_id in enumerate(judged.video_ids):
        metrics = judged.metrics(PLAIN, "iou50", threshold, video)
        assert metrics["video"]["alarms"] == expected["held_out", video_id]


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.31, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_flagged_frames_are_what_the_metrics_count(judged: JudgedSplit, threshold: float) -> None:
    # A frame has at most one lesion, and at most one box beside it.
    judgement = judged.judgements[PLAIN]["iou50"]
    counts = judged.metrics(PLAIN, "iou50", threshold, 0)["split"]
    assert judgement.flags("miss", threshold).sum() == counts["fn"]
    assert judgement.flags("false", threshold).sum() == counts["fp"]


def test_a_jump_goes_to_the_next_run_of_misses_across_videos_and_around(
    judged: JudgedSplit,
) -> None:
    def miss(at: tuple[int, int], step: int) -> tuple[int, int] | None:
        return judged.jump("miss", PLAIN, "iou50", 0.5, at, step)

    # Missed are frames 2 and 3 of the first video, and frame 0 of the third.
    assert miss((0, 0), 1) == (0, 2)
    assert miss((0, 2), 1) == (2, 0)
    assert miss((2, 0), 1) == (0, 2)
    assert miss((2, 5), -1) == (2, 0)
    assert miss((2, 0), -1) == (0, 2)
    assert miss((0, 3), -1) == (0, 2)
    assert miss((0, 2), -1) == (2, 0)


def test_jumps_follow_the_threshold(judged: JudgedSplit) -> None:
    assert judged.jump("miss", PLAIN, "iou50", 0.25, (0, 0), 1) == (0, 3)
    assert judged.jump("false", PLAIN, "iou50", 0.5, (0, 0), 1) == (0, 4)
    assert judged.jump("false", PLAIN, "iou50", 0.8, (0, 0), 1) == (2, 3)
    assert judged.jump("false", PLAIN, "iou50", 0.15, (0, 4), 1) == (1, 1)


def test_where_nothing_is_false_there_is_nowhere_to_jump(judged: JudgedSplit) -> None:
    assert judged.jump("false", TITLES["teacher"], "iou50", 0.5, (0, 0), 1) is None


def test_events_are_counted_by_video(judged: JudgedSplit) -> None:
    events = judged.events_by_video(PLAIN, "iou50", 0.5)
    assert events == [{"miss": 1, "false": 1}, {"miss": 0, "false": 0}, {"miss": 1, "false": 1}]


def test_a_run_does_not_go_on_in_another_scene(judged: JudgedSplit) -> None:
    records = [{**r, "scene_id": r["frame_index"] // 3} for r in judged.records]
    truth = replace(judged.truth, split=replace(judged.truth.split, records=records))
    own = [frame.prediction for frame in judged.frames[PLAIN]]
    apart = JudgedSplit("held_out", truth, {PLAIN: own})
    assert apart.events_by_video(PLAIN, "iou50", 0.5)[0] == {"miss": 2, "false": 1}


def test_the_page_gets_what_each_detection_is(judged: JudgedSplit) -> None:
    found = judged.detections_of(PLAIN, 0, floor=0.05)
    kinds = [[row[6:] for row in rows] for rows in found["frames"]]
    assert kinds[0] == [[HIT, HIT]]
    assert kinds[4] == [[FALSE, FALSE], [HIT, HIT]]  # the better box is drawn last
    assert kinds[5] == [[FALSE, FALSE]]
    assert found["found"]["iou50"] == [[0.9], [0.9], [0.3], [None], [0.8], []]
    assert [[row[4] for row in rows] for rows in found["frames"]] == [
        sorted(score for score in pair if score is not None) for pair in FOUND["plain"][0]
    ]


def test_scores_below_the_floor_are_not_sent(judged: JudgedSplit) -> None:
    rows = judged.detections_of(PLAIN, 0, floor=0.5)["frames"]
    assert [len(frame) for frame in rows] == [1, 1, 0, 0, 2, 1]


def test_a_second_centre_in_a_lesion_is_a_duplicate_and_a_false_one_by_iou(
    judged: JudgedSplit,
) -> None:
    frame = judged.frames[PLAIN][0]
    prediction = frame.prediction
    twice = replace(
        prediction,
        boxes_xyxy_px=np.repeat(prediction.boxes_xyxy_px, 2, axis=0),
        scores=np.array([0.6, 0.9]),
        classes=np.zeros(2, np.int64),
    )
    frames = [replace(f, prediction=twice) if f is frame else f for f in judged.frames[PLAIN]]
    again = JudgedSplit("held_out", judged.truth, {PLAIN: [f.prediction for f in frames]})
    rows = again.detections_of(PLAIN, 0, floor=0.05)["frames"][0]
    assert [row[4:] for row in rows] == [[0.6, 0, DUPLICATE, FALSE], [0.9, 0, HIT, HIT]]


@pytest.mark.parametrize("rule", RULES)
def test_the_finder_of_a_lesion_is_the_detection_whose_score_counts(
    judged: JudgedSplit, rule: str
) -> None:
    for frame in judged.frames[PLAIN]:
        matches = MATCHERS[rule](frame)
        hits, false = match_scores(frame, matches)
        found = matches.finder >= 0
        assert sorted(hits) == sorted(frame.prediction.scores[matches.finder[found]])
        assert not matches.false[matches.finder[found]].any()
        assert len(hits) + len(false) == len(frame.prediction.scores)
