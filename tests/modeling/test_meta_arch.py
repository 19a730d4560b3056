"""The contract with Detectron2: dataset dicts in, losses or Instances out."""

from __future__ import annotations

import inspect
from typing import Protocol

import pytest
import torch
from detectron2.structures import Instances

from tests.conftest import criterion, make_sample, tiny_detector, tiny_net, tiny_teacher
from v2idetr.modeling.classification import FocalClassification
from v2idetr.modeling.inference import best_detections
from v2idetr.modeling.interface import Decoded
from v2idetr.modeling.meta_arch import Detector
from v2idetr.modeling.trainable import TrainableDetector
from v2idetr.modeling.training import TransformerDetector

VARIANTS = [{}, {"box_refine": True}, {"box_refine": True, "two_stage": True}, {"num_classes": 3}]


def answering(detector: Detector, decoded: Decoded) -> Detector:
    """The detector with a network that always decodes the same."""
    detector.net.decode = lambda *_: decoded
    return detector


def decoded_as(logits: torch.Tensor, boxes: torch.Tensor) -> Decoded:
    """One layer, one picture."""
    N = len(logits)
    return Decoded(torch.zeros(1, 1, N, 32), logits[None, None], boxes[None, None])


def members(protocol: type) -> set[str]:
    """What isinstance looks for."""
    bases = protocol.__mro__[: protocol.__mro__.index(Protocol)]
    names = {n for base in bases for n in [*vars(base), *inspect.get_annotations(base)]}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("protocol", [TrainableDetector, TransformerDetector])
def test_isinstance_needs_no_submodule_to_know_a_detector(protocol: type) -> None:
    """Since Python 3.12 isinstance of a protocol does not find them."""
    detector = tiny_detector()
    for name in members(protocol):
        inspect.getattr_static(detector, name)
    assert members(protocol) >= {"num_frames", "class_names"}
    assert isinstance(detector, protocol)


# ------------------------------------------------------------------------- training


@pytest.mark.parametrize("settings", VARIANTS)
def test_training_gives_a_dict_of_scalar_losses(settings: dict) -> None:
    detector = tiny_detector(**settings).train()
    losses = detector([make_sample(0, lesions=2), make_sample(1, lesions=0)])
    assert {"loss_class", "loss_l1", "loss_giou", "loss_class_0"} <= set(losses)
    assert ("loss_class_encoder" in losses) == detector.net.two_stage
    for loss in losses.values():
        assert loss.shape == () and loss.isfinite() and loss.requires_grad


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("build", [tiny_detector, tiny_teacher])
def test_a_batch_without_lesions_trains_every_parameter(build: object, settings: dict) -> None:
    detector = build(**settings).train()
    losses = detector([make_sample(0, lesions=0), make_sample(1, lesions=0)])
    assert all(loss.isfinite() for loss in losses.values())
    assert all(losses[name].item() == 0.0 for name in losses if "l1" in name or "giou" in name)
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name  # DistributedDataParallel waits for all of them
        assert parameter.grad.isfinite().all(), name
    assert detector.net.class_heads[0].bias.grad.abs().sum() > 0


def test_the_number_of_lesions_can_come_from_outside() -> None:
    detector, batch = tiny_detector().train(), [make_sample(0, lesions=2)]
    default, other = detector(batch), detector(batch, num_boxes=8.0)
    for name, loss in default.items():
        assert loss.item() == pytest.approx(4 * other[name].item(), rel=1e-5)


def test_lesions_become_relative_to_the_transformed_picture_without_padding() -> None:
    detector = tiny_detector()
    samples = [make_sample(0, size=(64, 96), lesions=2), make_sample(1, size=(96, 160), lesions=0)]
    samples[0] |= {"height": 480, "width": 640}
    targets = detector.targets(samples)
    x0, y0, x1, y1 = samples[0]["instances"].gt_boxes.tensor.unbind(1)
    want = torch.stack([(x0 + x1) / 192, (y0 + y1) / 128, (x1 - x0) / 96, (y1 - y0) / 64], 1)
    torch.testing.assert_close(targets.boxes[0], want)
    assert targets.boxes[1].shape == (0, 4) and targets.labels[1].shape == (0,)
    assert targets.num_boxes == detector.count_boxes(samples) == 2


def test_pictures_are_normalised_and_padded_with_zeros_at_the_right_and_bottom() -> None:
    detector = tiny_detector()
    samples = [make_sample(0, size=(50, 90)), make_sample(1, size=(64, 70))]
    images = detector.images(samples)
    assert images.pixels.shape == (2, 3, 64, 96)
    assert images.sizes == [(50, 90), (64, 70)] and images.num_frames == 1
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    want = (samples[0]["image"].float() - mean) / std
    torch.testing.assert_close(images.pixels[0, :, :50, :90], want)
    assert not images.pixels[0, :, 50:].any() and not images.pixels[0, :, :, 90:].any()


