"""Phase metrics: hand-worked examples, a brute-force oracle and invariants."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from free_lunch.phases.metrics import METRICS, TRANSITIONS, allowed_transitions, phase_metrics
from free_lunch.phases.videos import VideoPhases


def video(truth, predicted, name="video01") -> VideoPhases:
    return VideoPhases(name, np.array(truth, dtype=np.int64), np.array(predicted, dtype=np.int64))


def runs(*pairs) -> list[int]:
    """runs((0, 3), (1, 2)) is [0, 0, 0, 1, 1]."""
    return [phase for phase, length in pairs for _ in range(length)]


def metrics(*videos, num_phases=3, fps=1.0, **options):
    return phase_metrics(list(videos), num_phases=num_phases, fps=fps, **options)


@st.composite
def random_videos(draw, num_phases=7):
    """Videos with long runs in the ground truth and in the prediction."""
    videos = []
    for i in range(draw(st.integers(1, 4))):
        piece = st.tuples(st.integers(0, num_phases - 1), st.integers(1, 8))
        truth = runs(*draw(st.lists(piece, min_size=1, max_size=8)))
        noise = runs(*draw(st.lists(piece, min_size=1, max_size=8)))
        keep = draw(st.lists(st.booleans(), min_size=len(truth), max_size=len(truth)))
        noise *= len(truth)  # at least as long
        predicted = [t if k else n for t, k, n in zip(truth, keep, noise, strict=False)]
        videos.append(video(truth, predicted, f"video{i:02d}"))
    return videos


# ---- strict


def test_strict_metrics_of_a_worked_example():
    # Phase 0: 2 right, 1 missed, 1 false. Phase 1: 1 right, 1 missed, 1 false.
    result = metrics(video([0, 0, 0, 1, 1], [0, 0, 1, 1, 0]), num_phases=2)
    strict = result["strict"]
    assert strict["accuracy"] == 3 / 5
    assert strict["per_phase"]["precision"] == [2 / 3, 1 / 2]
    assert strict["per_phase"]["recall"] == [2 / 3, 1 / 2]
    assert strict["per_phase"]["jaccard"] == [2 / 4, 1 / 3]
    assert strict["per_phase"]["f1"] == [2 / 3, 1 / 2]
    assert strict["jaccard"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert result["confusion_matrix"] == [[2, 1], [1, 1]]
    assert (result["videos"], result["frames"]) == (1, 5)


def test_accuracy_is_averaged_over_videos_not_frames():
    result = metrics(video([0] * 100, [0] * 100), video([0, 0], [1, 1], "short"))
    assert result["strict"]["accuracy"] == 0.5
    assert result["strict"]["accuracy_std"] == pytest.approx(math.sqrt(0.5))  # n - 1


def test_one_video_has_no_standard_deviation():
    assert metrics(video([0], [0]))["strict"]["accuracy_std"] is None


def test_labelled_phase_that_is_never_predicted_has_no_precision_but_counts_as_missed():
    per_phase = metrics(video([0, 1], [0, 0]), tolerance_s=0.0)["strict"]["per_phase"]
    assert [per_phase[name][1] for name in METRICS] == [None, 0.0, 0.0, 0.0]


def test_predicted_phase_that_is_never_labelled_has_no_recall_but_counts_as_false():
    per_phase = metrics(video([0, 0], [0, 1]), tolerance_s=0.0)["strict"]["per_phase"]
    assert [per_phase[name][1] for name in METRICS] == [0.0, None, 0.0, 0.0]


def test_phase_absent_from_both_is_left_out_of_the_averages():
    strict = metrics(video([0, 1], [0, 1]))["strict"]
    assert [strict["per_phase"][name][2] for name in METRICS] == [None] * 4
    assert [strict[name] for name in METRICS] == [1.0] * 4


def test_phase_is_averaged_over_the_videos_that_have_it_before_phases():
    both = video([0, 0, 1, 1], [0, 0, 1, 0])  # recall 1 and 1/2
    first_only = video([0, 0], [0, 1], "b")  # recall 1/2 and undefined
    result = metrics(both, first_only, num_phases=2, tolerance_s=0.0)
    assert result["strict"]["per_phase"]["recall"] == [3 / 4, 1 / 2]
    assert result["strict"]["recall"] == 5 / 8
    assert result["videos_with_phase"] == [2, 1]


# ---- relaxed


def test_late_and_early_transitions_are_right_within_the_tolerance():
    truth = runs((0, 20), (1, 20))
    late = runs((0, 30), (1, 10))
    early = runs((0, 10), (1, 30))
    for predicted in (late, early):
        result = metrics(video(truth, predicted), num_phases=2)
        assert result["strict"]["accuracy"] == 30 / 40
        assert result["relaxed"]["accuracy"] == 1.0
        assert [result["relaxed"][name] for name in METRICS] == [1.0] * 4


def test_tolerance_ends_after_ten_seconds_at_the_rate_of_the_labels():
    truth, late = runs((0, 40), (1, 40)), runs((0, 65), (1, 15))
    wrong = {fps: 25 - min(25, int(10 * fps)) for fps in (1.0, 2.0, 5.0)}
    for fps, count in wrong.items():
        result = metrics(video(truth, late), num_phases=2, fps=fps)
        assert result["relaxed"]["accuracy"] == 1 - count / 80


def test_relaxed_metrics_of_a_worked_example():
    # Tolerance of 2 frames: 4 and 5 are right, being late, and 6 is wrong.
    truth, predicted = runs((0, 4), (1, 6)), runs((0, 7), (1, 3))
    relaxed = metrics(video(truth, predicted), num_phases=2, tolerance_s=2.0)["relaxed"]
    assert relaxed["accuracy"] == 9 / 10
    assert relaxed["per_phase"]["precision"] == [6 / 7, 3 / 3]
    assert relaxed["per_phase"]["recall"] == [4 / 4, 5 / 6]
    assert relaxed["per_phase"]["jaccard"] == [6 / 7, 5 / 6]
    assert relaxed["per_phase"]["f1"] == [10 / 11, 8 / 9]


def test_other_confusions_at_a_boundary_stay_errors():
    truth, predicted = runs((0, 5), (1, 5)), runs((0, 5), (2, 5))
    # Phase 2 may follow 1, so that it is right in the last frames of 1, but never precedes it.
    assert metrics(video(truth, predicted), tolerance_s=2.0)["relaxed"]["accuracy"] == 7 / 10


def test_tables_of_the_data_sets_are_those_of_the_scripts():
    """The differences that Evaluate.m accepts, by its phase numbers from 1."""
    cholec80 = {4: ([-1], [1, 2]), 5: ([-1], [1, 2]), 6: ([-1, -2], [1]), 7: ([-1, -2], [1])}
    m2cai16 = {5: ([-1], [1, 2]), 6: ([-1], [1, 2]), 7: ([-1, -2], [1, 2]), 8: ([-1, -2], [1, 2])}
    for name, num_phases, special in (("cholec80", 7, cholec80), ("m2cai16", 8, m2cai16)):
        allowed = allowed_transitions(name, num_phases)
        for phase in range(1, num_phases + 1):
            late, early = special.get(phase, ([-1], [1]))
            before = {phase + d for d in late} & set(range(1, num_phases + 1))
            after = {phase + d for d in early} & set(range(1, num_phases + 1))
            assert set(np.flatnonzero(allowed[:, phase - 1]) + 1) == before
            assert set(np.flatnonzero(allowed[phase - 1]) + 1) == after


def test_dissection_may_be_followed_by_cleaning_in_cholec80_only():
    truth, early = runs((3, 20), (5, 20)), runs((3, 15), (5, 25))
    videos = video(truth, early)
    named = metrics(videos, num_phases=7, transitions="cholec80")
    in_order = metrics(videos, num_phases=7)
    own = metrics(videos, num_phases=7, transitions=[(3, 5)])
    assert named["relaxed"]["accuracy"] == own["relaxed"]["accuracy"] == 1.0
    assert in_order["relaxed"]["accuracy"] == 35 / 40


# ---- the released scripts


def test_released_rule_forgives_the_start_for_an_early_transition():
    # 6 frames of phase 0, tolerance 2. The last frame is early; MATLAB's mask [0 1] over the last
    # two frames hits frame 1, where phase 2 was predicted.
    truth, predicted = runs((0, 6), (1, 6)), [0, 2, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    options = {"tolerance_s": 2.0, "transitions": [(0, 1)]}
    described = metrics(video(truth, predicted), **options)["relaxed"]
    released = metrics(video(truth, predicted), rule="released", **options)["relaxed"]
    assert described["accuracy"] == released["accuracy"] == 11 / 12
    # The video lacks phase 2, which the released rule therefore leaves out.
    assert described["per_phase"]["precision"] == [1.0, 1.0, 0.0]
    assert released["per_phase"]["precision"] == [1.0, 6 / 7, None]
    assert released["per_phase"]["jaccard"] == [5 / 6, 6 / 7, None]
    assert released["per_phase"]["f1"] == [None] * 3


def test_released_precision_and_recall_are_clipped():
    # All 5 frames of phase 1 are predicted 0, late: 15 right frames of the union over 10 labelled.
    truth, predicted = runs((0, 10), (1, 5)), runs((0, 15))
    released = metrics(video(truth, predicted), num_phases=2, rule="released")["relaxed"]
    assert released["per_phase"]["recall"] == [1.0, 1.0]
    assert released["per_phase"]["precision"] == [1.0, 1.0]  # phase 1: 5 / 0 in MATLAB


def matlab(truth, predicted, num_phases, tolerance, accepted):
    """Evaluate.m, statement by statement, with indices from 0."""
    difference = [p - t for t, p in zip(truth, predicted, strict=True)]
    for phase in range(num_phases):
        start = 0
        while start < len(truth):
            if truth[start] != phase:
                start += 1
                continue
            end = start
            while end < len(truth) and truth[end] == phase:
                end += 1
            current = difference[start:end]
            t = min(tolerance, len(current))
            late, early = accepted(phase)
            for i in [i for i in range(t) if current[i] in late]:
                current[i] = 0
            for i in [i for i in range(t) if current[len(current) - t + i] in early]:
                current[i] = 0
            difference[start:end] = current
            start = end
    values = []
    for phase in range(num_phases):
        labelled = [i for i, t in enumerate(truth) if t == phase]
        guessed = [i for i, p in enumerate(predicted) if p == phase]
        if not labelled:
            values.append((math.nan,) * 3)
            continue
        union = set(labelled) | set(guessed)
        tp = sum(difference[i] == 0 for i in union)
        precision = tp / len(guessed) if guessed else (math.inf if tp else math.nan)
        values.append((min(precision, 1.0), min(tp / len(labelled), 1.0), tp / len(union)))
    return difference.count(0) / len(truth), values


def cholec80_differences(phase):
    """Of SV-RCNet's Evaluate.m; phases from 0."""
    if phase in (3, 4):
        return {-1}, {1, 2}
    if phase in (5, 6):
        return {-1, -2}, {1}
    return {-1}, {1}


