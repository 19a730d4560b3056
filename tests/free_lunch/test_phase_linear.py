"""The linear probe: its optimum, standardisation, missing phases and choice of the penalty."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from free_lunch.phases.linear import choose_linear, fit_linear
from free_lunch.phases.videos import VideoFeatures


def clusters(frames=60, d=4, num_phases=3, seed=0, spread=1.0, name="video01") -> VideoFeatures:
    """Frames of phases with different means; the means are the same for all seeds."""
    centres = 2 * np.random.default_rng(7).normal(size=(num_phases, d))
    rng = np.random.default_rng(seed)
    labels = np.arange(frames) % num_phases
    return VideoFeatures(name, centres[labels] + spread * rng.normal(size=(frames, d)), labels)


def objective(weight, bias, z, labels, l2):
    logits = z @ weight + bias
    return torch.nn.functional.cross_entropy(logits, labels) + l2 / 2 * weight.square().sum()


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1e-1, 1.0]))
def test_gradient_of_the_objective_is_zero_at_the_solution(seed, l2):
    """Against torch's own cross-entropy, on features standardised here."""
    train = clusters(seed=seed, spread=2.0)
    probe = fit_linear([train], num_phases=3, l2=l2)
    mean, std = train.features.mean(0), train.features.std(0)
    weight = torch.tensor(probe.weight * std[:, None], requires_grad=True)
    bias = torch.tensor(probe.bias + mean @ probe.weight, requires_grad=True)
    z, labels = torch.tensor((train.features - mean) / std), torch.tensor(train.labels)
    objective(weight, bias, z, labels, l2).backward()
    assert weight.grad is not None and bias.grad is not None
    assert weight.grad.abs().max() < 1e-5
    assert bias.grad.abs().max() < 1e-5
    assert probe.notes == ()


def test_two_phases_and_one_feature_have_the_worked_solution():
    # z = -1 and 1, logits -w z and w z: the minimum has sigmoid(-2 w) = l2 w; with w = 1/2,
    # l2 = 2 sigmoid(-1).
    l2 = 2 / (1 + np.e)
    train = VideoFeatures("a", np.array([[3.0], [7.0]]), np.array([0, 1]))
    probe = fit_linear([train], num_phases=2, l2=float(l2))
    np.testing.assert_allclose(probe.logits(train.features), [[0.5, -0.5], [-0.5, 0.5]], atol=1e-5)


def test_the_probe_is_a_linear_map_of_raw_features():
    train = clusters()
    probe = fit_linear([train], num_phases=3, l2=1e-3)
    raw = train.features @ probe.weight + probe.bias
    assert (raw.argmax(1) == probe.predict(train.features)).all()
    assert probe.weight.shape == (4, 3)


def test_scale_and_offset_of_a_feature_change_no_prediction():
    train, test = clusters(seed=1, spread=2.0), clusters(seed=2, spread=2.0)
    scale, offset = np.array([1e-4, 1.0, 50.0, 1e4]), np.array([5.0, -3.0, 0.0, 1e5])
    moved = [VideoFeatures(v.name, v.features * scale + offset, v.labels) for v in (train, test)]
    one, other = (fit_linear([v], num_phases=3, l2=1e-2) for v in (train, moved[0]))
    np.testing.assert_allclose(
        one.logits(test.features), other.logits(moved[1].features), atol=1e-4
    )


def test_the_same_input_gives_the_same_bits():
    one, other = (fit_linear([clusters()], num_phases=3, l2=1e-3) for _ in range(2))
    assert (one.weight == other.weight).all() and (one.bias == other.bias).all()


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_constant_feature_gets_weight_zero(value):
    train = clusters()
    constant = np.full((60, 1), value)  # 0.1: its computed deviation is not exactly zero
    features = np.concatenate([train.features, constant], axis=1)
    probe = fit_linear([VideoFeatures("a", features, train.labels)], num_phases=3, l2=1e-3)
    assert (probe.weight[-1] == 0).all()
    assert np.isfinite(probe.weight).all() and np.isfinite(probe.bias).all()


