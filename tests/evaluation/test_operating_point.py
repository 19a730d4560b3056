"""Choice of the score threshold: F1, recall, false alarms a minute, false-alert rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.labelled_videos import Frame, labelled, write_videos
from v2idetr.data.ground_truth import read_ground_truth
from v2idetr.evaluation.false_alarms import alarm_steps, alarms_by_video
from v2idetr.evaluation.lesion_metrics import choose_threshold, judge
from v2idetr.evaluation.operating_point import Choice, choose
from v2idetr.evaluation.pool import Pool
from v2idetr.evaluation.results_files import read_results
from v2idetr.evaluation.true_colon_protocol import match_alert_rate

RULE = "endovis_center"
ONE_HZ = {"fps": 1}


def hit(score: float) -> Frame:
    return (True, [("hit", score)])


def wrong(*scores: float) -> Frame:
    return (False, [("wrong", score) for score in scores])


def test_the_highest_f1_is_the_threshold_of_training(tmp_path: Path) -> None:
    pool, frames = labelled(tmp_path, [[hit(0.9), hit(0.6), wrong(0.7), wrong(0.2)]])
    point = choose(Choice(), RULE, pool, frames)
    assert point.threshold == choose_threshold(judge(frames, RULE)) == 0.6
    assert point.reached == pytest.approx(4 / 5) and point.met


def test_a_recall_is_reached_with_as_few_false_alarms_as_possible(tmp_path: Path) -> None:
    pool, frames = labelled(tmp_path, [[hit(0.9), hit(0.6), hit(0.3), wrong(0.7)]])
    point = choose(Choice("recall", 0.6), RULE, pool, frames)
    assert (point.threshold, point.met) == (0.6, True)
    assert point.reached == pytest.approx(2 / 3)


def test_a_recall_out_of_reach_is_said_and_the_highest_is_taken(tmp_path: Path) -> None:
    pool, frames = labelled(tmp_path, [[hit(0.9), (True, [])]])
    point = choose(Choice("recall", 0.9), RULE, pool, frames)
    assert (point.threshold, point.reached, point.met) == (0.9, 0.5, False)
    assert "not reached" in point.remarks[0]


def test_false_alarms_are_runs_of_frames_within_a_scene(tmp_path: Path) -> None:
    videos = [
        [wrong(0.9), wrong(0.8, 0.3), wrong(), wrong(0.5)],  # two alarms; one above 0.5
        [wrong(0.7)],  # does not go on from the video before
    ]
    pool, frames = labelled(tmp_path, videos)
    assert alarms_by_video(pool, frames, RULE, 0.5) == {("test", 1): 2, ("test", 2): 1}
    assert alarms_by_video(pool, frames, RULE, 0.6) == {("test", 1): 1, ("test", 2): 1}


def test_false_alarms_that_are_far_apart_are_two(tmp_path: Path) -> None:
    truth_file, results = write_videos(tmp_path, [[wrong(0.9)] * 6], step=5)
    content = json.loads(truth_file.read_text())
    for image, index in zip(content["images"], (0, 5, 10, 5000, 5005, 5010), strict=True):
        image["frame_index"] = index
    truth_file.write_text(json.dumps(content))
    pool = Pool({"test": read_ground_truth(truth_file)})
    frames = pool.label({"test": read_results(results, pool.truths["test"])})["test"]
    assert alarms_by_video(pool, frames, RULE, 0.5) == {("test", 1): 2}


score_lists = st.lists(
    st.lists(st.sampled_from([None, 0.2, 0.4, 0.6]), min_size=1, max_size=6), min_size=1, max_size=3
)


@settings(max_examples=25)
@given(score_lists)
def test_alarms_at_all_thresholds_agree_with_counting_at_each(tmp_path_factory, lists) -> None:
    videos = [[wrong() if s is None else wrong(s) for s in scores] for scores in lists]
    pool, frames = labelled(tmp_path_factory.mktemp("alarms"), videos)
    thresholds, alarms = alarm_steps(pool, frames, RULE)
    for threshold, number in zip(thresholds, alarms, strict=True):
        assert sum(alarms_by_video(pool, frames, RULE, threshold).values()) == number
        runs = 0
        for scores in lists:
            on = [s is not None and s >= threshold for s in scores]
            runs += sum(a and not b for a, b in zip(on, [False, *on[:-1]], strict=True))
        assert number == runs


def test_a_rate_of_false_alarms_is_kept_with_the_lowest_threshold(tmp_path: Path) -> None:
    # 60 frames at one a second: a minute. Alarms by threshold: 0.9: 1, 0.8: 2, 0.7: 3.
    videos = [[wrong(0.9), wrong(), wrong(0.8), wrong(), wrong(0.7), *[hit(0.75)] * 55]]
    pool, frames = labelled(tmp_path, videos, info=ONE_HZ)
    point = choose(Choice("false_alarms", 2.0), RULE, pool, frames)
    assert (point.threshold, point.reached, point.met) == (0.700001, 2.0, True)
    assert sum(alarms_by_video(pool, frames, RULE, point.threshold).values()) == 2
    nothing = choose(Choice("false_alarms", 0.5), RULE, pool, frames)
    assert (nothing.threshold, nothing.reached) == (0.900001, 0.0) and nothing.remarks
    everything = choose(Choice("false_alarms", 3.0), RULE, pool, frames)
    assert everything.threshold == 0.0 and everything.remarks


def test_alarms_that_grow_together_do_not_hide_a_rate_above_the_target(tmp_path: Path) -> None:
    """Three short alarms at 0.8 become one long at 0.5: fewer, and yet more is shown."""
    frames_ = [wrong(0.8), wrong(0.5), wrong(0.8), wrong(0.5), wrong(0.8), *[wrong()] * 55]
    pool, frames = labelled(tmp_path, [frames_], info=ONE_HZ)
    assert choose(Choice("false_alarms", 1.0), RULE, pool, frames).threshold == 0.800001


def test_an_alert_rate_is_kept_with_the_lowest_threshold(tmp_path: Path) -> None:
    videos = [[hit(0.9), wrong(0.8), wrong(0.6), wrong(0.4), wrong(0.2)]]
    pool, frames = labelled(tmp_path, videos)
    point = choose(Choice("alert_rate", 0.5), RULE, pool, frames)
    assert (point.threshold, point.reached, point.met) == (0.400001, 0.5, True)
    assert match_alert_rate(pool, frames, 0.5).threshold == 0.6  # TRUE-Colon's own is higher


def test_an_alert_rate_that_every_threshold_keeps_lets_all_detections_count(tmp_path: Path) -> None:
    pool, frames = labelled(tmp_path, [[wrong(0.9), *[wrong()] * 9, *[hit(0.5)] * 5]])
    point = choose(Choice("alert_rate", 0.1), RULE, pool, frames)
    assert (point.threshold, point.reached, point.met) == (0.0, 0.1, True)
    assert "all detections count" in point.remarks[0]


def test_an_alert_rate_below_one_frame_is_just_above_all_scores_of_lesion_free_frames(
    tmp_path: Path,
) -> None:
    pool, frames = labelled(tmp_path, [[hit(0.9), wrong(0.8), wrong(0.6)]])
    point = choose(Choice("alert_rate", 0.1), RULE, pool, frames)
    assert (point.threshold, point.reached, point.met) == (0.800001, 0.0, True)
    assert point.remarks


@pytest.mark.parametrize(
    ("choice", "videos", "said"),
    [
        (Choice(), [[wrong(0.5)]], "has no lesions"),
        (Choice("recall", 0.5), [[wrong(0.5)]], "has no lesions"),
        (Choice("alert_rate", 0.5), [[hit(0.5)]], "has no lesion-free frames"),
        (Choice("false_alarms", 0.5), [[hit(0.5)]], "has no frame rate"),
    ],
)
def test_data_that_cannot_decide_is_named(tmp_path: Path, choice, videos, said) -> None:
    pool, frames = labelled(tmp_path, videos)
    with pytest.raises(ValueError, match=rf"test\.json: {said}"):
        choose(choice, RULE, pool, frames)


def test_saturated_validation_data_is_said(tmp_path: Path) -> None:
    pool, frames = labelled(tmp_path, [[hit(0.9), hit(0.8), wrong(0.1)]])
    remarks = " ".join(choose(Choice(), RULE, pool, frames).remarks)
    assert "F1 is perfect" in remarks
    assert "from 0.100 to 0.800" in remarks


def test_a_flat_f1_is_said_also_where_it_is_not_perfect(tmp_path: Path) -> None:
    # hundreds of hits: one more false alarm changes F1 by less than half a percent
    many = [hit(0.9)] * 300 + [(True, [])]
    pool, frames = labelled(tmp_path, [[*many, wrong(0.6), wrong(0.2)]])
    (remark,) = choose(Choice(), RULE, pool, frames).remarks
    assert "from 0.000 to 0.900" in remark


def test_data_that_tells_thresholds_apart_gets_no_remark(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.normal(0.6, 0.2, 60).clip(0.01, 1), rng.normal(0.4, 0.2, 60).clip(0.01, 1)
    pool, frames = labelled(tmp_path, [[*map(hit, good), *map(wrong, bad)]])
    assert choose(Choice(), RULE, pool, frames).remarks == ()


def test_no_lesion_found_at_any_threshold_is_said(tmp_path: Path) -> None:
    pool, frames = labelled(tmp_path, [[(True, [("wrong", 0.9)])]])
    point = choose(Choice(), RULE, pool, frames)
    assert not point.met and "No lesion is found" in point.remarks[0]
