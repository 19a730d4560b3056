"""Detectron2's own detectors keep the contract of a detector that is trained here."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import FPN
from detectron2.utils.events import EventStorage
from torch import nn

from tests.conftest import make_sample
from tests.tiny_fixtures import in_two_processes
from v2i_runtime.preprocess import NoResize, Preprocess
from v2idetr.checkpoints.class_heads import class_head_prefixes
from v2idetr.checkpoints.conversion import of_detector
from v2idetr.checkpoints.files import CheckpointError
from v2idetr.checkpoints.published import write_published
from v2idetr.config.load import build, load_config
from v2idetr.engine.stage import DetectorStage, StageModels
from v2idetr.evaluation.predictions import FramePrediction, evaluating
from v2idetr.modeling.backbone import TimmBackbone
from v2idetr.modeling.detectron2_models import (
    Detectron2Backbone,
    Detectron2Detector,
    image_backbone,
)
from v2idetr.modeling.trainable import TrainableDetector
from v2idetr.runs.checkpoint import Checkpoint, load_detector, save_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "baselines"
DENSE = ("retinanet", "fcos")
KINDS = ("faster_rcnn", *DENSE)
BATCH = [make_sample(seed, lesions=seed % 2) for seed in range(4)]

every_kind = pytest.mark.parametrize("kind", KINDS)
every_dense_kind = pytest.mark.parametrize("kind", DENSE)


def small(kind: str, *overrides: str) -> Detectron2Detector:
    """The small one of our configs on a tiny backbone."""
    config = load_config(CONFIGS / f"{kind}_synthetic.yaml", ["model.weights=null", *overrides])
    config.model.net.backbone.bottom_up.backbone = {"_target_": "tests.conftest.TinyBackbone"}
    config.model.net.backbone.in_features = ["c0", "c1", "c2"]
    return build(config, "model")


def losses(detector: Detectron2Detector, batch: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        return detector.train()(batch, num_boxes=3.0)


@every_kind
def test_training_gives_a_dict_of_scalar_losses_that_reach_every_parameter(kind: str) -> None:
    detector = small(kind)
    assert isinstance(detector, TrainableDetector)
    found = losses(detector, BATCH)
    for loss in found.values():
        assert loss.shape == () and loss.isfinite() and loss.requires_grad
    torch.stack([*found.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


@every_kind
def test_a_batch_without_lesions_can_be_trained_on(kind: str) -> None:
    detector = small(kind)
    found = losses(detector, [make_sample(0, lesions=0)])
    torch.stack([*found.values()]).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


@every_kind
def test_detections_are_in_pixels_of_the_original_frame(kind: str) -> None:
    detector = small(kind)
    for name, parameter in detector.named_parameters():  # so that something is detected
        if name.endswith(("cls_score.bias", "ctrness.bias")):
            parameter.data.fill_(3.0)
    sample = BATCH[0] | {"height": 640, "width": 960}
    del sample["instances"]
    with evaluating(detector):
        (output,) = detector([sample])
    found = FramePrediction.from_instances(sample, output["instances"])
    assert len(found.scores) and output["instances"].image_size == (640, 960)
    assert 96 < found.boxes_xyxy_px[:, 2].max() <= 960
    assert ((found.scores > 0) & (found.scores <= 1)).all() and (found.classes == 0).all()


@every_kind
def test_frames_and_lesions_of_a_batch_are_counted(kind: str) -> None:
    detector = small(kind)
    assert (detector.count_frames(BATCH), detector.count_boxes(BATCH)) == (4, 2)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("faster_rcnn", "model.net.roi_heads.num_classes"),
        ("retinanet", "model.net.num_classes"),
        ("fcos", "model.net.num_classes"),
    ],
)
def test_another_number_of_classes_is_refused_and_the_key_is_named(kind: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"1 classes.*set {key}=2"):
        small(kind, "data.class_names=[benign, malignant]")
    assert (
        small(kind, "data.class_names=[benign, malignant]", f"{key}=2").class_names[0] == "benign"
    )


def test_a_model_that_tells_no_classes_apart_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.net: Linear is no detector of classes"):
        Detectron2Detector(net=nn.Linear(1, 1), class_names=["polyp"])


def test_a_stage_gives_its_weights_to_the_part_below_the_pyramid(tmp_path: Path) -> None:
    detector = small("faster_rcnn")
    body = image_backbone(detector.net)
    made = {name: torch.zeros_like(tensor) for name, tensor in body.state_dict().items()}
    file = tmp_path / "best.pth"
    save_checkpoint(Checkpoint("pretrain", 1, made), file)
    stage = DetectorStage(needs={"backbone": "pretrain"})
    stage.earlier["backbone"] = SimpleNamespace(artefact=lambda config: file)
    stage.load_needs(SimpleNamespace(config=None), StageModels(detector, detector))
    assert not any(tensor.any() for tensor in body.state_dict().values())


def test_only_the_part_below_the_pyramid_gets_imagenet_weights() -> None:
    body = TimmBackbone("tf_efficientnet_lite0")
    before = copy.deepcopy(body.state_dict())
    bottom_up = Detectron2Backbone(body)
    assert bottom_up.output_shape()["stride16"].stride == 16
    names = [f"stride{stride}" for stride in (8, 16, 32)]
    net = small("retinanet").net
    net.backbone = FPN(bottom_up=bottom_up, in_features=names, out_channels=64)
    assert image_backbone(net) is body
    Detectron2Detector(net=net, class_names=["polyp"], weights="package:efficientnet-lite0")
    changed = [name for name, tensor in body.state_dict().items() if (tensor != before[name]).any()]
    assert any("conv_stem.weight" in name for name in changed)


def test_missing_weights_are_refused_and_the_key_is_named(tmp_path: Path) -> None:
    net = small("fcos").net
    with pytest.raises(ValueError, match=r"No backbone weights at .*\(model\.weights\)"):
        Detectron2Detector(net=net, class_names=["polyp"], weights=str(tmp_path / "none.pth"))


@every_kind
def test_what_tells_classes_apart_is_left_out_for_other_classes(kind: str) -> None:
    detector = small(kind)
    heads = class_head_prefixes(detector.net)
    found = {n.rpartition(".")[0] for n in detector.net.state_dict() if n.startswith(heads)}
    predictor = {f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred")}
    assert found == (predictor if kind == "faster_rcnn" else {"head.cls_score"})


@every_kind
def test_it_is_published_and_loaded_with_the_statistics_of_its_network(
    kind: str, tmp_path: Path
) -> None:
    detector, other = small(kind), small(kind)
    losses(detector, BATCH)
    best, path = tmp_path / "best.pth", tmp_path / "published.safetensors"
    torch.save({"model": detector.state_dict()}, best)
    preprocess = Preprocess(NoResize(), (127.0,) * 3, (128.0,) * 3)
    weights = of_detector(best, detector, "", preprocess)
    assert weights.header.architecture == {"network": type(detector.net).__name__}
    write_published(path, weights.published_state(), weights.header)
    assert load_detector(other, path, class_names=["polyp"]) == []
    want = detector.state_dict()
    assert all(torch.equal(tensor, want[name]) for name, tensor in other.state_dict().items())
    changed = small(kind, "model.net.pixel_mean=[1.0, 2.0, 3.0]")
    with pytest.raises(CheckpointError, match=r"pixel_mean is \[1\.0, 2\.0, 3\.0\], in the file"):
        load_detector(changed, path)


def test_a_detector_with_tensors_outside_of_its_network_is_not_published(tmp_path: Path) -> None:
    detector = small("faster_rcnn")
    detector.register_buffer("extra", torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"Detectron2Detector has tensors outside[^$]*extra"):
        of_detector(tmp_path / "best.pth", detector, "", Preprocess(NoResize()))


# ------------------------------------------------------------------------ moving average


@every_dense_kind
def test_the_moving_average_of_positives_is_saved_with_the_weights(kind: str) -> None:
    detector = small(kind)
    assert detector.state_dict()["net.saved_loss_normalizer"] == 0
    losses(detector, BATCH)
    other = small(kind)
    other.load_state_dict(copy.deepcopy(detector.state_dict()))
    expected, found = losses(detector, BATCH), losses(other, BATCH)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(other.net.saved_loss_normalizer, detector.net.saved_loss_normalizer)


@every_dense_kind
def test_weights_of_before_the_first_step_start_the_moving_average_anew(kind: str) -> None:
    detector = small(kind)
    start = copy.deepcopy(detector.state_dict())
    first = losses(detector, BATCH)
    detector.load_state_dict(start)
    again = losses(detector, BATCH)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_evaluation_leaves_the_moving_average_alone() -> None:
    detector = small("fcos")
    with evaluating(detector):
        detector(BATCH)
    assert detector.net.saved_loss_normalizer == 0


def test_a_detector_without_a_moving_average_has_no_buffer_for_it() -> None:
    assert "net.saved_loss_normalizer" not in small("faster_rcnn").state_dict()


def test_processes_go_on_with_the_mean_of_their_moving_averages(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        detector = small("fcos")
        losses(detector, [make_sample(rank, lesions=1 + 2 * rank)])
        net = detector.net
        torch.save((net.loss_normalizer, net.saved_loss_normalizer), tmp_path / f"{rank}")

    in_two_processes(work, tmp_path)
    (one, shared), (other, same) = (torch.load(tmp_path / f"{rank}") for rank in range(2))
    assert one != other and shared == same == pytest.approx((one + other) / 2)
