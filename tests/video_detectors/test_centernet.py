"""CenterNet: its formulae, its detections, and the contract of a detector."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from torch import nn

from configs.models.backbones import resnet50
from tests.conftest import TinyBackbone, make_sample
from v2idetr.checkpoints.class_heads import class_head_prefixes
from v2idetr.config.load import build, load_config
from v2idetr.evaluation.predictions import evaluating
from v2idetr.modeling.detectron2_models import Detectron2Detector, image_backbone
from v2idetr.modeling.trainable import TrainableDetector
from video_detectors.centernet import (
    CenterNet,
    Neck,
    Predictions,
    gaussian_radius,
    heatmap_loss,
    target_heatmap,
)

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
RESNET50 = 23_508_032  # without the classifier
FROZEN_AFFINE = 2 * 26_560  # weights and biases of its normalisations, here buffers


def tiny_net(num_classes: int = 1, **changes) -> CenterNet:
    torch.manual_seed(0)
    settings = {"pixel_mean": MEAN, "pixel_std": STD, "d": 16} | changes
    net = CenterNet(backbone=TinyBackbone(), num_classes=num_classes, **settings)
    nn.init.constant_(net.head.size_pred.bias, 4.0)  # boxes that are not empty
    return net


def tiny(names=("polyp",), **changes) -> Detectron2Detector:
    return Detectron2Detector(net=tiny_net(len(names), **changes), class_names=list(names))


def lesions(boxes, classes=None, size=(64, 96)) -> Instances:
    found = Instances(size)
    found.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.gt_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    return found


def predictions(B: int = 1, K: int = 1, h: int = 16, w: int = 24) -> Predictions:
    """Nothing anywhere."""
    return Predictions(
        torch.full((B, K, h, w), -9.0), torch.ones(B, 2, h, w), torch.zeros(B, 2, h, w)
    )


# ------------------------------------------------------------------------- targets


def cornernet_radius(width: float, height: float, overlap: float = 0.7) -> int:
    """Smallest of three, as in the code of CornerNet and CenterNet."""
    total, area = math.ceil(width) + math.ceil(height), math.ceil(width) * math.ceil(height)
    radii = []
    for a, b, c in (
        (1, -total, area * (1 - overlap) / (1 + overlap)),
        (4, -2 * total, area * (1 - overlap)),
        (4 * overlap, 2 * overlap * total, -area * (1 - overlap)),
    ):
        radii.append((-b + math.sqrt(b * b - 4 * a * c)) / 2)
    return int(min(radii))


def test_the_radius_is_the_smallest_of_the_three_of_cornernet() -> None:
    lengths = torch.tensor(
        [(w, h) for w in (0.3, 1, 2.5, 7, 20, 128) for h in (0.2, 1, 3.7, 11, 40.5, 128)]
    )
    have = gaussian_radius(lengths).tolist()
    assert have == [cornernet_radius(*pair) for pair in lengths.tolist()]


def heatmap_in_numpy(boxes, classes, shape) -> np.ndarray:
    """Cell by cell."""
    _, h, w = shape
    heatmap = np.zeros(shape)
    for (x0, y0, x1, y1), c in zip(boxes, classes, strict=True):
        r = cornernet_radius(x1 - x0, y1 - y0)
        cx, cy = min(int((x0 + x1) / 2), w - 1), min(int((y0 + y1) / 2), h - 1)
        sigma = (2 * r + 1) / 6
        for y in range(h):
            for x in range(w):
                if abs(x - cx) <= r and abs(y - cy) <= r:
                    value = math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
                    heatmap[c, y, x] = max(heatmap[c, y, x], value)
    return heatmap


BOXES = [[1.2, 2.0, 14.9, 9.5], [10.0, 4.0, 20.0, 13.0], [21.0, 0.0, 24.0, 16.0], [3, 3, 3.5, 3.4]]
CLASSES = [0, 0, 1, 1]


def test_targets_are_gaussians_around_the_centres_of_each_class() -> None:
    shape = (3, 16, 24)
    have = target_heatmap(torch.tensor(BOXES), torch.tensor(CLASSES), shape)
    np.testing.assert_allclose(have, heatmap_in_numpy(BOXES, CLASSES, shape), atol=1e-6)
    assert (have == 1).sum() == 4 and not have[2].any()
    empty = target_heatmap(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), shape)
    assert not empty.any()


@pytest.mark.parametrize("centres", [0, 3])
def test_the_heatmap_loss_is_the_focal_loss_of_centernet(centres: int) -> None:
    rng = np.random.default_rng(0)
    target = rng.random((2, 2, 5, 6)) * 0.95
    target.reshape(-1)[rng.choice(target.size, centres, replace=False)] = 1
    logits = rng.normal(size=target.shape) * 2
    total = 0.0
    for T, x in zip(target.flat, logits.flat, strict=True):
        Y = 1 / (1 + math.exp(-x))
        total += (1 - Y) ** 2 * math.log(Y) if T == 1 else (1 - T) ** 4 * Y**2 * math.log(1 - Y)
    have = heatmap_loss(torch.tensor(logits), torch.tensor(target))
    assert float(have) == pytest.approx(-total / max(1, centres), rel=1e-6)


def test_losses_of_a_batch_are_those_of_the_formulae() -> None:
    net = tiny_net(2)
    maps = Predictions(
        torch.randn(2, 2, 16, 24), torch.randn(2, 2, 16, 24), torch.randn(2, 2, 16, 24)
    )
    px = [[4 * x for x in box] for box in BOXES]
    frames = [lesions(px[:3], CLASSES[:3]), lesions(px[3:], CLASSES[3:])]
    have = net.losses(maps, frames)
    size = offset = 0.0
    for image, (x0, y0, x1, y1) in zip((0, 0, 0, 1), BOXES, strict=True):
        centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        x, y = centre.astype(int)
        size += np.abs(maps.sizes[image, :, y, x].numpy() - [x1 - x0, y1 - y0]).sum()
        offset += np.abs(maps.offsets[image, :, y, x].numpy() - (centre - [x, y])).sum()
    assert float(have["loss_size"]) == pytest.approx(0.1 * size / 4, rel=1e-5)
    assert float(have["loss_offset"]) == pytest.approx(offset / 4, rel=1e-5)
    wanted = torch.tensor(
        np.stack(
            [
                heatmap_in_numpy(BOXES[:3], CLASSES[:3], (2, 16, 24)),
                heatmap_in_numpy(BOXES[3:], CLASSES[3:], (2, 16, 24)),
            ]
        )
    )
    want = heatmap_loss(maps.logits.double(), wanted)
    torch.testing.assert_close(have["loss_heatmap"].double(), want, rtol=1e-5, atol=1e-6)


def test_a_centre_on_the_edge_of_the_frame_is_in_its_last_cell() -> None:
    heatmap = target_heatmap(
        torch.tensor([[24.0, 16.0, 24.0, 16.0]]), torch.tensor([0]), (1, 16, 24)
    )
    assert heatmap[0, -1, -1] == 1


# ------------------------------------------------------------------------- the network


def bilinear(maps: np.ndarray, h: int, w: int) -> np.ndarray:
    """Interpolation between cell centres, pixel by pixel."""
    c, H, W = maps.shape
    out = np.zeros((c, h, w))
    for i in range(h):
        for j in range(w):
            y = min(max((i + 0.5) * H / h - 0.5, 0), H - 1)
            x = min(max((j + 0.5) * W / w - 0.5, 0), W - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, H - 1), min(x0 + 1, W - 1)
            top = maps[:, y0, x0] * (1 - x + x0) + maps[:, y0, x1] * (x - x0)
            bottom = maps[:, y1, x0] * (1 - x + x0) + maps[:, y1, x1] * (x - x0)
            out[:, i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return out


@torch.no_grad()
def test_the_neck_sums_projected_maps_upsampled_to_stride_4() -> None:
    neck = Neck({"a": 3, "b": 5}, 4, "BN").eval()
    for project in neck.projections.values():
        nn.init.normal_(project.norm.running_mean)
        nn.init.uniform_(project.norm.running_var, 0.5, 2)
        nn.init.normal_(project.norm.bias)
    maps = {"a": torch.randn(1, 3, 4, 6), "b": torch.randn(1, 5, 2, 3)}
    want = np.zeros((4, 8, 12))
    for name, project in neck.projections.items():
        weight, norm = project.weight[:, :, 0, 0].double().numpy(), project.norm
        x = np.einsum("oc,chw->ohw", weight, maps[name][0].double().numpy())
        mean, var, bias = (
            t.double().numpy()[:, None, None]
            for t in (norm.running_mean, norm.running_var, norm.bias)
        )
        want += bilinear(np.maximum((x - mean) / np.sqrt(var + norm.eps) + bias, 0), 8, 12)
    np.testing.assert_allclose(neck(maps, (8, 12))[0], want, atol=1e-5)


def test_centres_are_unlikely_at_first() -> None:
    net = tiny_net().eval()
    with torch.no_grad():
        scores = net.head(torch.zeros(1, 16, 4, 4)).logits.sigmoid()
    assert scores.mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
def test_parameters_of_centernet() -> None:
    with torch.device("meta"):
        backbone = instantiate(copy.deepcopy(resnet50))
        net = CenterNet(backbone=backbone, num_classes=1, pixel_mean=MEAN, pixel_std=STD)
    neck = (512 + 1024 + 2048) * 64 + 3 * 2 * 64
    heads = 3 * (9 * 64 * 64 + 2 * 64) + (64 + 1) * (1 + 2 + 2)
    have = sum(p.numel() for p in net.parameters())
    assert have == RESNET50 - FROZEN_AFFINE + neck + heads == 23_795_973


# ------------------------------------------------------------------------- detections


def put(maps: Predictions, cell, *, score: float, size, offset=(0.0, 0.0), image=0, c=0) -> None:
    x, y = cell
    maps.logits[image, c, y, x] = math.log(score / (1 - score))
    maps.sizes[image, :, y, x] = torch.tensor(size)
    maps.offsets[image, :, y, x] = torch.tensor(offset)


def test_a_peak_is_a_box_in_pixels_clipped_to_the_frame() -> None:
    maps = predictions(K=2)
    put(maps, (5, 4), score=0.9, size=(3.0, 2.0), offset=(0.25, 0.5), c=1)
    put(maps, (23, 15), score=0.6, size=(4.0, 4.0))
    (found,) = tiny_net(2).detections(maps, [(64, 96)])
    assert found.pred_classes.tolist() == [1, 0]
    np.testing.assert_allclose(found.scores, [0.9, 0.6], atol=1e-6)
    np.testing.assert_allclose(
        found.pred_boxes.tensor, [[15, 14, 27, 22], [84, 52, 96, 64]], atol=1e-4
    )


def test_only_peaks_above_the_threshold_are_detected() -> None:
    maps = predictions()
    put(maps, (5, 4), score=0.9, size=(3.0, 2.0))
    put(maps, (6, 5), score=0.8, size=(3.0, 2.0))  # beside it
    put(maps, (15, 4), score=0.04, size=(3.0, 2.0))
    (found,) = tiny_net().detections(maps, [(64, 96)])
    assert len(found) == 1


@pytest.mark.parametrize(("threshold", "count"), [(0.3, 1), (1.0, 2)])
def test_overlapping_detections_of_a_class_are_suppressed_unless_allowed(threshold, count) -> None:
    maps = predictions(K=2)
    for cell, score in (((9, 4), 0.9), ((11, 4), 0.8)):
        put(maps, cell, score=score, size=(9.0, 6.0))
    net = tiny_net(2, nms_threshold=threshold)
    assert len(net.detections(maps, [(64, 96)])[0]) == count
    put(maps, (11, 4), score=0.7, size=(9.0, 6.0), c=1)
    assert len(net.detections(maps, [(64, 96)])[0]) == count + 1, "of another class"


def test_nothing_is_detected_in_the_padding() -> None:
    maps = predictions(2)
    for image in (0, 1):
        put(maps, (20, 4), score=0.9, size=(3.0, 2.0), image=image)
    found = tiny_net().detections(maps, [(64, 70), (64, 96)])
    assert [len(frame) for frame in found] == [0, 1]


def test_the_number_of_detections_has_a_limit() -> None:
    maps = predictions()
    for x in range(0, 24, 6):
        put(maps, (x, 4), score=0.9, size=(1.0, 1.0))
    assert len(tiny_net(max_detections=3).detections(maps, [(64, 96)])[0]) == 3


# ------------------------------------------------------------------------- the contract

BATCH = [make_sample(seed, lesions=seed % 2) for seed in range(4)]


def test_a_frame_does_not_depend_on_the_others_of_its_batch() -> None:
    detector = tiny()
    with evaluating(detector):
        together = detector(BATCH)
        for sample, have in zip(BATCH, together, strict=True):
            (want,) = detector([sample])
            have, want = have["instances"], want["instances"]
            assert len(want)
            torch.testing.assert_close(have.scores, want.scores)
            torch.testing.assert_close(have.pred_boxes.tensor, want.pred_boxes.tensor)


def test_detections_are_in_pixels_of_the_original_frame() -> None:
    detector, sample = tiny(), {**BATCH[0], "height": 640, "width": 960}
    with evaluating(detector):
        found = detector([sample])[0]["instances"]
    assert found.image_size == (640, 960) and len(found)


def test_gradients_reach_every_parameter_with_and_without_lesions() -> None:
    for batch in (BATCH, [make_sample(0, lesions=0)] * 2):
        detector = tiny().train()
        found = detector(batch, num_boxes=3.0)
        assert found.keys() == {"loss_heatmap", "loss_size", "loss_offset"}
        assert all(loss.shape == () and loss.isfinite() for loss in found.values())
        torch.stack([*found.values()]).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_a_few_steps_lower_the_loss() -> None:
    detector = tiny().train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3)
    totals = []
    for _ in range(15):
        loss = torch.stack([*detector(BATCH).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.7 * totals[0]


def test_it_is_a_detector_that_can_be_trained_here() -> None:
    detector = tiny(("benign", "malignant"))
    assert isinstance(detector, TrainableDetector)
    assert image_backbone(detector.net) is detector.net.backbone
    heads = class_head_prefixes(detector.net)
    found = {n for n in detector.net.state_dict() if n.startswith(heads)}
    assert found == {"head.cls_score.weight", "head.cls_score.bias"}
    with pytest.raises(ValueError, match=r"1 classes.*set model\.net\.num_classes=2"):
        Detectron2Detector(net=tiny_net(), class_names=["benign", "malignant"])


@pytest.mark.parametrize("data", ["buv", "clinicdb", "sun", "synthetic"])
def test_its_configs_can_be_built_and_are_trained_as_the_other_baselines(data: str) -> None:
    ours, fcos = (
        load_config(f"configs/baselines/{name}_{data}.yaml", ["model.weights=null"])
        for name in ("centernet", "fcos")
    )
    for section in ("data", "evaluation", "lr_multiplier"):
        assert ours[section] == fcos[section]
    for key in ("max_iter", "batch_size", "best_metric", "eval_period"):
        assert ours.train[key] == fcos.train[key]
    with torch.device("meta" if data in ("buv", "sun") else "cpu"):
        model = build(ours, "model")
    groups = build(ours, "optimizer")(model).param_groups
    slow = {id(p) for group in groups if group["name"] == "backbone" for p in group["params"]}
    assert slow == {id(p) for p in model.net.backbone.parameters() if p.requires_grad}