def test_a_phase_without_frames_is_never_predicted_and_noted():
    train = clusters(num_phases=3)
    kept = train.labels != 1
    probe = fit_linear(
        [VideoFeatures("a", train.features[kept], train.labels[kept])], num_phases=4, l2=1e-3
    )
    assert set(probe.predict(10 * train.features).tolist()) == {0, 2}
    assert len(probe.notes) == 2
    assert "Phase 1 has no frame in the 1 training videos" in probe.notes[0]
    assert "Phase 3" in probe.notes[1]


def test_a_single_phase_is_always_predicted():
    train = VideoFeatures("a", np.random.default_rng(0).normal(size=(5, 2)), np.full(5, 2))
    assert (fit_linear([train], num_phases=3, l2=1.0).predict(train.features) == 2).all()


# ---- the choice of the penalty


def test_the_penalty_is_chosen_by_validation_accuracy():
    # Few frames, many noisy features: a penalty helps.
    train = [clusters(frames=12, d=40, spread=6.0, seed=3)]
    validation = [clusters(frames=90, d=40, spread=6.0, seed=s) for s in (4, 5)]
    choice = choose_linear(train, validation, num_phases=3, l2_weights=[1e-4, 1.0, 1e4])
    assert choice.accuracies[choice.probe.l2] == max(choice.accuracies.values())
    for l2, accuracy in choice.accuracies.items():
        probe = fit_linear(train, num_phases=3, l2=l2)
        expected = np.mean([(probe.predict(v.features) == v.labels).mean() for v in validation])
        assert accuracy == pytest.approx(expected, abs=0.02)


def test_equal_accuracies_give_the_largest_penalty_in_any_order():
    easy = clusters(spread=0.01)
    for weights in ([1e-4, 1e-3, 1e-2], [1e-2, 1e-3, 1e-4]):
        choice = choose_linear([easy], [easy], num_phases=3, l2_weights=weights)
        assert choice.probe.l2 == 1e-2


def test_validation_videos_weigh_the_same_whatever_their_length():
    train = VideoFeatures("a", np.array([[-1.0], [1.0]]), np.array([0, 1]))
    right = VideoFeatures("b", np.full((8, 1), 2.0), np.ones(8, dtype=int))
    wrong = VideoFeatures("c", np.full((2, 1), 2.0), np.zeros(2, dtype=int))
    choice = choose_linear([train], [right, wrong], num_phases=2, l2_weights=[0.1])
    assert choice.accuracies == {0.1: 0.5}


# ---- bad input


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_name_video_and_frame(value):
    features = np.zeros((5, 2))
    features[3, 1] = value
    with pytest.raises(ValueError, match=r"'video07' .*not finite, in 1 of 5 frames.*frame 3"):
        VideoFeatures("video07", features, np.zeros(5, dtype=int))


def test_features_at_another_rate_than_the_labels_are_refused():
    with pytest.raises(ValueError, match=r"'v' has features of 5 frames but 4 labels"):
        VideoFeatures("v", np.zeros((5, 2)), np.zeros(4, dtype=int))


def test_a_video_without_frames_is_refused():
    with pytest.raises(ValueError, match="'v' has no labelled frame"):
        VideoFeatures("v", np.zeros((0, 2)), np.zeros(0, dtype=int))


def test_an_unknown_phase_names_the_video():
    with pytest.raises(ValueError, match=r"'video01' has phase index 2; with 2 phases"):
        fit_linear([clusters()], num_phases=2, l2=1.0)


@pytest.mark.parametrize("l2", [0.0, -1.0])
def test_a_penalty_that_is_not_positive_is_refused(l2):
    with pytest.raises(ValueError, match="must be positive"):
        fit_linear([clusters()], num_phases=3, l2=l2)


def test_choosing_needs_videos_and_penalties():
    with pytest.raises(ValueError, match="at least one validation video and one L2 weight"):
        choose_linear([clusters()], [], num_phases=3)
    with pytest.raises(ValueError, match="at least one validation video and one L2 weight"):
        choose_linear([clusters()], [clusters()], num_phases=3, l2_weights=[])
    with pytest.raises(ValueError, match="at least one labelled video"):
        choose_linear([], [clusters()], num_phases=3)