def mean_or_none(values):
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values) if values else None


@given(random_videos(), st.integers(0, 6))
def test_released_rule_equals_the_scripts(videos, tolerance):
    result = phase_metrics(
        videos,
        num_phases=7,
        fps=1.0,
        transitions="cholec80",
        tolerance_s=float(tolerance),
        rule="released",
    )["relaxed"]
    expected = [
        matlab(v.truth.tolist(), v.predicted.tolist(), 7, tolerance, cholec80_differences)
        for v in videos
    ]
    assert result["accuracy"] == pytest.approx(np.mean([accuracy for accuracy, _ in expected]))
    for i, name in enumerate(("precision", "recall", "jaccard")):
        by_phase = [mean_or_none([v[phase][i] for _, v in expected]) for phase in range(7)]
        assert result["per_phase"][name] == pytest.approx(by_phase)


# ---- oracle and invariants


def brute_force(video, right, num_phases):
    """(precision, recall, Jaccard, F1) by phase from sets of frames."""
    values = []
    for phase in range(num_phases):
        labelled = {i for i, t in enumerate(video.truth) if t == phase}
        guessed = {i for i, p in enumerate(video.predicted) if p == phase}
        share = lambda frames: len(frames & right) / len(frames) if frames else math.nan  # noqa: E731
        both = len(labelled) + len(guessed)
        f1 = (len(labelled & right) + len(guessed & right)) / both if both else math.nan
        values.append((share(guessed), share(labelled), share(labelled | guessed), f1))
    return values


