"""What a detector finds in a picture does not depend on the pictures beside it in the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from torch import nn

from configs.models.backbones import efficientnet_lite0, resnet18
from tests.conftest import criterion, make_sample, tiny_detector, tiny_net, tiny_teacher
from v2idetr.modeling.backbone import TimmBackbone, padding_isolated
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.interface import Decoded, Images
from v2idetr.modeling.meta_arch import Detector

SIZES = [(64, 96), (99, 64), (50, 131), (33, 40)]

VARIANTS = {
    "one_stage": {},
    "classes": {"num_classes": 3},
    "box_refined": {"box_refine": True},
    "two_stage": {"box_refine": True, "two_stage": True},
    "mixed": {"box_refine": True, "two_stage": True, "mixed_queries": True},
}


def trained_like(module: nn.Module) -> nn.Module:
    """Frozen normalisation with a shift, so that zeros do not stay zeros."""
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "bias")):
            nn.init.normal_(buffer, std=0.2)
    return module


def pad(pictures: list[torch.Tensor], divisor: int, *, fill: float = 0.0) -> Images:
    sizes = [(p.shape[1], p.shape[2]) for p in pictures]
    H, W = (-(-max(axis) // divisor) * divisor for axis in zip(*sizes, strict=True))
    pixels = torch.full((len(pictures), 3, H, W), fill)
    for row, picture in zip(pixels, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    return Images(pixels, sizes)


@torch.no_grad()
def run(net: DeformableDETR, images: Images) -> Decoded:
    memory = net.encode(net.extract(images))
    return net.decode(memory, net.queries(memory))


def assert_same(together: Decoded, index: int, alone: Decoded) -> None:
    for name in ("logits", "boxes", "hidden"):
        have, want = getattr(together, name)[:, index], getattr(alone, name)[:, 0]
        torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------- the whole network


@pytest.mark.parametrize("divisor", [1, 16, 32, 64, 128])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_picture_in_a_batch_gives_what_it_gives_alone(variant: str, divisor: int) -> None:
    net = tiny_net(**VARIANTS[variant]).eval()
    pictures = [torch.randn(3, *size) for size in SIZES]
    together = run(net, pad(pictures, divisor))
    for index, picture in enumerate(pictures):
        assert_same(together, index, run(net, pad([picture], 32)))


def test_levels_beyond_the_fourth_do_not_depend_on_padding_either() -> None:
    net = tiny_net(strides=(8, 16, 32, 64, 128), d=64).eval()
    pictures = [torch.randn(3, 64, 96), torch.randn(3, 160, 288)]
    together = run(net, pad(pictures, 32))
    for index, picture in enumerate(pictures):
        assert_same(together, index, run(net, pad([picture], 32)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_a_batch_is_the_order_of_its_results(variant: str) -> None:
    net = tiny_net(**VARIANTS[variant]).eval()
    pictures = [torch.randn(3, *size) for size in SIZES]
    forwards, backwards = run(net, pad(pictures, 32)), run(net, pad(pictures[::-1], 32))
    torch.testing.assert_close(forwards.logits, backwards.logits.flip(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(forwards.boxes, backwards.boxes.flip(1), atol=1e-5, rtol=1e-5)


def test_what_the_padding_holds_does_not_matter() -> None:
    net = tiny_net().eval()
    pictures = [torch.randn(3, *size) for size in SIZES]
    black, bright = run(net, pad(pictures, 64)), run(net, pad(pictures, 64, fill=50.0))
    assert torch.equal(black.logits, bright.logits)
    assert torch.equal(black.boxes, bright.boxes)


def test_as_published_features_do_depend_on_padding() -> None:
    # The reason for isolate_padding: without it this very comparison fails.
    net = tiny_net(isolate_padding=False).eval()
    pictures = [torch.randn(3, 64, 96), torch.randn(3, 128, 160)]
    together, alone = run(net, pad(pictures, 32)), run(net, pad(pictures[:1], 32))
    assert (together.boxes[:, 0] - alone.boxes[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("two_stage", [False, True])
def test_losses_and_gradients_of_a_batch_are_those_of_its_pictures(two_stage: bool) -> None:
    detector = tiny_detector(box_refine=two_stage, two_stage=two_stage).train()
    for name, parameter in detector.named_parameters():
        if name.endswith("sampling_offsets.bias"):  # not on cell centres, where a read has a kink
            nn.init.uniform_(parameter, -2.0, 2.0)
    samples = [
        make_sample(0, size=(64, 96), lesions=2),
        make_sample(1, size=(128, 160), lesions=1),
    ]
    together = detector(samples, num_boxes=3.0)
    sum(together.values()).backward()
    gradients = {name: p.grad.clone() for name, p in detector.named_parameters()}
    detector.zero_grad()
    for sample in samples:
        alone = detector([sample], num_boxes=3.0)
        sum(alone.values()).backward()
        together = {name: loss - alone[name] for name, loss in together.items()}
    for loss in together.values():
        assert loss.abs().item() < 1e-4
    for name, parameter in detector.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=2e-4, rtol=1e-3)


def test_clips_of_different_sizes_give_what_they_give_alone() -> None:
    teacher = tiny_teacher().eval()
    samples = [make_sample(0, size=(64, 96)), make_sample(1, size=(96, 160))]
    together = teacher(samples)
    for sample, result in zip(samples, together, strict=True):
        alone = teacher([sample])[0]["instances"]
        boxes = result["instances"].pred_boxes.tensor
        torch.testing.assert_close(boxes, alone.pred_boxes.tensor, atol=1e-2, rtol=0)
        torch.testing.assert_close(result["instances"].scores, alone.scores, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------- real backbones


@pytest.mark.parametrize("divisor", [1, 32, 64])
@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        pytest.param(resnet18, [(70, 101), (99, 64)], id="resnet18"),
        pytest.param(L(TimmBackbone)(name="resnet18"), [(70, 101), (99, 64)], id="timm_resnet18"),
        # TensorFlow's padding is one-sided: exact for sizes that are multiples of 32 only
        pytest.param(efficientnet_lite0, [(64, 128), (96, 64)], id="efficientnet_lite0"),
    ],
)
def test_backbone_features_do_not_depend_on_padding(
    config: object, sizes: list[tuple[int, int]], divisor: int
) -> None:
    backbone = trained_like(instantiate(copy.deepcopy(config)))
    pictures = [torch.randn(3, *size) for size in sizes]
    images = pad(pictures, divisor)
    with torch.no_grad(), padding_isolated(backbone, images):
        together = backbone(images.pixels)
    different = False
    for index, picture in enumerate(pictures):
        with torch.no_grad():
            alone = backbone(picture.unsqueeze(0))
            plain = backbone(images.pixels)
        for name, want in alone.items():
            h, w = want.shape[-2:]
            have = together[name][index : index + 1, :, :h, :w]
            torch.testing.assert_close(have, want, atol=1e-4 * want.abs().max().item(), rtol=1e-4)
            gap = (plain[name][index : index + 1, :, :h, :w] - want).abs().max()
            different |= (gap > 1e-2 * want.abs().max()).item()
    assert different, "padding would not have mattered anyway"


def test_isolation_leaves_no_trace_in_the_backbone() -> None:
    backbone = instantiate(copy.deepcopy(resnet18))
    images = pad([torch.randn(3, 64, 96), torch.randn(3, 96, 64)], 32)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules())

    with pytest.raises(RuntimeError, match="on purpose"), padding_isolated(backbone, images):
        assert hooks() > 0
        raise RuntimeError("on purpose")
    assert hooks() == 0


def test_a_detector_with_resnet18_finds_the_same_in_a_batch_and_alone() -> None:
    net = DeformableDETR(
        backbone=trained_like(instantiate(copy.deepcopy(resnet18))),
        num_classes=2,
        d=32,
        num_queries=8,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        ffn_dim=48,
    )
    for head in net.box_heads:
        nn.init.normal_(head.layers[-1].weight, std=0.1)
    detector = Detector(net=net, criterion=criterion(), class_names=["a", "b"]).eval()
    samples = [make_sample(i, size=size) for i, size in enumerate([(75, 100), (128, 64), (90, 90)])]
    for sample, result in zip(samples, detector(samples), strict=True):
        alone = detector([sample])[0]["instances"]
        together = result["instances"]
        torch.testing.assert_close(together.scores, alone.scores, atol=1e-4, rtol=0)
        assert torch.equal(together.pred_classes, alone.pred_classes)
        torch.testing.assert_close(
            together.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-2, rtol=0
        )