# ------------------------------------------------------------------------- inference


@pytest.mark.parametrize("settings", VARIANTS)
def test_evaluation_gives_instances_of_every_sample(settings: dict) -> None:
    detector = tiny_detector(**settings).eval()
    results = detector([make_sample(0), make_sample(1, size=(96, 64))])
    assert len(results) == 2
    for result, (h, w) in zip(results, [(64, 96), (96, 64)], strict=True):
        assert set(result) == {"instances"}
        found = result["instances"]
        assert isinstance(found, Instances) and found.image_size == (h, w)
        assert len(found) == 12 * detector.net.num_classes <= 100
        assert (found.scores[:-1] >= found.scores[1:]).all()
        boxes = found.pred_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= w).all() and (boxes[:, [1, 3]] <= h).all()
        assert not boxes.requires_grad and not found.scores.requires_grad


def test_boxes_are_in_pixels_of_the_original_picture() -> None:
    box = torch.tensor([[0.5, 0.25, 0.2, 0.1]])
    detector = answering(tiny_detector().eval(), decoded_as(torch.zeros(1, 1), box))
    sample = make_sample(0, size=(64, 96)) | {"height": 480, "width": 1000}
    found = detector([sample])[0]["instances"]
    assert found.image_size == (480, 1000)
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([[400.0, 96.0, 600.0, 144.0]]))
    assert found.scores.tolist() == [0.5]


def test_boxes_of_a_padded_picture_are_relative_to_the_picture() -> None:
    box = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(1, 2, 1, 4)
    decoded = Decoded(torch.zeros(1, 2, 1, 32), torch.zeros(1, 2, 1, 1), box)
    detector = answering(tiny_detector().eval(), decoded)
    results = detector([make_sample(0, size=(64, 96)), make_sample(1, size=(128, 160))])
    for result, (h, w) in zip(results, [(64, 96), (128, 160)], strict=True):
        torch.testing.assert_close(
            result["instances"].pred_boxes.tensor, torch.tensor([[0.0, 0.0, w, h]])
        )


def test_a_lesion_drawn_as_target_is_recovered_as_detection() -> None:
    sample = make_sample(0, size=(64, 96), lesions=3)
    detector = tiny_detector().eval()
    boxes = detector.targets([sample]).boxes[0]
    logits = torch.tensor([[3.0], [2.0], [1.0]])
    sample |= {"height": 128, "width": 288}
    found = answering(detector, decoded_as(logits, boxes))([sample])[0]["instances"]
    drawn = sample["instances"].gt_boxes.tensor * torch.tensor([3.0, 2.0, 3.0, 2.0])
    torch.testing.assert_close(found.pred_boxes.tensor, drawn)


def test_boxes_that_reach_beyond_the_picture_are_clipped() -> None:
    box = torch.tensor([[0.05, 0.95, 0.2, 0.2]])
    detector = answering(tiny_detector().eval(), decoded_as(torch.zeros(1, 1), box))
    found = detector([make_sample(0, size=(100, 200))])[0]["instances"]
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([[0.0, 85.0, 30.0, 100.0]]))


def test_output_that_is_not_finite_names_the_frame() -> None:
    box, broken = torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.full((1, 4), float("nan"))
    for decoded in (decoded_as(torch.zeros(1, 1), broken), decoded_as(broken[:, :1], box)):
        detector = answering(tiny_detector().eval(), decoded)
        with pytest.raises(ValueError, match=r"output for 7\.png is not finite"):
            detector([make_sample(0) | {"file_name": "7.png"}])


def test_the_best_pairs_of_query_and_class_are_kept() -> None:
    logits = torch.tensor([[0.0, 3.0], [2.0, -1.0], [-2.0, 1.0]])
    boxes = torch.rand(3, 4)
    best = best_detections(decoded_as(logits, boxes), 4, FocalClassification())
    scores, classes, found = best.scores, best.classes, best.boxes
    torch.testing.assert_close(scores[0], torch.tensor([3.0, 2.0, 1.0, 0.0]).sigmoid())
    assert classes[0].tolist() == [1, 0, 1, 0]
    assert torch.equal(found[0], boxes[[0, 1, 2, 0]])


def test_there_are_never_more_detections_than_pairs() -> None:
    best = best_detections(
        decoded_as(torch.randn(5, 2), torch.rand(5, 4)), 100, FocalClassification()
    )
    assert best.scores.shape == (1, 10)


def test_the_last_layer_is_the_detection() -> None:
    outputs = Decoded(torch.zeros(2, 1, 1, 32), torch.randn(2, 1, 1, 1), torch.rand(2, 1, 1, 4))
    best = best_detections(outputs, 1, FocalClassification())
    assert torch.equal(best.scores, outputs.logits[1, :, :, 0].sigmoid())
    assert torch.equal(best.boxes, outputs.boxes[1])