def relaxed_frames(video, tolerance, allowed):
    """Frames with the right phase, or one accepted at the nearest boundary of their segment."""
    right = set()
    truth = video.truth.tolist()
    for i, (t, p) in enumerate(zip(truth, video.predicted.tolist(), strict=True)):
        since = next((j for j in range(i + 1) if truth[i - j] != t), i + 1) - 1
        left = next((j for j in range(len(truth) - i) if truth[i + j] != t), len(truth) - i) - 1
        late = since < tolerance and (p, t) in allowed
        early = left < tolerance and (t, p) in allowed
        if p == t or late or early:
            right.add(i)
    return right


@given(random_videos(), st.integers(0, 6))
def test_both_variants_equal_brute_force(videos, tolerance):
    result = phase_metrics(
        videos, num_phases=7, fps=2.0, transitions="cholec80", tolerance_s=tolerance / 2
    )
    strict = [{i for i in range(len(v.truth)) if v.truth[i] == v.predicted[i]} for v in videos]
    relaxed = [relaxed_frames(v, tolerance, TRANSITIONS["cholec80"]) for v in videos]
    for variant, right in (("strict", strict), ("relaxed", relaxed)):
        accuracies = [len(r) / len(v.truth) for v, r in zip(videos, right, strict=True)]
        assert result[variant]["accuracy"] == pytest.approx(np.mean(accuracies))
        values = [brute_force(v, r, 7) for v, r in zip(videos, right, strict=True)]
        for i, name in enumerate(METRICS):
            by_phase = [mean_or_none([v[phase][i] for v in values]) for phase in range(7)]
            assert result[variant]["per_phase"][name] == pytest.approx(by_phase)
            mean = mean_or_none([v for v in by_phase if v is not None])
            assert result[variant][name] == pytest.approx(mean)


