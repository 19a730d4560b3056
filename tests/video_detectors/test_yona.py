"""YONA: its formulae, what is carried from frame to frame, and the CenterNet below it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes
from torch import nn

from configs.models.backbones import resnet50
from tests.tiny_parts import TinyBackbone
from tests.video_detectors.test_centernet import FROZEN_AFFINE, RESNET50
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
)
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.load import build, load_config
from v2idetr.data.reference_sampler import AdjacentSampler, GlobalSampler
from v2idetr.evaluation.predictions import evaluating
from v2idetr.modeling.detectron2_models import Detectron2Detector
from v2idetr.modeling.trainable import TrainableDetector
from v2idetr.runs.checkpoint import load_detector
from video_detectors.centernet import CenterNet
from video_detectors.yona import (
    YONA,
    BackgroundAlignment,
    align_foreground,
    box_masks,
    contrast_loss,
    pooled,
)

D = 8
STRONG = 0.13  # a score that some detections of untrained networks have


def tiny_net(num_classes: int = 1) -> CenterNet:
    torch.manual_seed(0)
    net = CenterNet(
        backbone=TinyBackbone(),
        num_classes=num_classes,
        pixel_mean=[127.0] * 3,
        pixel_std=[64.0] * 3,
        d=D,
    )
    nn.init.constant_(net.head.size_pred.bias, 4.0)  # boxes that are not empty
    nn.init.normal_(net.head.cls_score.weight, std=1.0)  # scores that differ
    return net


def sampler() -> AdjacentSampler:
    return AdjacentSampler(before=1, after=0)


def tiny(names=("polyp",), **changes) -> YONA:
    settings = {"reference_sampler": sampler()} | changes
    return YONA(net=tiny_net(len(names)), class_names=list(names), **settings)


def trained(**changes) -> YONA:
    """With offsets and modulators that differ from cell to cell."""
    yona = tiny(**changes)
    for layer in (yona.background.offsets, yona.background.modulator):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias, std=0.3)
    return yona


def as_if_alone(yona: YONA) -> YONA:
    """With a convolution that copies its input while nothing is offset or modulated."""
    nn.init.dirac_(yona.background.convolution.weight)
    return yona


def base_of(yona: YONA) -> Detectron2Detector:
    return Detectron2Detector(net=yona.net, class_names=yona.class_names)


# ------------------------------------------------------------------------- the formulae


def boxes(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 4)


def mask_in_numpy(of_frame: np.ndarray, h: int, w: int, stride: int) -> np.ndarray:
    mask = np.zeros((h, w), dtype=bool)
    for x0, y0, x1, y1 in of_frame:
        for i in range(h):
            for j in range(w):
                y, x = (i + 0.5) * stride, (j + 0.5) * stride
                mask[i, j] |= y0 <= y < y1 and x0 <= x < x1
    return mask


@pytest.mark.parametrize("stride", [1, 4])
def test_masks_are_the_cells_whose_centres_lie_in_a_box(stride: int) -> None:
    frames = [
        boxes([2.0, 1.5, 9.9, 8.0], [6.0, 6.0, 22.0, 11.0]),
        boxes(),
        boxes([-5.0, 3.0, 50.0, 40.0], [3.0, 3.0, 3.2, 3.1]),
    ]
    have = box_masks(frames, (7, 6), stride=stride)
    for mask, of_frame in zip(have, frames, strict=True):
        np.testing.assert_array_equal(mask, mask_in_numpy(of_frame.numpy(), 7, 6, stride))


def foreground_in_numpy(now, before, mask) -> np.ndarray:
    """As the paper writes it: a mixture inside the mask, the rest as it is."""
    if not mask.any():
        return now
    a = np.array([channel[mask].mean() for channel in before])
    b = np.array([channel[mask].mean() for channel in now])
    w = (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
    out = now.copy()
    for c in range(len(now)):
        out[c][mask] = w * now[c][mask] * a[c] + (1 - w) * now[c][mask]
    return out


def test_the_foreground_is_aligned_as_in_the_formula() -> None:
    now, before = torch.randn(3, D, 6, 7), torch.randn(3, D, 6, 7)
    masks = box_masks([boxes([4, 4, 20, 12]), boxes(), boxes([0, 0, 99, 99])], (6, 7), stride=4)
    have = align_foreground(now, before, masks)
    for frame in range(3):
        arrays = (x[frame].double().numpy() for x in (now, before))
        want = foreground_in_numpy(*arrays, masks[frame].numpy())
        np.testing.assert_allclose(have[frame], want, atol=1e-5)
    assert torch.equal(have[1], now[1]), "nothing without a box"
    assert torch.equal(have[0][:, ~masks[0]], now[0][:, ~masks[0]])


def conv3x3(x: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), h, w))
    for i in range(h):
        for j in range(w):
            patch = padded[:, i : i + 3, j : j + 3]
            out[:, i, j] = np.einsum("ocyx,cyx->o", weight, patch) + bias
    return out


def sampled(x: np.ndarray, row: float, column: float) -> np.ndarray:
    """Bilinear, 0 outside of the map."""
    total = np.zeros(len(x))
    r0, c0 = math.floor(row), math.floor(column)
    for r in (r0, r0 + 1):
        for c in (c0, c0 + 1):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                total += x[:, r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return total


def background_in_numpy(align: BackgroundAlignment, G: np.ndarray, before: np.ndarray):
    """Tap by tap, cell by cell."""
    offsets = conv3x3(G - before, align.offsets)
    modulator = 2 / (1 + np.exp(-conv3x3(G, align.modulator)))
    weight = align.convolution.weight.detach().double().numpy()
    _, h, w = G.shape
    out = np.zeros((len(weight), h, w))
    for i in range(h):
        for j in range(w):
            for tap in range(9):
                row, column = i + tap // 3 - 1, j + tap % 3 - 1
                dy, dx = offsets[2 * tap, i, j], offsets[2 * tap + 1, i, j]
                value = sampled(G, row + dy, column + dx) * modulator[tap, i, j]
                out[:, i, j] += weight[:, :, tap // 3, tap % 3] @ value
    return out


def test_the_background_is_aligned_as_in_the_formula() -> None:
    align = trained().background
    G, before = torch.randn(2, D, 5, 6), torch.randn(2, D, 5, 6)
    have = align(G, before).detach()
    for frame in range(2):
        want = background_in_numpy(align, G[frame].double().numpy(), before[frame].double().numpy())
        np.testing.assert_allclose(have[frame], want, atol=1e-4)


def test_the_convolution_starts_without_offsets_and_with_modulators_of_one() -> None:
    align = BackgroundAlignment(D)
    G = torch.randn(1, D, 5, 6)
    want = nn.functional.conv2d(G, align.convolution.weight, padding=1)
    torch.testing.assert_close(align(G, torch.randn(1, D, 5, 6)), want)


def test_the_mean_over_a_mask_is_that_of_the_upsampled_map() -> None:
    features, masks = torch.randn(3, D, 4, 6), torch.rand(3, 16, 24) < 0.3
    masks[1] = False
    upsampled = nn.functional.interpolate(features, size=(16, 24), mode="bilinear").numpy()
    have = pooled(features, masks)
    for frame, mask in enumerate(masks.numpy()):
        want = [channel[mask].mean() if mask.any() else 0.0 for channel in upsampled[frame]]
        np.testing.assert_allclose(have[frame], want, atol=1e-5)


def test_the_contrast_is_that_of_the_formula() -> None:
    features = torch.randn(4, D, 4, 6)
    whole = boxes([0, 0, 20, 16])  # the last columns are padding
    frames = [boxes([2, 3, 9, 12]), boxes(), boxes([10, 0, 16, 7]), boxes([1, 1, 19, 15])]
    foreground, inside = box_masks(frames, (16, 24)), box_masks([whole] * 4, (16, 24))
    torch.manual_seed(3)
    have = contrast_loss(features, foreground, inside & ~foreground)
    torch.manual_seed(3)
    order = torch.randperm(3).tolist()
    assert order != [0, 1, 2]

    def unit(mask) -> np.ndarray:
        upsampled = nn.functional.interpolate(features, size=(16, 24), mode="bilinear").numpy()
        means = [
            frame[:, m].mean(1) for frame, m in zip(upsampled, mask.numpy(), strict=True) if m.any()
        ]
        return np.array([x / np.linalg.norm(x) for x in means])

    f, b = unit(foreground), unit(inside & ~foreground)
    assert (len(f), len(b)) == (3, 4)
    total = 0.0
    for i, k in enumerate(order):
        positive = math.exp(f[i] @ f[k] / 0.2)
        total -= math.log(positive / (positive + sum(math.exp(f[i] @ n / 0.2) for n in b)))
    assert float(have) == pytest.approx(total / 3, rel=1e-4)


def test_the_contrast_without_lesions_is_zero() -> None:
    features = torch.randn(2, D, 4, 6, requires_grad=True)
    nothing = torch.zeros(2, 16, 24, dtype=torch.bool)
    loss = contrast_loss(features, nothing, ~nothing)
    loss.backward()
    assert loss == 0 and not features.grad.any()


# ------------------------------------------------------------------------- detection


def test_without_alignment_it_is_the_single_frame_detector() -> None:
    # Nothing carried, nothing offset, a convolution that copies.
    yona = as_if_alone(tiny(previous_score=1.1))
    frames = video(5)
    have = in_order(yona, frames)
    base = base_of(yona)
    with evaluating(base):
        want = [base([frame])[0]["instances"] for frame in frames]
    assert any(len(found) for found in want)
    for one, other in zip(have, want, strict=True):
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores)


@pytest.mark.parametrize("changes", [{}, {"released_masks": True}, {"zero_init": False}], ids=str)
def test_a_video_in_one_batch_frame_by_frame_and_as_a_stream_is_the_same(changes) -> None:
    yona, frames = trained(**changes), video(8)
    followed = in_order(yona, frames)
    with evaluating(yona):
        yona.reset()
        batch = [out["instances"] for out in yona(clips(frames, yona.reference_sampler))]
    assert_equal(batch, followed)
    assert_equal(streamed(yona, frames), followed)


def test_every_frame_is_encoded_once_and_two_are_kept() -> None:
    yona, frames, seen = trained(), video(7), []
    encode = yona.encode
    yona.encode = lambda given: seen.extend(f["image_id"] for f in given) or encode(given)
    in_order(yona, frames)
    assert seen == [frame["image_id"] for frame in frames]
    assert len(yona._states) == 2


def test_without_carried_boxes_every_clip_stands_alone() -> None:
    yona, frames = trained(previous_score=1.1), video(8)
    assert_equal(in_order(yona, frames), from_nothing(yona, frames))


def test_what_was_detected_before_changes_what_is_detected_now() -> None:
    yona, frames = trained(previous_score=0.05), video(4)
    recurrent, alone = in_order(yona, frames), from_nothing(yona, frames)
    assert torch.equal(recurrent[0].scores, alone[0].scores), "nothing is known at the start"
    assert (len(recurrent[1]), recurrent[1].scores[0]) != (len(alone[1]), alone[1].scores[0])


def aligned_maps(yona: YONA, sample: dict, previous: torch.Tensor) -> list[torch.Tensor]:
    """Aligned maps with given boxes in the previous frame."""
    both = yona.net.features(yona.net.preprocess(sample["clip"]).tensor)
    return yona.align(both[1:], both[:1], [previous])


def test_the_boxes_carried_on_are_those_detected_with_a_high_score() -> None:
    yona, frames = trained(previous_score=STRONG), video(3)
    samples = [s | {"height": 128, "width": 192} for s in clips(frames, yona.reference_sampler)]
    with evaluating(yona):
        found = yona(samples[:2])[1]["instances"]
        strong = found.pred_boxes.tensor[found.scores >= STRONG]
        assert 0 < len(strong) < len(found)
        have = yona(samples[2:])[0]["instances"]
        aligned = aligned_maps(yona, samples[2], strong / 2)  # in the network's pixels
        (want,) = yona.net.detections(yona.net.head(aligned), [(64, 96)])
    torch.testing.assert_close(have.scores, want.scores)
    torch.testing.assert_close(have.pred_boxes.tensor, 2 * want.pred_boxes.tensor)


def test_boxes_of_another_frame_than_the_one_before_are_not_used() -> None:
    yona, frames = trained(previous_score=0.05), video(6)
    samples = clips(frames, yona.reference_sampler)
    with evaluating(yona):
        alone = yona([samples[4]])[0]["instances"]
        yona.reset()
        yona([samples[1]])
        after_a_gap = yona([samples[4]])[0]["instances"]
        new_scene = samples[4] | {"clip": [frames[4], frames[4]]}
        yona.reset()
        start = yona([new_scene])[0]["instances"]
        yona.reset()
        yona([samples[3]])
        assert torch.equal(yona([new_scene])[0]["instances"].scores, start.scores)
    assert torch.equal(alone.scores, after_a_gap.scores)


@pytest.mark.parametrize("length", [1, 2])
def test_short_videos_are_detected_in(length: int) -> None:
    yona, frames = trained(), video(length)
    assert_equal(streamed(yona, frames), in_order(yona, frames))


def test_detections_come_without_delay_and_in_order() -> None:
    assert (sampler().look_ahead, tiny().order, tiny().num_frames) == (0, "video", 2)


# ------------------------------------------------------------------------- training


def test_gradients_reach_every_parameter() -> None:
    yona = tiny().train()
    losses = yona(train_clips(yona))
    names = {"loss_heatmap", "loss_size", "loss_offset", "loss_contrast"}
    assert losses.keys() == names and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in yona.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_losses_of_lesion_free_frames_are_finite_and_reach_every_parameter() -> None:
    yona = tiny().train()
    losses = yona(lesion_free(train_clips(yona)))
    assert losses["loss_size"] == losses["loss_contrast"] == 0 < losses["loss_heatmap"]
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in yona.parameters())


def test_a_few_steps_lower_the_loss() -> None:
    yona = tiny()
    totals = losses_of_steps(yona, train_clips(yona), 15, lr=5e-3)
    assert totals[-1] < 0.7 * totals[0]


def test_losses_are_centernets_of_the_aligned_current_frames() -> None:
    yona = trained().train()
    batch = train_clips(yona)
    assert (yona.count_frames(batch), yona.count_boxes(batch)) == (2, 2)
    have = yona(batch)
    ordered = [s["clip"][1] for s in batch] + [s["clip"][0] for s in batch]
    now, before = yona.net.features(yona.net.preprocess(ordered).tensor).chunk(2)
    known = [sample["clip"][0]["instances"].gt_boxes.tensor for sample in batch]
    predictions = yona.net.head(yona.align(now, before, known))
    want = yona.net.losses(predictions, [sample["instances"] for sample in batch])
    for name, loss in want.items():
        torch.testing.assert_close(have[name], loss)


def test_the_weight_of_the_contrast_is_that_of_the_settings() -> None:
    losses = []
    for weight in (0.3, 0.6, 0.0):
        yona = tiny(contrast_weight=weight).train()
        batch = train_clips(yona)
        torch.manual_seed(1)
        losses.append(yona(batch))
    torch.testing.assert_close(2 * losses[0]["loss_contrast"], losses[1]["loss_contrast"])
    assert "loss_contrast" not in losses[2]


def test_the_first_frame_of_a_video_learns_without_boxes() -> None:
    # As it is detected: its own boxes would give the answer away.
    yona = tiny(contrast_weight=0.0).train()
    frames = video(3)
    first = clips(frames, yona.reference_sampler)[:1]
    have = yona(first)
    unlabelled = frames[0] | {"image_id": -1, "instances": frames[0]["instances"][:0]}
    want = yona([first[0] | {"clip": [unlabelled, frames[0]]}])
    labelled = yona([first[0] | {"clip": [frames[0] | {"image_id": -1}, frames[0]]}])
    assert labelled["loss_heatmap"] != want["loss_heatmap"]
    for name, loss in want.items():
        torch.testing.assert_close(have[name], loss)


def test_frames_of_other_sizes_can_be_in_one_batch() -> None:
    yona = tiny().train()
    batch = [*train_clips(yona), *clips(video(3, size=(72, 64)), yona.reference_sampler)[1:]]
    losses = yona(batch)
    assert all(loss.isfinite() for loss in losses.values())


def test_it_is_trained_in_bfloat16_too() -> None:
    yona = trained().train()
    batch = train_clips(yona)
    torch.manual_seed(1)
    want = yona(batch)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        have = yona(batch)
    sum(have.values()).backward()
    for name, loss in want.items():
        assert have[name].item() == pytest.approx(loss.item(), rel=0.05)


def test_centernet_starts_with_the_weights_that_it_has_alone() -> None:
    yona = tiny().state_dict()
    for name, tensor in tiny_net().state_dict().items():
        assert torch.equal(yona[f"net.{name}"], tensor), name


# ------------------------------------------------------------------------- options


def test_released_offsets_and_modulators_start_at_random() -> None:
    ours, released = BackgroundAlignment(D), BackgroundAlignment(D, zero_init=False)
    for name in ("offsets", "modulator"):
        assert not getattr(ours, name).weight.any()
        assert getattr(released, name).weight.std().item() == pytest.approx(
            (2 / (9 * D)) ** 0.5, rel=0.2
        )
        assert not getattr(released, name).bias.any()


def quarter(frame: dict) -> dict:
    lesions = copy.deepcopy(frame["instances"])
    lesions.gt_boxes = Boxes(lesions.gt_boxes.tensor / 4)
    return frame | {"instances": lesions}


def test_released_masks_of_training_are_a_quarter_of_the_boxes() -> None:
    released, ours = (tiny(released_masks=flag).train() for flag in (True, False))
    batch = train_clips(ours)
    small = [s | {"clip": [quarter(frame) for frame in s["clip"]]} for s in batch]
    torch.manual_seed(1)
    have = released(batch)
    torch.manual_seed(1)
    torch.testing.assert_close(have["loss_contrast"], ours(small)["loss_contrast"])
    assert have["loss_heatmap"] != ours(batch)["loss_heatmap"]


def test_released_masks_of_evaluation_are_in_pixels_of_the_original_frame() -> None:
    yona, frames = trained(previous_score=STRONG, released_masks=True), video(3)
    samples = [s | {"height": 128, "width": 192} for s in clips(frames, yona.reference_sampler)]
    with evaluating(yona):
        found = yona(samples[:2])[1]["instances"]
        have = yona(samples[2:])[0]["instances"]
        strong = found.pred_boxes.tensor[found.scores >= STRONG]
        aligned = aligned_maps(yona, samples[2], strong)
        (want,) = yona.net.detections(yona.net.head(aligned), [(64, 96)])
    torch.testing.assert_close(have.scores, want.scores)


# ------------------------------------------------------------------------- contract


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_parameters_of_yona() -> None:
    with torch.device("meta"):
        net = CenterNet(
            backbone=instantiate(copy.deepcopy(resnet50)),
            num_classes=1,
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
        )
        yona = YONA(net=net, class_names=["polyp"], reference_sampler=sampler())
    have = sum(p.numel() for p in yona.parameters())
    alone = sum(p.numel() for p in net.parameters())
    assert have == alone + (9 * 64 + 1) * (18 + 9) + 9 * 64 * 64 == 23_848_416
    # The released code has a block of two convolutions and the ResNet's classifier, both unused,
    # and counts the normalisations of the backbone.
    block, classifier = 2 * 9 * 64 * 64 + 2 * 64, 2048 * 1000 + 1000
    assert have + FROZEN_AFFINE + block == 23_975_392  # 24.0 M
    assert round((have + FROZEN_AFFINE + block + classifier) / 1e6, 1) == 26.0
    assert alone > RESNET50 - FROZEN_AFFINE


def test_it_is_a_detector_that_can_be_trained_here() -> None:
    yona = tiny(("benign", "malignant"))
    assert isinstance(yona, TrainableDetector)
    frames = video(3)
    found = in_order(yona, frames)
    assert {int(c) for frame in found for c in frame.pred_classes} == {0, 1}


@pytest.mark.parametrize("name", ["reference_sampler", "evaluation_sampler"])
@pytest.mark.parametrize(
    "other", [AdjacentSampler(before=1, after=1), GlobalSampler(num_references=1)]
)
def test_other_clips_are_refused(name: str, other) -> None:
    with pytest.raises(ValueError, match=rf"{name} must choose one earlier .*before=1, after=0"):
        tiny(**{name: other})


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear is no CenterNet.*net\._target_="):
        YONA(net=nn.Linear(1, 1), class_names=["polyp"], reference_sampler=sampler())


def test_weights_of_centernet_are_refused_by_name_and_can_be_a_start(tmp_path) -> None:
    yona, path = tiny(), tmp_path / "plain.pth"
    torch.save({"model": base_of(yona).state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"background\.offsets\.weight"):
        load_detector(yona, path)
    fresh = load_detector(yona, path, partial=True)
    assert fresh and all(name.startswith("background.") for name in fresh)


@pytest.mark.parametrize("data", ["buv", "clinicdb", "sun", "synthetic"])
def test_its_configs_train_both_detectors_alike(data: str) -> None:
    config = load_config(f"configs/video/yona_{data}.yaml", ["model.weights=null"])
    assert list(config.train.stages) == ["plain", "video"] and not config.stages.video.get("needs")
    assert config.video.optimizer == config.optimizer
    assert (config.video.max_iter, config.video.batch_size) == (None, None)
    with torch.device("meta" if data in ("buv", "sun") else "cpu"):
        plain, yona = build(config, "model"), build(config, "video.model")
    ours, theirs = yona.net.state_dict(), plain.net.state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    groups = build(config, "optimizer")(yona).param_groups
    slow = {id(p) for group in groups if group["name"] == "backbone" for p in group["params"]}
    assert slow == {id(p) for p in yona.net.backbone.parameters() if p.requires_grad}
