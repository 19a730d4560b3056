"""The causal multi-stage TCN: causality, streaming, padding and its losses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from free_lunch.phases.temporal import CausalTCN, PhaseStream, phase_losses


def tcn(**options) -> CausalTCN:
    torch.manual_seed(0)
    sizes = {"d": 5, "num_phases": 4, "num_stages": 2, "num_layers": 3, "width": 6}
    return CausalTCN(**(sizes | options)).eval()


def features(batch=1, frames=40, d=5, seed=1):
    return torch.randn(batch, frames, d, generator=torch.Generator().manual_seed(seed))


# ---- the network


def test_logits_of_every_stage_have_a_row_per_frame():
    assert tcn()(features(2, 7)).shape == (2, 2, 7, 4)


@settings(max_examples=25)
@given(st.integers(0, 39), st.integers(1, 3), st.integers(1, 3))
def test_changing_a_frame_never_changes_earlier_logits(frame, num_stages, num_layers):
    model, x = tcn(num_stages=num_stages, num_layers=num_layers), features()
    changed = x.clone()
    changed[:, frame] += 3.0
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :, :frame], after[:, :, :frame])
    assert not torch.equal(before[:, :, frame], after[:, :, frame])


def test_no_gradient_flows_from_a_frame_to_later_ones():
    x = features().requires_grad_()
    tcn()(x)[:, :, 20].sum().backward()
    assert x.grad is not None
    assert x.grad[:, 21:].abs().max() == 0
    assert x.grad[:, 20].abs().max() > 0


def test_one_stage_sees_as_far_back_as_its_dilations_reach():
    model = tcn(num_stages=1, num_layers=3, width=32)  # 2 (1 + 2 + 4) = 14 frames
    x = features().requires_grad_()
    model(x)[:, :, 30].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(dim=1).nonzero().squeeze(1)
    assert (seen.min(), seen.max()) == (30 - 14, 30)


def test_default_layers_equal_a_convolution_by_hand():
    model, x = tcn(num_stages=1, num_layers=2), features(frames=9)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    prefix = "stages.0"
    y = x[0].double().numpy() @ weights[f"{prefix}.input.weight"][..., 0].T
    y = y + weights[f"{prefix}.input.bias"]
    for layer in range(2):
        name, dilation = f"{prefix}.layers.{layer}", 2**layer
        kernel, bias = weights[f"{name}.dilated.weight"], weights[f"{name}.dilated.bias"]
        hidden = np.stack(
            [
                bias
                + sum(
                    kernel[..., 2 - tap] @ y[t - tap * dilation]
                    for tap in range(3)
                    if t - tap * dilation >= 0
                )
                for t in range(len(y))
            ]
        ).clip(min=0)
        y = y + hidden @ weights[f"{name}.pointwise.weight"][..., 0].T
        y = y + weights[f"{name}.pointwise.bias"]
    y = y @ weights[f"{prefix}.output.weight"][..., 0].T + weights[f"{prefix}.output.bias"]
    np.testing.assert_allclose(model(x)[0, 0].detach().numpy(), y, atol=1e-5)


def test_padding_at_the_end_changes_nothing_before_it():
    model, short, long = tcn(), features(frames=10, seed=2), features(frames=25, seed=3)
    padded = torch.cat([short, torch.full((1, 15, 5), 7.0)], dim=1)
    batch = model(torch.cat([padded, long]))
    torch.testing.assert_close(batch[:, :1, :10], model(short))
    torch.testing.assert_close(batch[:, 1:], model(long))


def test_refinement_reads_the_softmax_of_the_stage_before():
    model, x = tcn(), features()
    logits = model(x)
    shifted = model.stages[1]((logits[0] + 5.0).softmax(dim=-1).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(logits[1], shifted)


def test_channel_dropout_drops_a_feature_over_the_whole_video():
    model = tcn(channel_dropout=0.5).train()
    dropped = model.channel_dropout(torch.ones(1, 50, 8))[0]
    assert all(len(channel.unique()) == 1 for channel in dropped)
    assert len(dropped.unique()) == 2


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="features of width 5, got 6"):
        tcn()(features(d=6))


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="at least one stage, layer and map"):
        tcn(num_layers=0)


# ---- streaming


@settings(max_examples=15)
@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 4))
def test_streaming_gives_the_logits_of_the_whole_video(frames, num_stages, num_layers):
    model = tcn(num_stages=num_stages, num_layers=num_layers)
    x = features(frames=frames)
    stream = PhaseStream(model)
    live = torch.stack([stream.step(frame) for frame in x[0]], dim=1)
    torch.testing.assert_close(live, model(x)[:, 0].detach(), atol=1e-5, rtol=1e-5)


def test_a_reset_stream_knows_nothing_of_the_video_before():
    stream, x = PhaseStream(tcn()), features(frames=12)[0]
    first = torch.stack([stream.step(frame) for frame in x])
    stream.reset()
    again = torch.stack([stream.step(frame) for frame in x])
    assert torch.equal(first, again)


def test_memory_of_a_stream_does_not_grow():
    stream = PhaseStream(tcn())

    def size():
        return sum(ring.numel() for rings in stream._rings for ring in rings)

    before = size()
    for frame in features(frames=50)[0]:
        stream.step(frame)
    assert size() == before == 2 * 6 * 2 * (1 + 2 + 4)  # stages, width, 2D of each layer


def test_streaming_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        PhaseStream(tcn().train())


# ---- losses


def losses_by_hand(logits, labels, lengths, weight, limit):
    entropy = smooth = 0.0
    for stage in logits.double().numpy():
        log_p = stage - np.log(np.exp(stage).sum(-1, keepdims=True))
        ce = [-log_p[b, t, labels[b, t]] for b, length in enumerate(lengths) for t in range(length)]
        pairs = [
            min(abs(log_p[b, t, k] - log_p[b, t - 1, k]), limit) ** 2
            for b, length in enumerate(lengths)
            for t in range(1, length)
            for k in range(log_p.shape[-1])
        ]
        entropy += sum(ce) / len(ce)
        smooth += weight * sum(pairs) / len(pairs)
    return entropy, smooth


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.integers(2, 9), min_size=1, max_size=3))
def test_losses_equal_loops_over_frames(seed, lengths):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, len(lengths), 9, 4)
    logits = 4 * torch.randn(shape, generator=generator)
    labels = torch.randint(0, 4, shape[1:3], generator=generator)
    losses = phase_losses(
        logits, labels, torch.tensor(lengths), smoothing_weight=0.3, smoothing_limit=2.0
    )
    entropy, smooth = losses_by_hand(logits, labels, lengths, 0.3, 2.0)
    assert losses["loss_phase"].item() == pytest.approx(entropy, rel=1e-4)
    assert losses["loss_smooth"].item() == pytest.approx(smooth, rel=1e-4)


def test_smoothing_of_a_worked_example():
    # log p jumps from (-ln 2, -ln 2) to (ln 3/4, ln 1/4): changes ln 3/2 and ln 1/2.
    logits = torch.tensor([[[[0.0, 0.0], [math.log(3), 0.0]]]])
    losses = phase_losses(logits, torch.tensor([[0, 0]]))
    expected = 0.15 * (math.log(1.5) ** 2 + math.log(2) ** 2) / 2
    assert losses["loss_smooth"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["loss_phase"].item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_smoothing_is_truncated_at_the_limit_and_then_without_gradient():
    logits = torch.tensor([[[[0.0, 0.0], [40.0, -40.0]]]], requires_grad=True)
    loss = phase_losses(logits, torch.tensor([[0, 0]]), smoothing_weight=1.0)["loss_smooth"]
    # Phase 0 changes by ln 2, phase 1 by about 80, cut to 4.
    assert loss.item() == pytest.approx((math.log(2) ** 2 + 16) / 2, rel=1e-5)


def test_no_gradient_flows_into_the_earlier_frame_of_a_pair():
    logits = torch.randn(1, 1, 2, 3, requires_grad=True)
    phase_losses(logits, torch.zeros(1, 2, dtype=torch.long))["loss_smooth"].backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 0].abs().max() == 0
    assert logits.grad[0, 0, 1].abs().max() > 0


def test_padding_has_no_loss_and_no_gradient_whatever_its_values():
    logits = torch.randn(2, 2, 6, 3)
    logits[:, 0, 4:] = math.inf
    logits.requires_grad_()
    labels = torch.zeros(2, 6, dtype=torch.long)
    labels[0, 4:] = -100
    losses = phase_losses(logits, labels, torch.tensor([4, 6]))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_padded_batch_has_the_loss_of_its_videos_together():
    short, long = torch.randn(2, 1, 4, 3), torch.randn(2, 1, 6, 3)
    labels = torch.randint(0, 3, (2, 6))
    padded = torch.cat([torch.cat([short, torch.randn(2, 1, 2, 3)], dim=2), long], dim=1)
    batch = phase_losses(padded, labels, torch.tensor([4, 6]))["loss_phase"]
    one = phase_losses(short, labels[:1, :4])["loss_phase"]
    other = phase_losses(long, labels[1:])["loss_phase"]
    torch.testing.assert_close(batch, (4 * one + 6 * other) / 10)


def test_the_mean_over_processes_is_the_loss_of_their_videos_together():
    logits, labels = torch.randn(2, 2, 6, 3), torch.randint(0, 3, (2, 6))
    whole = phase_losses(logits, labels, torch.tensor([2, 6]))
    parts = [
        phase_losses(logits[:, i : i + 1], labels[i : i + 1], torch.tensor([n]), num_frames=8 / 2)
        for i, n in enumerate([2, 6])
    ]
    for name, loss in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, loss)


def test_a_video_of_one_frame_has_no_smoothing():
    losses = phase_losses(torch.randn(1, 1, 1, 3), torch.zeros(1, 1, dtype=torch.long))
    assert losses["loss_smooth"].item() == 0
    assert torch.isfinite(losses["loss_phase"])


@pytest.mark.parametrize("lengths", [[0, 3], [3, 7]])
def test_lengths_outside_the_batch_are_refused(lengths):
    with pytest.raises(ValueError, match=r"must lie in \[1, 6\]"):
        phase_losses(
            torch.randn(1, 2, 6, 3), torch.zeros(2, 6, dtype=torch.long), torch.tensor(lengths)
        )


def test_the_network_learns_phases_that_only_the_past_tells_apart():
    """The same frame is phase 1 after a cue and phase 0 without one."""
    torch.manual_seed(0)
    x = torch.zeros(2, 30, 2)
    x[1, 5] = torch.tensor([1.0, 0.0])
    labels = torch.zeros(2, 30, dtype=torch.long)
    labels[1, 5:] = 1
    model = CausalTCN(
        d=2, num_phases=2, num_stages=2, num_layers=4, width=8, dropout=0.0, channel_dropout=0.0
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(120):
        optimizer.zero_grad()
        sum(phase_losses(model(x), labels).values()).backward()
        optimizer.step()
    assert torch.equal(model.eval()(x)[-1].argmax(dim=-1), labels)
