"""Multi-scale Spatiotemporal Interaction: what it mixes, and what it must never mix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2idetr.modeling.interface import Features
from v2idetr.modeling.temporal import MSI, GlobalInteractor, InteractionBlock, LocalInteractor

D = 16
CELLS = {8: (6, 9), 16: (3, 5), 32: (2, 3), 64: (1, 2)}
STRIDES = tuple(CELLS)


def build(*, trained: bool = True, **settings) -> MSI:
    """A small MSI; ``trained`` gives every parameter a random value, as training would."""
    msi = MSI(**{"d": D, "ffn_dim": 24, "num_heads": 4} | settings)
    if trained:
        for parameter in msi.parameters():
            nn.init.normal_(parameter, std=0.3)
    return msi.eval()


def clips(C: int = 2, T: int = 3) -> Features:
    return Features({s: torch.randn(C * T, D, *hw) for s, hw in CELLS.items()}, None)


def mix(msi: MSI, features: Features, num_frames: int) -> Features:
    return msi(replace(features, num_frames=num_frames))


def with_padding(features: Features) -> Features:
    """The second clip ends before the last row and the last two columns of the finest level."""
    B = len(features.maps[8])
    padding = {}
    for stride, (h, w) in CELLS.items():
        mask = torch.zeros(B, h, w, dtype=torch.bool)
        mask[B // 2 :, -(-40 // stride) :] = True
        mask[B // 2 :, :, -(-56 // stride) :] = True
        padding[stride] = mask
    return Features(features.maps, padding)


def assert_same(have: Features, want: Features, *, atol: float = 1e-5) -> None:
    assert list(have.maps) == list(want.maps)
    for stride, expected in want.maps.items():
        torch.testing.assert_close(have.maps[stride], expected, atol=atol, rtol=1e-4)


# ------------------------------------------------------------------------- the start


@pytest.mark.parametrize("T", [1, 2, 3, 5])
@pytest.mark.parametrize("depth", [1, 2])
def test_msi_starts_as_the_identity(T: int, depth: int) -> None:
    features = clips(2, T)
    out = mix(build(trained=False, depth=depth), features, T)
    for stride, before in features.maps.items():
        assert torch.equal(out.maps[stride], before)


def test_the_literal_equation_does_not_start_as_the_identity() -> None:
    features = clips()
    out = mix(build(trained=False, residual="paper"), features, 3)
    for stride, before in features.maps.items():
        assert (out.maps[stride] - before).abs().max() > 0.1


def test_the_projections_that_start_at_zero_learn_from_the_first_step() -> None:
    msi, features = build(trained=False).train(), clips()
    out = mix(msi, features, 3)
    sum(m.pow(2).sum() for m in out.maps.values()).backward()
    learning = {name for name, p in msi.named_parameters() if p.grad is not None and p.grad.any()}
    for stride in STRIDES:
        for name in ("position.weight", "interactor.output.weight", "linear2.weight"):
            assert f"levels.{stride}.0.{name}" in learning


# ------------------------------------------------------------------------- the equation


@pytest.mark.parametrize("role", ["local", "global"])
@pytest.mark.parametrize("residual", ["uniformer", "paper"])
def test_a_block_is_position_interactor_and_feed_forward(role: str, residual: str) -> None:
    msi = build(strides=(8,), roles=(role,), residual=residual)
    block = msi.levels["8"][0]
    x = torch.randn(1, 3, 6, 9, D)

    def ffn(y: Tensor) -> Tensor:
        y = F.layer_norm(y, (D,), block.ffn_norm.weight, block.ffn_norm.bias)
        return block.linear2(F.gelu(block.linear1(y)))

    position = block.position
    place = F.conv3d(x.movedim(-1, 1), position.weight, position.bias, padding=1, groups=D)
    placed = x + place.movedim(1, -1)
    mixed = block.interactor(placed, None)
    if residual == "paper":  # Y = FFN(A(PE(F)) + F)
        want = ffn(mixed + x)
    else:
        want = placed + mixed
        want = want + ffn(want)
    torch.testing.assert_close(block(x, None), want)


def test_the_global_interactor_is_multi_head_attention_over_all_tokens() -> None:
    interactor = GlobalInteractor(D, num_heads=4)
    x = torch.randn(2, 3, 2, 4, D)
    reference = nn.MultiheadAttention(D, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(interactor.input.weight)
        reference.in_proj_bias.copy_(interactor.input.bias)
        reference.out_proj.weight.copy_(interactor.output.weight)
        reference.out_proj.bias.copy_(interactor.output.bias)
    tokens = interactor.norm(x.flatten(1, 3))
    want = reference(tokens, tokens, tokens)[0].view_as(x)
    torch.testing.assert_close(interactor(x, None), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kernel_size", "reach"), [(3, 1), (5, 2)])
def test_the_local_interactor_sees_half_a_kernel_in_time_height_and_width(
    kernel_size: int, reach: int
) -> None:
    interactor = LocalInteractor(D, kernel_size=kernel_size)
    x = torch.randn(1, 7, 7, 7, D, requires_grad=True)
    interactor(x, None)[0, 3, 3, 3].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    want = torch.zeros(7, 7, 7, dtype=torch.bool)
    want[(slice(3 - reach, 4 + reach),) * 3] = True
    assert torch.equal(seen, want)


# ------------------------------------------------------------------------- who sees whom


@pytest.mark.parametrize("T", [2, 3, 5])
def test_frames_of_a_clip_see_each_other_and_other_clips_never(T: int) -> None:
    msi, features = build(), clips(3, T)
    before = mix(msi, features, T)
    changed = 1 * T  # the first frame of the second clip
    maps = {stride: m.clone() for stride, m in features.maps.items()}
    for m in maps.values():
        m[changed] += torch.randn_like(m[changed])
    after = mix(msi, Features(maps, None), T)
    for stride in STRIDES:
        moved = (after.maps[stride] - before.maps[stride]).flatten(1).abs().amax(1)
        assert (moved[T : T + min(T, 3)] > 1e-4).all(), "within reach of the kernel"
        assert not moved[:T].any() and not moved[2 * T :].any()


def test_a_global_level_joins_the_first_and_the_last_frame_of_a_long_clip() -> None:
    msi, features = build(), clips(1, 5)
    before = mix(msi, features, 5)
    maps = {stride: m.clone() for stride, m in features.maps.items()}
    for m in maps.values():
        m[0] += torch.randn_like(m[0])
    after = mix(msi, Features(maps, None), 5)
    for stride, is_global in zip(STRIDES, (False, False, True, True), strict=True):
        moved = (after.maps[stride][4] - before.maps[stride][4]).abs().max() > 1e-4
        assert moved.item() is is_global


def test_a_single_frame_is_a_clip() -> None:
    msi, features = build(), clips(2, 1)
    together = mix(msi, features, 1)
    alone = mix(msi, features.select(torch.tensor([1])), 1)
    for stride in STRIDES:
        torch.testing.assert_close(together.maps[stride][1:], alone.maps[stride])


def test_the_order_of_clips_is_the_order_of_the_results() -> None:
    msi, features = build(), with_padding(clips(2, 3))
    swap = torch.tensor([3, 4, 5, 0, 1, 2])
    assert_same(mix(msi, features.select(swap), 3), mix(msi, features, 3).select(swap))


def test_the_order_of_frames_matters() -> None:
    msi, features = build(), clips(1, 3)
    reverse = torch.tensor([2, 1, 0])
    have = mix(msi, features.select(reverse), 3)
    want = mix(msi, features, 3).select(reverse)
    assert (have.maps[8] - want.maps[8]).abs().max() > 1e-3


# ------------------------------------------------------------------------- padding


@pytest.mark.parametrize("residual", ["uniformer", "paper"])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_padded_cells_hold_does_not_matter(residual: str, depth: int) -> None:
    msi, features = build(residual=residual, depth=depth), with_padding(clips())
    assert features.padding is not None
    maps = {
        stride: m.masked_fill(features.padding[stride].unsqueeze(1), 1e3)
        for stride, m in features.maps.items()
    }
    have, want = mix(msi, Features(maps, features.padding), 3), mix(msi, features, 3)
    for stride in STRIDES:
        keep = ~features.padding[stride].unsqueeze(1)
        torch.testing.assert_close(have.maps[stride] * keep, want.maps[stride] * keep)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_padded_clip_gives_what_it_gives_alone(depth: int) -> None:
    msi, features = build(depth=depth), with_padding(clips())
    together = mix(msi, features, 3)
    cut = {stride: (-(-40 // stride), -(-56 // stride)) for stride in STRIDES}
    alone = mix(
        msi,
        Features({s: features.maps[s][3:, :, : cut[s][0], : cut[s][1]] for s in STRIDES}, None),
        3,
    )
    for stride, (h, w) in cut.items():
        have = together.maps[stride][3:, :, :h, :w]
        torch.testing.assert_close(have, alone.maps[stride], atol=1e-4, rtol=1e-4)


def test_masks_are_handed_on_as_they_are() -> None:
    features = with_padding(clips())
    assert mix(build(), features, 3).padding is features.padding
    assert mix(build(), clips(), 3).padding is None


# ------------------------------------------------------------------------- options


def test_a_level_without_a_role_stays_as_it_is() -> None:
    msi, features = build(roles=("none", "local", "none", "global")), clips()
    out = mix(msi, features, 3)
    for stride in (8, 32):
        assert out.maps[stride] is features.maps[stride]
    for stride in (16, 64):
        assert not torch.equal(out.maps[stride], features.maps[stride])


def test_roles_choose_the_interactors_and_depth_their_number() -> None:
    msi = build(roles=("global", "local", "none", "local"), depth=2)
    kinds = {
        int(name): [type(block.interactor) for block in blocks]
        for name, blocks in msi.levels.items()
    }
    assert kinds == {
        8: [GlobalInteractor] * 2,
        16: [LocalInteractor] * 2,
        64: [LocalInteractor] * 2,
    }
    assert all(isinstance(b, InteractionBlock) for blocks in msi.levels.values() for b in blocks)


def test_the_features_given_are_not_changed() -> None:
    features = with_padding(clips())
    before = {stride: m.clone() for stride, m in features.maps.items()}
    mix(build(), features, 3)
    assert all(torch.equal(features.maps[stride], before[stride]) for stride in STRIDES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"roles": ("local", "global")}, "4 levels but 2 roles"),
        ({"roles": ("local", "local", "global", "both")}, "got 'both'"),
        ({"kernel_size": 4}, "must be odd, got 4"),
        ({"num_heads": 5}, "divisible by num_heads=5"),
    ],
)
def test_options_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MSI(**{"d": D, "num_heads": 4} | settings)


def test_a_level_that_the_detector_does_not_have_is_refused() -> None:
    msi = build(strides=(4, 8), roles=("local", "local"))
    with pytest.raises(ValueError, match="a level of stride 4"):
        mix(msi, clips(), 3)
