"""CVA-Net: its formulae, what a key frame sees, and the single-frame detector below it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from torch import nn

from configs.models.backbones import resnet50
from tests.conftest import TinyBackbone, criterion
from tests.video_detectors.attention_in_numpy import attended, layer_norm
from tests.video_detectors.videos import (
    assert_equal,
    clips,
    from_nothing,
    in_order,
    lesion_free,
    losses_of_steps,
    streamed,
    train_clips,
    video,
    without_gradient,
)
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.data.reference_sampler import AdjacentSampler, GlobalSampler, MixedSampler
from v2idetr.modeling.criterion import Targets
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.fusion import Fusion
from v2idetr.modeling.interface import Features
from v2idetr.modeling.meta_arch import Detector
from v2idetr.runs.checkpoint import load_detector
from video_detectors.cva_net import (
    FRAMES,
    KEY,
    ClipFusion,
    CVANet,
    LevelFusion,
    class_loss,
    clip_of,
    video_feature,
)

D, HEADS = 32, 4
RELEASED = {"shared": True, "copy_last": True}


def sampler(in_evaluation: str = "spaced") -> MixedSampler:
    return MixedSampler(
        local=AdjacentSampler(before=1, after=1),
        distant=GlobalSampler(num_references=3, in_evaluation=in_evaluation),
    )


def tiny_net(fusion: Fusion | None = None, **changes) -> DeformableDETR:
    settings = {"num_classes": 1, "d": D, "num_queries": 12, "num_heads": HEADS, "ffn_dim": 48}
    settings |= {"num_encoder_layers": 1, "num_decoder_layers": 2, "dropout": 0.0} | changes
    net = DeformableDETR(backbone=TinyBackbone(), weights=None, fusion=fusion, **settings)
    for head in net.box_heads:
        nn.init.normal_(head.layers[-1].weight, std=0.1)
    return net


def tiny(*, weight: float = 1.0, names=("polyp",), fusion=None, net=None, **others) -> CVANet:
    torch.manual_seed(0)
    features = ClipFusion(d=D, dropout=0.0, **(fusion or {}))
    net = tiny_net(Fusion(features=features), num_classes=len(names), **(net or {}))
    return CVANet(
        net=net,
        criterion=criterion(),
        class_names=list(names),
        video_class_weight=weight,
        **{"reference_sampler": sampler(), **others},
    )


# ------------------------------------------------------------------------- the formulae


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("one_attention", [False, True])
def test_a_level_is_fused_as_in_the_formulae(one_attention: bool, padded: bool) -> None:
    torch.manual_seed(1)
    fuse = LevelFusion(D, num_heads=HEADS, dropout=0.1, one_attention=one_attention).eval()
    for parameter in fuse.parameters():
        nn.init.normal_(parameter, std=0.3)
    clip = torch.randn(2, FRAMES, 7, D)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = padded
    have = fuse(clip, padding if padded else None).detach()
    intra = fuse.inter_video if fuse.intra_video is None else fuse.intra_video
    assert (intra is fuse.inter_video) == one_attention
    for c in range(2):
        x, keep = clip[c].double().numpy(), ~padding[c].numpy()
        y = [
            x[t]
            + layer_norm(fuse.inter_norm, attended(fuse.inter_video, x[3 + t], x[t], x[t], keep))
            for t in range(3)
        ]
        want = y[1] + attended(intra, y[2], y[0], y[1], keep)
        want[~keep] = 0
        np.testing.assert_allclose(have[c].numpy(), want, atol=1e-4)


def features(C: int, *, padded: bool = False) -> Features:
    sizes = {8: (6, 9), 16: (3, 5), 32: (2, 3), 64: (1, 2)}
    maps = {s: torch.randn(C * FRAMES, D, *hw) for s, hw in sizes.items()}
    if not padded:
        return Features(maps, None, None, FRAMES)
    padding = {s: torch.zeros(C * FRAMES, *hw, dtype=torch.bool) for s, hw in sizes.items()}
    for mask in padding.values():
        mask[FRAMES:, :, -1] = True
    ratios = {s: torch.rand(C * FRAMES, 2) for s in sizes}
    return Features(maps, padding, ratios, FRAMES)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_every_level_of_the_key_frame_is_fused_and_the_other_frames_stay(padded: bool) -> None:
    fusion, given = ClipFusion(d=D).eval(), features(2, padded=padded)
    fused = fusion(given)
    assert list(fused.maps) == list(given.maps)
    for level, (stride, before) in enumerate(given.maps.items()):
        clip = before.unflatten(0, (2, FRAMES))
        tokens = clip.flatten(3).transpose(2, 3)
        mask = (
            given.padding[stride].unflatten(0, (2, FRAMES))[:, KEY].flatten(1) if padded else None
        )
        want = fusion.levels[level](tokens, mask).transpose(1, 2)
        after = fused.maps[stride].unflatten(0, (2, FRAMES))
        torch.testing.assert_close(after[:, KEY].flatten(2), want)
        others = [t for t in range(FRAMES) if t != KEY]
        assert torch.equal(after[:, others], clip[:, others])


@torch.no_grad()
def test_what_padded_cells_hold_does_not_matter() -> None:
    fusion, given = ClipFusion(d=D).eval(), features(2, padded=True)
    other = Features(
        {s: m.masked_fill(given.padding[s].unsqueeze(1), 9.0) for s, m in given.maps.items()},
        given.padding,
        given.valid_ratios,
        FRAMES,
    )
    key = torch.tensor([KEY, FRAMES + KEY])
    have, want = fusion(other).select(key), fusion(given).select(key)
    for stride, expected in want.maps.items():
        torch.testing.assert_close(have.maps[stride], expected)
    torch.testing.assert_close(video_feature(have), video_feature(want))


@torch.no_grad()
def test_clips_do_not_see_each_other() -> None:
    fusion, given = ClipFusion(d=D).eval(), features(2)
    together = fusion(given)
    for clip in range(2):
        frames = torch.arange(clip * FRAMES, (clip + 1) * FRAMES)
        one = given.select(frames)
        one.num_frames = FRAMES
        for stride, alone in fusion(one).maps.items():
            torch.testing.assert_close(together.maps[stride][frames], alone)


def test_the_video_level_feature_is_the_mean_of_the_coarsest_level_without_padding() -> None:
    given = features(2, padded=True)
    have = video_feature(given)
    coarsest = given.maps[64].numpy()
    for image in range(len(coarsest)):
        cells = coarsest[image, :, :, :1] if image >= FRAMES else coarsest[image]
        np.testing.assert_allclose(have[image], cells.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_the_classes_of_the_video_have_a_cross_entropy_each() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    boxes = torch.rand(2, 4)
    targets = Targets(
        [torch.tensor([1, 1]), torch.tensor([], dtype=torch.long)], [boxes, boxes[:0]]
    )
    present = np.array([[0.0, 1.0], [0.0, 0.0]])
    p = 1 / (1 + np.exp(-logits.numpy()))
    want = -(present * np.log(p) + (1 - present) * np.log(1 - p)).mean()
    assert float(class_loss(logits, targets)) == pytest.approx(want, rel=1e-5)


# ------------------------------------------------------------------------- detection


@pytest.mark.parametrize("net", [{}, {"box_refine": True, "two_stage": True}], ids=["one", "two"])
def test_without_fusion_it_is_the_single_frame_detector(net: dict) -> None:
    cva = tiny(net=net, reference_sampler=sampler())
    cva.net.fusion = None
    alone = AdjacentSampler(before=0, after=0)
    cva.evaluation_sampler = alone
    base = Detector(net=cva.net, criterion=criterion(), class_names=["polyp"]).eval()
    frames = video(4)
    for frame, have in zip(frames, in_order(cva, frames), strict=True):
        want = base([frame])[0]["instances"]
        assert torch.equal(have.pred_boxes.tensor, want.pred_boxes.tensor)
        assert torch.equal(have.scores, want.scores)


@pytest.mark.parametrize("in_evaluation", ["spaced", "shuffled"])
@pytest.mark.parametrize("fusion", [{}, RELEASED], ids=["paper", "released"])
def test_videos_streams_and_single_clips_give_equal_detections(fusion, in_evaluation) -> None:
    cva, frames = tiny(fusion=fusion, reference_sampler=sampler(in_evaluation)), video(8)
    followed = in_order(cva, frames)
    assert_equal(followed, from_nothing(cva, frames))
    assert_equal(streamed(cva, frames), followed)


def test_detections_of_a_video_are_those_of_its_clips_through_the_network() -> None:
    cva, frames = tiny().eval(), video(5, size=(48, 80))  # padded to 64 x 96
    samples = clips(frames, cva.reference_sampler)
    with torch.no_grad():
        decoded = cva.net(cva.images(cva.frames(samples)), cva.current(samples))
        want = [found["instances"] for found in cva.postprocess(decoded, samples)]
    assert_equal(in_order(cva, frames), want)


@pytest.mark.parametrize("changed", ["before", "after", "distant"])
def test_a_detection_depends_on_every_kind_of_frame(changed: str) -> None:
    cva, frames = tiny(), video(9)
    key = 4
    before = in_order(cva, frames)[key]
    places = clips(frames, cva.reference_sampler)[key]["clip"]
    other = {"before": places[0], "after": places[2], "distant": places[3]}[changed]
    assert other["frame_index"] not in (key,)
    frames = [dict(frame) for frame in frames]
    frames[other["frame_index"]]["image"] = torch.zeros_like(frames[0]["image"])
    after = in_order(cva, frames)[key]
    assert (before.scores - after.scores).abs().max() > 1e-6


@pytest.mark.parametrize("length", [1, 2])
def test_videos_shorter_than_a_clip_repeat_frames(length: int) -> None:
    cva, frames = tiny(), video(length)
    assert_equal(in_order(cva, frames), from_nothing(cva, frames))


# ------------------------------------------------------------------------- training


@pytest.mark.parametrize("fusion", [{}, RELEASED], ids=["paper", "released"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gradients_reach_every_parameter_that_is_trained(fusion: dict, weight: float) -> None:
    cva = tiny(fusion=fusion, weight=weight).train()
    losses = cva(train_clips(cva))
    sum(losses.values()).backward()
    assert ("loss_video_class" in losses) == (weight > 0)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not without_gradient(cva)
    frozen = {n for n, p in cva.named_parameters() if not p.requires_grad}
    unused = {
        f"net.neck.{part}.3.{w}" for part in ("projections", "norms") for w in ("weight", "bias")
    }
    assert frozen == (unused if fusion else set())


def test_a_few_steps_lower_the_loss() -> None:
    cva = tiny()
    totals = losses_of_steps(cva, train_clips(cva), 12, lr=1e-3)
    assert totals[-1] < 0.9 * totals[0]


def test_losses_of_lesion_free_frames_are_finite_and_have_gradients() -> None:
    cva = tiny().train()
    losses = cva(lesion_free(train_clips(cva)))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert losses["loss_l1"] == 0 and losses["loss_class"] > 0


def test_only_the_key_frames_are_labelled() -> None:
    cva = tiny().train()
    batch = train_clips(cva)
    assert (cva.count_frames(batch), cva.count_boxes(batch)) == (2, 2)
    before = cva(batch)
    for sample in batch:
        sample["clip"] = [
            frame if place == KEY else {**frame, "instances": frame["instances"][:0]}
            for place, frame in enumerate(sample["clip"])
        ]
    after = cva(batch)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_losses_are_those_of_the_fused_key_frames() -> None:
    cva = tiny(weight=0.0).train()
    batch = train_clips(cva)
    have = cva(batch)
    decoded = cva.net(cva.images(cva.frames(batch)), cva.current(batch))
    want = cva.criterion(decoded, cva.targets(batch))
    assert have.keys() == want.keys()
    for name, loss in want.items():
        torch.testing.assert_close(have[name], loss)


@pytest.mark.parametrize("net", [{}, {"box_refine": True}], ids=["one head", "heads of layers"])
def test_without_auxiliary_losses_the_last_layer_alone_is_trained(net: dict) -> None:
    cva, only_last = tiny(net=net).train(), tiny(net=net, auxiliary_losses=False).train()
    batch = train_clips(cva)
    have, everything = only_last(batch), cva(batch)
    last = {"loss_class", "loss_l1", "loss_giou", "loss_video_class"}
    assert have.keys() == last < everything.keys()
    assert all(torch.equal(have[name], everything[name]) for name in last)
    sum(have.values()).backward()
    without = {n for n, p in only_last.named_parameters() if p.requires_grad and p.grad is None}
    assert not without


def test_the_single_frame_network_starts_with_the_weights_that_it_has_alone() -> None:
    cva = tiny().state_dict()
    torch.manual_seed(0)
    for name, tensor in tiny_net().state_dict().items():
        assert torch.equal(cva[f"net.{name}"], tensor), name


# ------------------------------------------------------------------------- options


@torch.no_grad()
def test_the_released_fusion_has_one_attention_and_copies_the_last_level() -> None:
    own, released = ClipFusion(d=D), ClipFusion(d=D, **RELEASED).eval()
    assert len(list(own.levels)) == 4
    (shared,) = released.levels
    assert shared.intra_video is None
    given = features(2, padded=True)
    fused = released(given)
    assert torch.equal(fused.maps[64], fused.maps[32])
    assert torch.equal(fused.padding[64], given.padding[32])
    assert torch.equal(fused.valid_ratios[64], given.valid_ratios[32])
    assert fused.maps[32].shape == given.maps[32].shape


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_parameters_of_cva_net() -> None:
    def count(**fusion) -> int:
        with torch.device("meta"):
            net = DeformableDETR(
                backbone=instantiate(copy.deepcopy(resnet50)),
                num_classes=3,  # the released code counts from 1
                num_queries=300,
                num_points=6,
                fusion=Fusion(features=ClipFusion(**fusion)) if fusion else None,
            )
        return sum(p.numel() for p in net.parameters())

    attention, norm = 4 * 256 * 256 + 4 * 256, 2 * 256
    assert count(**RELEASED) == count() + attention + norm
    assert count(shared=False) == count() + 4 * (2 * attention + norm)
    # The released code has the projections of C3, C4 and C5 twice and uses one set of them.
    twice = (512 + 1024 + 2048) * 256 + 3 * 256 + 3 * 2 * 256
    assert round((count(**RELEASED) + twice) / 1e6, 1) == 41.8


@pytest.mark.parametrize("name", ["reference_sampler", "evaluation_sampler"])
def test_clips_of_other_frames_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must choose the key frame between .* 3 frames"):
        tiny(**{name: AdjacentSampler(before=3, after=2)})


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="d=32 must be divisible by num_heads=5"):
        ClipFusion(d=D, num_heads=5)
    with pytest.raises(ValueError, match="copy_last=true needs a level to copy, but strides are"):
        ClipFusion(strides=(32,), copy_last=True)


def test_weights_of_the_single_frame_detector_are_refused_by_name(tmp_path) -> None:
    cva, path = tiny(weight=0.0), tmp_path / "plain.pth"
    base = Detector(net=tiny_net(), criterion=criterion(), class_names=["polyp"])
    torch.save({"model": base.state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"net\.fusion\.features\.levels\.0\.inter_video"):
        load_detector(cva, path)
    fresh = load_detector(cva, path, partial=True)
    assert fresh and all(name.startswith("net.fusion.") for name in fresh)


def test_the_frames_of_a_clip_are_put_together_in_order() -> None:
    given = features(1, padded=True)
    each = [given.select(torch.tensor([t])) for t in range(FRAMES)]
    together = clip_of(each)
    assert together.num_frames == FRAMES
    for stride in given.maps:
        assert torch.equal(together.maps[stride], given.maps[stride])
        assert torch.equal(together.padding[stride], given.padding[stride])
        assert torch.equal(together.valid_ratios[stride], given.valid_ratios[stride])
