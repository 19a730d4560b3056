"""k-NN classification of frames: votes, choice of k, bounded memory."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from free_lunch.phases import knn
from free_lunch.phases.knn import choose_k, knn_predict
from free_lunch.phases.videos import VideoFeatures


def unit(*degrees) -> np.ndarray:
    """Unit vectors in the plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def video(degrees, labels, name="video01") -> VideoFeatures:
    return VideoFeatures(name, unit(*degrees), np.array(labels))


def brute_force(features, labels, queries, k, num_phases, temperature):
    predicted = []
    for query in queries:
        similar = [
            (float(query @ f / np.linalg.norm(query) / np.linalg.norm(f)), label)
            for f, label in zip(features.astype(float), labels, strict=True)
        ]
        votes = [0.0] * num_phases
        for similarity, label in sorted(similar, key=lambda pair: -pair[0])[:k]:
            votes[label] += math.exp(similarity / temperature)
        predicted.append(int(np.argmax(votes)))
    return predicted


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([0.07, 0.5]))
def test_votes_equal_brute_force(seed, k, temperature):
    rng = np.random.default_rng(seed)
    features, queries = rng.normal(size=(30, 6)), rng.normal(size=(9, 6))
    labels = rng.integers(0, 4, 30)
    predicted = knn_predict(features, labels, queries, k=k, num_phases=4, temperature=temperature)
    assert predicted.tolist() == brute_force(features, labels, queries, k, 4, temperature)


def test_a_near_neighbour_outvotes_two_far_ones_at_a_low_temperature():
    features, labels = unit(0, 40, -40), np.array([0, 1, 1])
    options = {"k": 3, "num_phases": 2}
    # Similarities 1, 0.766, 0.766: exp(1 / 0.07) > 2 exp(0.766 / 0.07), not so at temperature 1.
    assert knn_predict(features, labels, unit(0), **options).tolist() == [0]
    assert knn_predict(features, labels, unit(0), temperature=1.0, **options).tolist() == [1]


def test_length_of_a_feature_does_not_matter():
    features, labels = unit(0, 90) * np.array([[1e-3], [1e3]]), np.array([0, 1])
    predicted = knn_predict(features, labels, 50 * unit(10, 80), k=1, num_phases=2)
    assert predicted.tolist() == [0, 1]


def test_equal_votes_go_to_the_lowest_phase():
    features = np.array([[1.0, 0.0], [0.0, 1.0]])
    predicted = knn_predict(features, np.array([2, 1]), np.array([[1.0, 1.0]]), k=2, num_phases=3)
    assert predicted.tolist() == [1]


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    features, queries, labels = (
        rng.normal(size=(50, 8)),
        rng.normal(size=(23, 8)),
        np.arange(50) % 5,
    )
    whole = knn_predict(features, labels, queries, k=7, num_phases=5)
    monkeypatch.setattr(knn, "MAX_SIMILARITIES", 120)  # 2 queries at a time
    assert (knn_predict(features, labels, queries, k=7, num_phases=5) == whole).all()


def test_features_in_half_precision_are_taken():
    features = unit(0, 90).astype(np.float16)
    assert knn_predict(features, np.array([0, 1]), features, k=1, num_phases=2).tolist() == [0, 1]


# ---- the choice of k


def test_k_is_the_best_on_validation_videos():
    # The nearest frame of both queries is an outlier; three neighbours outvote it.
    train = video([0, 3, -3, 90, 93, 87], [1, 0, 0, 0, 1, 1])
    choice = choose_k([train], [video([0, 90], [0, 1])], ks=[1, 3], num_phases=2, temperature=1.0)
    assert choice.accuracies == {1: 0.0, 3: 1.0}
    assert choice.k == 3


def test_equal_accuracies_give_the_smallest_k_in_any_order():
    train = video([0, 1, 2, 90, 91, 92], [0, 0, 0, 1, 1, 1])
    for ks in ([1, 2, 3], [3, 2, 1]):
        assert choose_k([train], [video([5, 85], [0, 1])], ks=ks, num_phases=2).k == 1


def test_validation_videos_weigh_the_same_whatever_their_length():
    train = video([0, 90], [0, 1])
    long, short = video([0] * 8, [0] * 8), video([0, 0], [1, 1], "short")
    assert choose_k([train], [long, short], ks=[1], num_phases=2).accuracies == {1: 0.5}


def test_the_choice_equals_prediction_with_each_k():
    rng = np.random.default_rng(1)
    make = lambda n: VideoFeatures(str(n), rng.normal(size=(n, 5)), rng.integers(0, 3, n))  # noqa: E731
    train, validation = [make(20), make(15)], [make(9), make(11)]
    choice = choose_k(train, validation, ks=[1, 4, 9], num_phases=3)
    features = np.concatenate([v.features for v in train])
    labels = np.concatenate([v.labels for v in train])
    for k, accuracy in choice.accuracies.items():
        expected = [
            (knn_predict(features, labels, v.features, k=k, num_phases=3) == v.labels).mean()
            for v in validation
        ]
        assert accuracy == pytest.approx(np.mean(expected))


# ---- bad input


@pytest.mark.parametrize("k", [0, 3])
def test_k_outside_the_labelled_frames_is_refused(k):
    with pytest.raises(ValueError, match=r"between 1 and the 2 labelled frames"):
        knn_predict(unit(0, 90), np.array([0, 1]), unit(0), k=k, num_phases=2)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be positive, got 0"):
        knn_predict(unit(0), np.array([0]), unit(0), k=1, num_phases=1, temperature=0.0)


def test_choosing_needs_videos_and_ks():
    train = video([0], [0])
    with pytest.raises(ValueError, match="at least one validation video and one k"):
        choose_k([train], [], ks=[1], num_phases=1)
    with pytest.raises(ValueError, match="at least one validation video and one k"):
        choose_k([train], [train], ks=[], num_phases=1)
    with pytest.raises(ValueError, match="at least one labelled video"):
        choose_k([], [train], ks=[1], num_phases=1)


def test_a_validation_video_of_another_width_is_named():
    wide = VideoFeatures("wide", np.ones((1, 3)), np.array([0]))
    with pytest.raises(ValueError, match=r"'wide' have width 3, those of 'video01' 2"):
        choose_k([video([0], [0])], [wide], ks=[1], num_phases=1)
