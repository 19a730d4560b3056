"""STFT: its formulae, what references change, and that FCOS is left as it is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from tests.video_detectors import videos
from tests.video_detectors.tiny_stft import D, tiny_fcos, tiny_stft
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.config.load import build, load_run_config
from v2idetr.data.reference_sampler import WindowSampler
from v2idetr.evaluation.cost import flops, parameters
from v2idetr.evaluation.predictions import evaluating
from v2idetr.modeling.detectron2_models import Detectron2Detector
from v2idetr.runs.checkpoint import Checkpoint, load_detector, save_checkpoint
from video_detectors.stft import (
    STFT,
    FeatureTransformation,
    Refined,
    attended,
    match,
    relative_to_locations,
    shifted,
    shifts_to,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "video"


def load(name: str, *overrides: str):
    return load_run_config(CONFIGS / name, list(overrides), world_size=1, has_gpu=False)


def losses(detector: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        return detector.train()(batch)


def boxes_of(count: int, rng: np.random.Generator) -> torch.Tensor:
    corner, size = rng.uniform(0, 60, (count, 2)), rng.uniform(2, 40, (count, 2))
    return torch.tensor(np.concatenate([corner, corner + size], 1), dtype=torch.float32)


def lesions_of(boxes: torch.Tensor, classes: list[int], size=(96, 96)) -> Instances:
    found = Instances(size)
    found.gt_boxes, found.gt_classes = Boxes(boxes), torch.tensor(classes, dtype=torch.int64)
    return found


# ------------------------------------------------------------------------- formulae


def bilinear(values: np.ndarray, y: float, x: float) -> float:
    """The value between four cells; those outside are zero."""
    h, w = values.shape
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < h and 0 <= column < w:
                total += values[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def deformable(tower: np.ndarray, offsets: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """3 x 3 convolution of (d, h, w) at positions that offsets (groups, 9, 2, h, w) move."""
    d, h, w = tower.shape
    out = np.zeros((len(weight), h, w))
    for y, x in np.ndindex(h, w):
        for channel in range(d):
            group = channel * len(offsets) // d
            for tap, (dy, dx) in enumerate(np.ndindex(3, 3)):
                move = offsets[group, tap, :, y, x]
                value = bilinear(tower[channel], y + dy - 1 + move[0], x + dx - 1 + move[1])
                out[:, y, x] += weight[:, channel, dy, dx] * value
    return out


def test_a_transformation_aligns_by_boxes_and_adds_what_is_similar_channel_by_channel() -> None:
    module = FeatureTransformation(D, 2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    rng = np.random.default_rng(0)
    tower, boxes = rng.normal(size=(2, 3, D, 4, 5)), rng.normal(0, 2, (2, 3, 4, 4, 5))
    W = module.offsets.weight.detach().numpy()[:, :, 0, 0]
    kernel = module.align.weight.detach().numpy()
    wanted = []
    for frames, edges in zip(tower, boxes, strict=True):
        aligned = []
        for number, (frame, own) in enumerate(zip(frames, edges, strict=True)):
            relative = own if number == 0 else edges[0] - own
            offsets = np.einsum("oc,chw->ohw", W, relative).reshape(4, 9, 2, 4, 5)
            aligned.append(np.maximum(deformable(frame, offsets, kernel), 0))
        current, references = aligned[0], np.stack(aligned[1:])
        sum_ = current.copy()
        for c in range(D):
            similar = np.array([(current[c] * r[c]).sum() for r in references]) / np.sqrt(4 * 5)
            weights = np.exp(similar - similar.max())
            weights /= weights.sum()
            for weight, reference in zip(weights, references, strict=True):
                sum_[c] += weight * reference[c]
        wanted.append(sum_)
    ours = module(torch.tensor(tower).float(), torch.tensor(boxes).float())
    predicted = module.predict(torch.tensor(np.stack(wanted)).float())
    torch.testing.assert_close(ours, predicted, rtol=1e-4, atol=1e-4)


def test_equal_references_are_added_once_and_none_add_nothing() -> None:
    current, reference = torch.rand(2, D, 3, 4), torch.rand(2, 1, D, 3, 4)
    same = attended(current, reference.expand(-1, 5, -1, -1, -1))
    torch.testing.assert_close(same, reference[:, 0])
    assert not attended(current, reference[:, :0]).any()


def test_boxes_are_relative_to_their_locations_in_cells_inside_the_map() -> None:
    h, w, stride = 3, 4, 16
    x, y = np.meshgrid(np.arange(w), np.arange(h))
    centres = np.stack([x, y], -1).reshape(-1, 2) * stride + stride / 2
    anchors = np.concatenate([centres - stride / 2, centres + stride / 2], 1)
    boxes = np.random.default_rng(0).uniform(-30, 90, (2, h * w, 4))
    ours = relative_to_locations(torch.tensor(boxes), torch.tensor(anchors), (h, w))
    assert ours.shape == (2, 4, h, w)
    for b, (row, column), edge in (
        (b, at, e) for b in range(2) for at in np.ndindex(h, w) for e in range(4)
    ):
        last = (w - 1, h - 1)[edge % 2]
        location = min((column + 0.5, row + 0.5)[edge % 2], last)
        position = min(max(boxes[b, row * w + column, edge] / stride, 0), last)
        assert ours[b, edge, row, column].item() == pytest.approx(position - location)
    assert (boxes / stride < 0).any() and (boxes / stride > 3).any(), "some lie outside"


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = np.prod(np.clip(sides, 0, None))
    return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


def test_a_box_is_refined_to_the_lesion_it_overlaps_most_from_an_iou_of_a_tenth() -> None:
    rng = np.random.default_rng(1)
    boxes, lesions = boxes_of(200, rng), boxes_of(3, rng)
    classes, wanted = match(boxes, lesions_of(lesions, [1, 0, 1]), 2)
    for box, label, goal in zip(boxes.numpy(), classes, wanted, strict=True):
        overlaps = [iou(box, lesion) for lesion in lesions.numpy()]
        best = int(np.argmax(overlaps))
        assert label == ([1, 0, 1][best] if overlaps[best] >= 0.1 else 2)
        assert label == 2 or torch.equal(goal, lesions[best])
    assert {0, 1, 2} == set(classes.tolist())
    empty, _ = match(boxes, lesions_of(torch.zeros(0, 4), []), 2)
    assert (empty == 2).all()


def test_shifts_are_in_halves_of_width_and_height() -> None:
    box, goal = torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[5.0, 20, 40, 80]])
    torch.testing.assert_close(shifts_to(box, goal), torch.tensor([[-0.5, 0.0, 1.0, 1.0]]))
    torch.testing.assert_close(shifted(box, shifts_to(box, goal)), goal)


def test_refinement_losses_are_focal_and_smooth_l1_per_box_with_a_lesion() -> None:
    rng = np.random.default_rng(2)
    boxes, lesions = boxes_of(120, rng).view(2, 60, 4), boxes_of(2, rng)
    logits, shifts = torch.randn(2, 60, 2), torch.randn(2, 60, 4)
    truth = [lesions_of(lesions, [1, 0]), lesions_of(torch.zeros(0, 4), [])]
    parts = [(boxes[:, :40], logits[:, :40], shifts[:, :40])]
    parts.append((boxes[:, 40:], logits[:, 40:], shifts[:, 40:]))
    ours = tiny_stft(num_classes=2).refinement_losses([Refined(*part) for part in parts], truth)
    focal = smooth = 0.0
    count = 0
    for c, n in np.ndindex(2, 60):
        classes, goals = match(boxes[c, n : n + 1], truth[c], 2)
        for k in range(2):
            p = 1 / (1 + math.exp(-logits[c, n, k].item()))
            if classes.item() == k:
                focal -= 0.25 * (1 - p) ** 2 * math.log(p)
            else:
                focal -= 0.75 * p**2 * math.log(1 - p)
        if classes.item() < 2:
            count += 1
            box, goal = boxes[c, n].numpy(), goals[0].numpy()
            size = [box[2] - box[0], box[3] - box[1]] * 2
            for e in range(4):
                error = abs(shifts[c, n, e].item() - (goal[e] - box[e]) / (0.5 * size[e]))
                smooth += error - 0.055 if error >= 0.11 else 0.5 * error**2 / 0.11
    assert count > 5
    assert ours["loss_stft_cls"].item() == pytest.approx(focal / count, rel=1e-4)
    assert ours["loss_stft_loc"].item() == pytest.approx(smooth / count, rel=1e-4)


# ------------------------------------------------------------------------- FCOS is left as it is


def predicting(detector: STFT, *, logit: float, shifts: list[float]) -> STFT:
    """With a refinement that says the same everywhere."""
    for module, bias in (
        (detector.cls_transformation, [logit]),
        (detector.box_transformation, shifts),
    ):
        nn.init.zeros_(module.predict.weight)
        module.predict.bias.data.copy_(torch.tensor(bias))
    return detector


def alone(detector: STFT, frames: list[dict]) -> list[Instances]:
    """What its FCOS finds."""
    single = Detectron2Detector.__new__(Detectron2Detector)
    nn.Module.__init__(single)
    single.net = detector.net
    with evaluating(single):
        return [single([frame])[0]["instances"] for frame in frames]


def test_a_refinement_that_says_one_and_moves_nothing_gives_the_boxes_of_fcos() -> None:
    detector = tiny_stft(trained=True, num_evaluated=1)
    detector = predicting(detector, logit=40.0, shifts=[0.0] * 4)
    frames = videos.video(4)
    ours, fcos = videos.in_order(detector, frames), alone(detector, frames)
    assert sum(map(len, fcos)) > 20
    for refined, single in zip(ours, fcos, strict=True):
        assert torch.equal(refined.pred_boxes.tensor, single.pred_boxes.tensor)
        assert torch.equal(refined.scores, single.scores.sqrt())
        assert torch.equal(refined.pred_classes, single.pred_classes)


def test_the_threshold_is_fcos_s_and_the_score_the_geometric_mean() -> None:
    detector = predicting(tiny_stft(trained=True), logit=-6.0, shifts=[0.0] * 4)
    frames = videos.video(2)
    ours, fcos = videos.in_order(detector, frames), alone(detector, frames)
    probability = 1 / (1 + math.exp(6))
    for refined, single in zip(ours, fcos, strict=True):
        torch.testing.assert_close(refined.scores, (single.scores * probability).sqrt())
    assert min(found.scores.min() for found in ours) < detector.net.test_score_thresh


def test_shifts_move_the_boxes_before_suppression() -> None:
    detector = predicting(tiny_stft(trained=True), logit=40.0, shifts=[0.2, 0.2, 0.2, 0.2])
    detector.net.test_nms_thresh = 1.0
    (frame,) = videos.video(1, size=(256, 256))
    (ours,), (fcos,) = videos.in_order(detector, [frame]), alone(detector, [frame])
    inside = (fcos.pred_boxes.tensor > 0).all(1) & (fcos.pred_boxes.tensor < 200).all(1)
    box = fcos.pred_boxes.tensor[inside]
    moved = box + 0.1 * (box[:, 2:] - box[:, :2]).repeat(1, 2)
    assert len(box) > 3
    torch.testing.assert_close(ours.pred_boxes.tensor[inside], moved)


def test_losses_of_fcos_are_those_of_the_single_frame_detector() -> None:
    detector = tiny_stft(num_frames=1, trained=True)
    single = Detectron2Detector(net=tiny_fcos(), class_names=["benign"])
    single.load_state_dict({n: t for n, t in detector.state_dict().items() if n.startswith("net.")})
    batch = videos.train_clips(detector)
    for _ in range(2):  # the second step with what the first one kept
        ours, theirs = losses(detector, batch), losses(single, batch)
        assert theirs.keys() == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
        for name, loss in theirs.items():
            assert torch.equal(ours[name], loss)
    normalizer = detector.net.saved_loss_normalizer
    assert normalizer > 0 and torch.equal(normalizer, single.net.saved_loss_normalizer)


# ------------------------------------------------------------------------- references


@pytest.mark.parametrize("length", [1, 2, 9])
def test_videos_and_streams_give_what_single_clips_give(length) -> None:
    detector, frames = tiny_stft(trained=True, num_classes=2), videos.video(length)
    clip_by_clip = videos.from_nothing(detector, frames)
    in_order = videos.in_order(detector, frames)
    videos.assert_equal(in_order, clip_by_clip)
    videos.assert_equal(videos.streamed(detector, frames), in_order)


def test_other_references_change_the_detections_of_a_frame() -> None:
    detector, frames = tiny_stft(trained=True), videos.video(9)
    changed = [frames[0], *videos.video(9, seed=3)[1:]]
    ours, others = (videos.in_order(detector, f)[0] for f in (frames, changed))
    assert len(ours) != len(others) or not torch.equal(ours.scores, others.scores)
    single = tiny_stft(trained=True, num_evaluated=1)
    videos.assert_equal(videos.in_order(single, frames)[:1], videos.in_order(single, changed)[:1])


def test_clips_of_a_batch_do_not_change_each_other() -> None:
    detector = tiny_stft(trained=True)
    clips = videos.train_clips(detector, batch=3)
    levels = [detector.levels(clip["clip"]) for clip in clips]
    together = detector.refine([type(at[0]).cat(at) for at in zip(*levels, strict=True)], 3)
    for number, own in enumerate(levels):
        for one, other in zip(detector.refine(own, 3), together, strict=True):
            torch.testing.assert_close(one.logits[0], other.logits[number], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.shifts[0], other.shifts[number], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------- training


def test_gradients_reach_every_parameter() -> None:
    detector = tiny_stft(trained=True)
    sum(losses(detector, videos.train_clips(detector)).values()).backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_boxes_get_no_gradient_from_the_offsets_that_they_choose() -> None:
    detector = tiny_stft(trained=True)
    found = losses(detector, videos.train_clips(detector))
    (found["loss_stft_cls"] + found["loss_stft_loc"]).backward()
    grad = detector.net.head.bbox_pred.weight.grad
    assert grad is None or not grad.any()


def test_a_few_steps_lower_the_losses() -> None:
    detector = tiny_stft()
    nn.init.constant_(detector.net.head.bbox_pred.bias, 1.5)  # boxes that can be refined
    batch = videos.train_clips(detector)
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        detector.net.saved_loss_normalizer.fill_(20.0)
        found = losses(detector, batch)
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in found.items()})
    first, last = history[0], history[-1]
    assert sum(last.values()) < 0.6 * sum(first.values())
    for name in ("loss_stft_cls", "loss_stft_loc"):
        assert last[name] < 0.8 * first[name]


def test_frames_without_a_lesion_can_be_trained_on() -> None:
    detector = tiny_stft()
    batch = videos.train_clips(detector)
    for sample in batch:
        sample["instances"] = lesions_of(torch.zeros(0, 4), [], (64, 96))
    found = losses(detector, batch)
    assert found["loss_stft_loc"] == 0
    sum(found.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert detector.count_frames(batch) == 2 and detector.count_boxes(batch) == 0


def test_mixed_precision_changes_the_losses_little() -> None:
    detector = tiny_stft(trained=True)
    batch = videos.train_clips(detector)
    full = losses(detector, batch)
    detector.net.saved_loss_normalizer.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = losses(detector, batch)
    for name, loss in full.items():
        assert mixed[name].item() == pytest.approx(loss.item(), rel=0.05)


# ------------------------------------------------------------------------- what is refused


def test_another_network_than_fcos_is_refused() -> None:
    sampler = WindowSampler(num_frames=3, window=9, sampling="random")
    with pytest.raises(ValueError, match=r"Linear is no FCOS.*_target_=detectron2"):
        STFT(
            net=nn.Linear(1, 1),
            class_names=["polyp"],
            reference_sampler=sampler,
        )
    with pytest.raises(ValueError, match=r"conv_dims ends with 6.*multiple of 4"):
        STFT(net=tiny_fcos(d=6), class_names=["polyp"], reference_sampler=sampler)


def test_weights_of_the_single_frame_detector_are_refused_and_the_missing_ones_named(
    tmp_path: Path,
) -> None:
    single = Detectron2Detector(net=tiny_fcos(), class_names=["benign"])
    file = tmp_path / "best.pth"
    save_checkpoint(Checkpoint("plain", 1, single.state_dict(), class_names=["benign"]), file)
    detector = tiny_stft()
    with pytest.raises(CheckpointError, match=r"cls_transformation\.align\.weight"):
        load_detector(detector, file, class_names=["benign"])
    assert single.state_dict().keys() <= detector.state_dict().keys(), "but names agree"


# ------------------------------------------------------------------------- configs


def released_blocks() -> int:
    """Parameters of what the released backbone has besides ResNet-50's own.

    In each of the 4, 6 and 3 blocks of res3 to res5: a 3 x 3 convolution that gives 18 offsets, and
    a global context block of a quarter of the channels.
    """
    total = 0
    for blocks, channels in ((4, 512), (6, 1024), (3, 2048)):
        middle, quarter = channels // 4, channels // 4
        offsets = 9 * middle * 18 + 18
        attention = channels + 1
        transform = channels * quarter + quarter + 2 * quarter + quarter * channels + channels
        total += blocks * (offsets + attention + transform)
    return total


def test_parameters_of_stft() -> None:
    config = load("stft_sun.yaml", "model.weights=null")
    with torch.device("meta"):
        detector = build(config, "video.model")
    body, pyramid = detector.net.backbone.bottom_up, detector.net.backbone
    scales = 5  # one factor a level, which Detectron2's FCOS has not
    own = parameters(detector)["total"]
    assert own == 33_253_899
    assert own + released_blocks() + scales == 43_835_655  # 43.8 M of the released code
    assert round((parameters(body)["total"] + released_blocks()) / 1e6, 1) == 34.0
    assert round((parameters(pyramid)["total"] - parameters(body)["total"]) / 1e6, 1) == 3.9
    assert round((own - parameters(pyramid)["total"] + scales) / 1e6, 1) == 5.9


def test_the_schedule_is_the_released_one() -> None:
    config = load("stft_sun.yaml")
    factor = build(config, "lr_multiplier")
    steps = [0, 1000, 2000, 15_999, 16_001, 20_001, 22_001]
    wanted = [1 / 3, 2 / 3, 1, 1, 0.5, 0.25, 0.125]
    assert [factor(step / 24_000) for step in steps] == pytest.approx(wanted)
    assert config.train.clip_grad_norm == 0
    assert config.optimizer.lr * 4 / config.train.batch_size == pytest.approx(1e-3)
    evaluated = build(config, "video.model.evaluation_sampler")
    assert (evaluated.num_frames, evaluated.look_ahead, evaluated.window) == (11, 9, 9)


def test_both_detectors_of_a_config_start_from_equal_weights() -> None:
    config = load("stft_synthetic.yaml", "model.weights=null")
    detectors = []
    for key in ("model", "video.model"):
        torch.manual_seed(0)
        detectors.append(build(config, key))
    single, clip = detectors
    for name, tensor in single.state_dict().items():
        assert torch.equal(clip.state_dict()[name], tensor)
    assert clip.net.test_score_thresh == single.net.test_score_thresh == 0.05


def test_a_frame_costs_fcos_once_and_the_transformations_of_its_clip() -> None:
    detector, frames = tiny_stft(trained=True), videos.video(12)
    single = tiny_stft(trained=True, num_evaluated=1)
    together, alone_ = (
        flops(d, videos.clips(frames, d.evaluation_sampler)[6]) for d in (detector, single)
    )
    cells = 8 * 12 + 4 * 6 + 2 * 3  # of maps at strides 8, 16 and 32
    offsets, convolution, sampling = 4 * 72, 9 * D * D, 9 * D * 4
    similarity = mean = D
    four_more = 4 * cells * (offsets + convolution + sampling + similarity + mean)
    assert together - alone_ == 2 * 2 * four_more, "in two towers"