def test_evaluation_needs_no_labels() -> None:
    sample = make_sample(0)
    for frame in (sample, *sample["clip"]):
        frame.pop("instances", None)
    assert len(tiny_detector().eval()([sample])[0]["instances"]) == 12
    assert len(tiny_teacher().eval()([sample])[0]["instances"]) == 12


def test_an_image_detector_sees_the_current_frame_alone() -> None:
    detector, sample = tiny_detector().eval(), make_sample(0)
    want = detector([sample])[0]["instances"]
    for t in (0, 2):
        sample["clip"][t]["image"] = torch.zeros_like(sample["image"])
    have = detector([sample])[0]["instances"]
    assert torch.equal(have.pred_boxes.tensor, want.pred_boxes.tensor)


def test_the_samples_are_not_changed() -> None:
    sample = make_sample(0)
    pixels, boxes = sample["image"].clone(), sample["instances"].gt_boxes.tensor.clone()
    tiny_detector().train()([sample])
    assert sample["image"].dtype == torch.uint8 and torch.equal(sample["image"], pixels)
    assert torch.equal(sample["instances"].gt_boxes.tensor, boxes)


def test_mean_and_deviation_are_no_weights() -> None:
    assert not [key for key in tiny_detector().state_dict() if key.startswith("pixel")]


def test_class_names_must_agree_with_the_network() -> None:
    with pytest.raises(ValueError, match=r"2 classes, but class_names are \['polyp'\]"):
        Detector(net=tiny_net(num_classes=2), criterion=criterion(), class_names=["polyp"])


# ------------------------------------------------------------------------- clips


@pytest.mark.parametrize("clip_index", [0, 1, 2])
@pytest.mark.parametrize("settings", VARIANTS)
def test_a_clip_detector_gives_what_all_frames_give_at_the_current_one(
    settings: dict, clip_index: int
) -> None:
    teacher = tiny_teacher(**settings).eval()
    samples = [make_sample(0), make_sample(1, size=(96, 64))]
    for sample in samples:
        sample |= sample["clip"][clip_index] | {"clip_index": clip_index}
    with torch.no_grad():
        frames = [frame for sample in samples for frame in sample["clip"]]
        images = teacher.images(frames)
        assert images.num_frames == 3
        memory = teacher.net.encode(teacher.net.extract(images))
        decoded = teacher.net.decode(memory, teacher.net.queries(memory))
        every = teacher.postprocess(decoded, frames)
    for index, result in enumerate(teacher(samples)):
        want, have = every[3 * index + clip_index]["instances"], result["instances"]
        torch.testing.assert_close(have.scores, want.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            have.pred_boxes.tensor, want.pred_boxes.tensor, atol=1e-3, rtol=0
        )


def test_a_clip_detector_sees_the_other_frames() -> None:
    teacher, sample = tiny_teacher().eval(), make_sample(0)
    want = teacher([sample])[0]["instances"]
    sample["clip"][2]["image"] = torch.zeros_like(sample["image"])
    have = teacher([sample])[0]["instances"]
    assert (have.scores - want.scores).abs().max() > 1e-6


def test_a_clip_detector_is_supervised_on_all_frames() -> None:
    teacher, samples = tiny_teacher(), [make_sample(0, lesions=2), make_sample(1, lesions=1)]
    assert teacher.num_frames == 3
    assert teacher.count_boxes(samples) == 9
    assert tiny_detector().count_boxes(samples) == 3
    frames = teacher.frames(samples)
    assert [frame["file_name"] for frame in frames] == [
        f"clip{c}/{t}.png" for c in (0, 1) for t in (0, 1, 2)
    ]
    teacher.train()
    plain = teacher(samples, num_boxes=1.0)
    samples[0]["clip"][0]["instances"].gt_boxes.scale(0.5, 0.5)
    assert teacher(samples, num_boxes=1.0)["loss_l1"].item() != plain["loss_l1"].item()


def test_a_clip_of_another_length_is_refused_by_name() -> None:
    teacher = tiny_teacher(num_frames=3)
    sample = make_sample(4, num_frames=2)
    with pytest.raises(ValueError, match=r"clip4/1\.png: the clip has 2 frames, .* needs 3"):
        teacher.eval()([sample])


@pytest.mark.parametrize("T", [1, 2, 5])
def test_clips_of_any_length_train_and_evaluate(T: int) -> None:
    teacher, samples = tiny_teacher(num_frames=T), [make_sample(0, num_frames=T)]
    assert all(loss.isfinite() for loss in teacher.train()(samples).values())
    assert len(teacher.eval()(samples)) == 1


def test_a_detector_of_no_frames_is_refused() -> None:
    net = tiny_net(temporal=True)
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        Detector(net=net, criterion=criterion(), class_names=["polyp"], num_frames=0)
