"""Precision, recall and F1 by rule: hand-computed examples and invariants."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from v2idetr.evaluation.frames import LabelledFrame, Video
from v2idetr.evaluation.lesion_metrics import (
    FALLBACK_THRESHOLD,
    RULES,
    choose_threshold,
    get_rule,
    judge,
    summarize,
    sweep,
)
from v2idetr.evaluation.predictions import FramePrediction

ONE_LESION = [(100, 100, 200, 200)]


def frame(lesions, detections, *, video=1, lesion_classes=None) -> LabelledFrame:
    """``detections`` are (box xyxy, score) or (box xyxy, score, class)."""
    boxes = np.array([d[0] for d in detections], dtype=float).reshape(-1, 4)
    classes = np.array([d[2] if len(d) > 2 else 0 for d in detections], dtype=np.int64)
    prediction = FramePrediction(0, boxes, np.array([d[1] for d in detections], float), classes)
    return LabelledFrame(
        video=Video("test", video, f"video {video}"),
        lesions_xyxy_px=np.array(lesions, dtype=float).reshape(-1, 4),
        lesion_classes=np.array(lesion_classes or [0] * len(lesions), dtype=np.int64),
        prediction=prediction,
    )


def counts(frames, rule, threshold=0.0):
    metrics = summarize(judge(frames, rule).at(threshold))
    return metrics["tp"], metrics["fp"], metrics["fn"]


def metrics_of(frames, rule, threshold=0.0):
    pooled = summarize(judge(frames, rule).at(threshold))
    return pooled["precision"], pooled["recall"], pooled["f1"]


# ---- the rules


def test_three_boxes_on_one_lesion_never_exceed_one():
    """Released scorers give precision or recall 3.0 here (duplicates counted as hits)."""
    three = [
        ((100, 100, 200, 200), 0.9),
        ((105, 100, 205, 200), 0.8),
        ((100, 105, 200, 205), 0.7),
    ]
    frames = [frame(ONE_LESION, three)]
    assert metrics_of(frames, "endovis_center") == (1.0, 1.0, 1.0)
    assert metrics_of(frames, "iou50") == (1 / 3, 1.0, 0.5)


def test_huge_box_around_the_centre_is_a_hit_for_the_centre_only():
    eight_times_too_wide = [((-250, 100, 550, 200), 0.9)]
    assert counts([frame(ONE_LESION, eight_times_too_wide)], "endovis_center") == (1, 0, 0)
    assert counts([frame(ONE_LESION, eight_times_too_wide)], "iou50") == (0, 1, 1)


@pytest.mark.parametrize("rule", RULES)
def test_every_detection_on_a_lesion_free_frame_is_false(rule):
    negative = frame([], [((0, 0, 10, 10), s) for s in (0.9, 0.8, 0.7)])
    found = frame(ONE_LESION, [(ONE_LESION[0], 0.9)])
    assert counts([found, negative], rule) == (1, 3, 0)
    assert metrics_of([found, negative], rule)[0] == 0.25


@pytest.mark.parametrize("rule", RULES)
def test_box_in_the_wrong_corner_is_false_and_the_lesion_missed(rule):
    assert counts([frame(ONE_LESION, [((300, 300, 400, 400), 0.9)])], rule) == (0, 1, 1)


@pytest.mark.parametrize("centre", [(100, 150), (200, 150), (150, 100), (150, 200)])
def test_centre_on_the_border_is_outside(centre):
    x, y = centre
    on_the_border = [((x - 50, y - 50, x + 50, y + 50), 0.9)]
    assert counts([frame(ONE_LESION, on_the_border)], "endovis_center") == (0, 1, 1)


def test_centre_inside_two_overlapping_lesions_finds_both():
    lesions = [(100, 100, 200, 200), (120, 120, 220, 220)]
    frames = [frame(lesions, [((110, 110, 210, 210), 0.9)])]
    assert counts(frames, "endovis_center") == (2, 0, 0)
    assert counts(frames, "iou50") == (1, 0, 1)


def test_iou_of_exactly_one_half_is_a_hit():
    half = [((100, 100, 200, 150), 0.9)]
    assert counts([frame(ONE_LESION, half)], "iou50") == (1, 0, 0)
    just_less = [((100, 100, 200, 149.9), 0.9)]
    assert counts([frame(ONE_LESION, just_less)], "iou50") == (0, 1, 1)


def test_second_detection_takes_the_lesion_that_is_left():
    lesions = [(100, 100, 200, 200), (130, 100, 230, 200)]
    # Both overlap the first lesion most; the better score takes it, the other one the second.
    detections = [((112, 100, 212, 200), 0.6), ((100, 100, 200, 200), 0.9)]
    assert counts([frame(lesions, detections)], "iou50") == (2, 0, 0)


def test_equal_scores_give_the_same_counts_in_any_order():
    lesions = [(100, 100, 200, 200), (125, 100, 225, 200)]
    fits_both, fits_first = ((100, 100, 200, 200), 0.9), ((80, 100, 180, 200), 0.9)
    # Whoever comes first takes the first lesion; only one of the two then finds the other.
    assert counts([frame(lesions, [fits_both, fits_first])], "iou50") == (2, 0, 0)
    assert counts([frame(lesions, [fits_first, fits_both])], "iou50") == (2, 0, 0)


@pytest.mark.parametrize("rule", RULES)
def test_lesion_under_the_wrong_class_is_missed(rule):
    detections = [(ONE_LESION[0], 0.9, 1)]
    assert counts([frame(ONE_LESION, detections, lesion_classes=[0])], rule) == (0, 1, 1)
    assert counts([frame(ONE_LESION, detections, lesion_classes=[1])], rule) == (1, 0, 0)


@pytest.mark.parametrize("rule", RULES)
def test_threshold_keeps_scores_that_reach_it(rule):
    frames = [frame(ONE_LESION, [(ONE_LESION[0], 0.5), ((0, 0, 9, 9), 0.4)])]
    assert counts(frames, rule, 0.4) == (1, 1, 0)
    assert counts(frames, rule, 0.5) == (1, 0, 0)
    assert counts(frames, rule, 0.6) == (0, 0, 1)


def test_unknown_rule_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown rule 'iou5'.*endovis_center, iou50"):
        get_rule("iou5")


# ---- undefined metrics


@pytest.mark.parametrize("rule", RULES)
def test_without_detections_recall_is_zero_and_precision_undefined(rule):
    assert metrics_of([frame(ONE_LESION, [])], rule) == (None, 0.0, 0.0)


@pytest.mark.parametrize("rule", RULES)
def test_lesion_free_split_has_no_recall_and_f1_zero_or_undefined(rule):
    assert metrics_of([frame([], [((0, 0, 9, 9), 0.9)])], rule) == (0.0, None, 0.0)
    assert metrics_of([frame([], [])], rule) == (None, None, None)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "frames",
    [
        [frame(ONE_LESION, [])],
        [frame([], [((0, 0, 9, 9), 0.9)])],
        [frame([], [])],
        [frame(ONE_LESION, [((0, 0, 9, 9), 0.9)])],
    ],
    ids=["no detection", "only lesion-free", "nothing at all", "only false"],
)
def test_threshold_falls_back_with_a_warning_when_nothing_can_be_found(frames, rule, caplog):
    assert choose_threshold(judge(frames, rule)) == FALLBACK_THRESHOLD
    assert "No lesion (of" in caplog.text


# ---- thresholds


def test_of_equally_good_thresholds_the_highest_is_chosen():
    # 0.9: 1 of 2 lesions, no false: F1 2/3. 0.3: 2 of 2 lesions, 2 false: F1 2/3.
    frames = [
        frame(ONE_LESION, [(ONE_LESION[0], 0.9)]),
        frame(ONE_LESION, [(ONE_LESION[0], 0.3), ((0, 0, 9, 9), 0.5), ((9, 9, 20, 20), 0.4)]),
    ]
    for rule in RULES:
        assert choose_threshold(judge(frames, rule)) == 0.9


coordinate = st.integers(0, 12).map(lambda i: 10 * i)


@st.composite
def boxes(draw):
    x, y = draw(coordinate), draw(coordinate)
    return (x, y, x + 10 + draw(coordinate), y + 10 + draw(coordinate))


# Few distinct scores, so that ties are common.
detections = st.tuples(boxes(), st.integers(1, 9).map(lambda i: i / 10), st.integers(0, 1))


@st.composite
def labelled_frames(draw):
    lesions = draw(st.lists(boxes(), max_size=3))
    return frame(
        lesions,
        draw(st.lists(detections, max_size=6)),
        video=draw(st.integers(1, 3)),
        lesion_classes=draw(
            st.lists(st.integers(0, 1), min_size=len(lesions), max_size=len(lesions))
        ),
    )


splits = st.lists(labelled_frames(), min_size=1, max_size=5)


def keep(labelled: LabelledFrame, threshold: float) -> LabelledFrame:
    p = labelled.prediction
    kept = p.scores >= threshold
    fewer = replace(
        p, boxes_xyxy_px=p.boxes_xyxy_px[kept], scores=p.scores[kept], classes=p.classes[kept]
    )
    return replace(labelled, prediction=fewer)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(frames=splits)
def test_one_pass_equals_scoring_the_kept_detections_at_every_threshold(rule, frames):
    outcomes = judge(frames, rule)
    for threshold in (0.0, *(i / 10 for i in range(1, 11))):
        kept = [keep(labelled, threshold) for labelled in frames]
        assert outcomes.at(threshold) == judge(kept, rule).at(0.0)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(frames=splits)
def test_chosen_threshold_is_the_one_that_trying_all_scores_finds(rule, frames):
    outcomes = judge(frames, rule)
    best_f1, best = 0.0, FALLBACK_THRESHOLD
    for threshold in sorted({s for f in frames for s in f.prediction.scores}, reverse=True):
        f1 = summarize(outcomes.at(threshold))["f1"]
        if f1 is not None and f1 > best_f1:
            best_f1, best = f1, threshold
    assert choose_threshold(outcomes) == best


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(frames=splits)
def test_sweep_counts_agree_with_counts_at_each_threshold(rule, frames):
    outcomes = judge(frames, rule)
    curve = sweep(outcomes)
    for threshold, tp, fp, f1 in zip(curve.thresholds, curve.tp, curve.fp, curve.f1, strict=True):
        pooled = summarize(outcomes.at(threshold))
        assert (pooled["tp"], pooled["fp"], pooled["f1"]) == (tp, fp, f1)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(frames=splits, seed=st.integers(0, 99))
def test_order_of_detections_and_frames_does_not_matter(rule, frames, seed):
    rng = np.random.default_rng(seed)

    def shuffled(labelled):
        p = labelled.prediction
        order = rng.permutation(len(p.scores))
        mixed = FramePrediction(0, p.boxes_xyxy_px[order], p.scores[order], p.classes[order])
        return replace(labelled, prediction=mixed)

    mixed = [shuffled(frames[i]) for i in rng.permutation(len(frames))]
    before, after = judge(frames, rule), judge(mixed, rule)
    assert choose_threshold(before) == choose_threshold(after)
    for threshold in (0.1, 0.5, 0.9):
        assert summarize(before.at(threshold)) == summarize(after.at(threshold))


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(frames=splits)
def test_videos_add_up_and_metrics_stay_within_zero_and_one(rule, frames):
    per_video = judge(frames, rule).at(0.3)
    pooled = summarize(per_video)
    assert sum(video.frames for video in per_video) == len(frames)
    for key in ("tp", "fp", "fn"):
        assert pooled[key] == sum(summarize([video])[key] for video in per_video)
    assert pooled["tp"] + pooled["fn"] == sum(len(f.lesions_xyxy_px) for f in frames)
    for video in per_video:
        for key in ("precision", "recall", "f1"):
            value = summarize([video])[key]
            assert value is None or 0 <= value <= 1