@given(random_videos())
def test_relaxed_is_at_least_strict_and_at_most_one(videos):
    result = phase_metrics(videos, num_phases=7, fps=0.3, transitions="cholec80")
    for name in ("accuracy", *METRICS):
        strict, relaxed = result["strict"][name], result["relaxed"][name]
        assert (strict is None) == (relaxed is None)
        assert strict is None or strict - 1e-12 <= relaxed <= 1


@given(random_videos())
def test_without_tolerance_relaxed_is_strict(videos):
    result = phase_metrics(videos, num_phases=7, fps=25.0, tolerance_s=0.0)
    assert result["relaxed"] == result["strict"]


@given(random_videos(), st.randoms())
def test_order_of_videos_does_not_matter(videos, random):
    shuffled = random.sample(videos, len(videos))
    one, other = (phase_metrics(v, num_phases=7, fps=0.3) for v in (videos, shuffled))
    stds = [
        r[variant].pop("accuracy_std") for r in (one, other) for variant in ("strict", "relaxed")
    ]
    assert one == other
    assert stds[:2] == pytest.approx(stds[2:])


@settings(max_examples=30)
@given(random_videos(), st.sampled_from(["described", "released"]))
def test_perfect_prediction_is_one(videos, rule):
    perfect = [VideoPhases(v.name, v.truth, v.truth) for v in videos]
    result = phase_metrics(perfect, num_phases=7, fps=1.0, rule=rule)
    for variant in ("strict", "relaxed"):
        assert result[variant]["accuracy"] == 1
        for name in METRICS[: 3 if rule == "released" else 4]:
            assert result[variant][name] == 1
    assert np.array(result["confusion_matrix"]).trace() == result["frames"]


@settings(max_examples=20)
@given(random_videos(), st.sampled_from(["described", "released"]))
def test_result_is_plain_json(videos, rule):
    result = phase_metrics(videos, num_phases=7, fps=1.0, rule=rule)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


# ---- bad input


def test_lengths_that_differ_name_the_video():
    with pytest.raises(ValueError, match=r"'video09' has 3 ground-truth phases but 2 predicted"):
        video([0, 0, 1], [0, 0], "video09")


def test_video_without_frames_is_named():
    with pytest.raises(ValueError, match=r"'empty' has no labelled frame"):
        video([], [], "empty")


@pytest.mark.parametrize("phase", [-1, 3])
def test_phase_index_out_of_range_is_named(phase):
    with pytest.raises(ValueError, match=rf"'video01' has phase index {phase}; with 3 phases"):
        metrics(video([0, 1], [0, phase]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transitions": "cholec81"}, r"'cholec81'; there are cholec80, m2cai16"),
        ({"transitions": "cholec80"}, r"'cholec80' has 7 phases, but num_phases is 3"),
        ({"transitions": [(2, 3)]}, r"Transition \(2, 3\) is outside the 3 phases"),
        ({"fps": 0.0}, r"fps > 0"),
        ({"tolerance_s": -1.0}, r"tolerance_s >= 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        metrics(video([0, 1], [0, 1]), **options)


def test_no_video_is_refused():
    with pytest.raises(ValueError, match="at least one video"):
        metrics()
