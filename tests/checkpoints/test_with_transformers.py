"""A detector of transformers, saved, converted and loaded, detects the same; and so back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import instantiate
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    ResNetConfig,
)

from configs.models.backbones import resnet18
from tests.checkpoints.file_names import TINY
from tests.checkpoints.tiny_detectors import detector_of, disturbed, tiny_network
from tests.modeling.transformers_models import batch
from tools.convert_checkpoint import main as convert
from v2i_runtime.preprocess import (
    FixedSize,
    NoResize,
    Preprocess,
    Resize,
    ShortestEdge,
)
from v2idetr.checkpoints.conversion import Weights, of_detector, read_foreign
from v2idetr.checkpoints.files import CheckpointError, read_weights
from v2idetr.checkpoints.published import read_header, write_published
from v2idetr.checkpoints.transformers_export import export
from v2idetr.modeling.meta_arch import Detector
from v2idetr.runs.checkpoint import load_detector

LABELS = {0: "benign", 1: "malignant", 2: "instrument"}
SIZES = [(128, 192), (192, 128), (64, 64)]
SETTINGS = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 11,
    "id2label": LABELS,
}
VARIANTS = {
    "detr": {},
    "deformable": {},
    "single_scale": {"num_feature_levels": 1},
    "box_refined": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 11},
}


def resnet_config(*stages: str) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=TINY.stem,
        hidden_sizes=list(TINY.widths),
        depths=list(TINY.blocks),
        layer_type="basic",
        out_features=list(stages),
    )


def build_theirs(variant: str, *, own_heads: bool = True) -> Any:
    """A detector of transformers with noise for weights.

    Args:
        variant: a key of ``VARIANTS``.
        own_heads: undo that transformers 5 makes the heads of all layers one where boxes are
            refined, other than the official code and than its own version 4.
    """
    settings = SETTINGS | VARIANTS[variant]
    single = variant in ("detr", "single_scale")
    stages = ["stage4"] if single else ["stage2", "stage3", "stage4"]
    if variant == "detr":
        return disturbed(
            DetrForObjectDetection(DetrConfig(backbone_config=resnet_config(*stages), **settings))
        ).eval()
    config = DeformableDetrConfig(backbone_config=resnet_config(*stages), **settings)
    model = DeformableDetrForObjectDetection(config)
    if config.with_box_refine and own_heads:
        model.bbox_embed = nn.ModuleList(copy.deepcopy(head) for head in model.bbox_embed)
        model.class_embed = nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
        model.model.decoder.bbox_embed = model.bbox_embed
        model.model.decoder.class_embed = model.class_embed if config.two_stage else None
    disturbed(model)
    if config.two_stage:
        keep_borders_out(model)
    return model.eval()


@torch.no_grad()
def keep_borders_out(model: Any) -> None:
    """Tokens at the border propose nothing: a low score, since ours never selects them."""
    nothing = model.model.enc_output_norm(model.model.enc_output(torch.zeros(32)))
    model.class_embed[-1].weight[0] -= 3 * nothing / nothing.norm()


def build_ours(variant: str, resnet: nn.Module | None = None) -> Detector:
    names = {"with_box_refine": "box_refine", "two_stage": "two_stage"}
    changes = {names[key]: value for key, value in VARIANTS[variant].items() if key in names}
    if variant == "single_scale":
        changes["strides"] = (32,)
    net = tiny_network(
        "DETR" if variant == "detr" else "DeformableDETR",
        num_classes=3,
        num_queries=11,
        num_decoder_layers=3,
        num_heads=4,
        **({} if resnet is None else {"backbone": resnet}),
        **changes,
    )
    return detector_of(net, list(LABELS.values())).eval()


@torch.no_grad()
def outputs_of(detector: Detector, pictures: Any) -> Any:
    memory = detector.net.encode(detector.net.extract(pictures))
    return detector.net.decode(memory, detector.net.queries(memory))


def detections(theirs: Any, outputs: Any, topk: int) -> list[dict[str, Tensor]]:
    """Of transformers' own post-processing."""
    if isinstance(theirs, DetrForObjectDetection):
        return DetrImageProcessor().post_process_object_detection(
            outputs, threshold=0.0, target_sizes=SIZES
        )
    return DeformableDetrImageProcessor().post_process_object_detection(
        outputs, threshold=0.0, target_sizes=SIZES, top_k=topk
    )


def assert_same_detections(theirs: Any, ours: Detector) -> None:
    pictures, mask = batch(SIZES)
    with torch.no_grad():
        want = theirs(pictures.pixels, pixel_mask=mask)
    decoded = outputs_of(ours, pictures)
    torch.testing.assert_close(decoded.logits[-1], want.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded.boxes[-1], want.pred_boxes, atol=1e-4, rtol=0)
    samples = [{"height": h, "width": w} for h, w in SIZES]
    have = [r["instances"] for r in ours.postprocess(decoded, samples)]
    for mine, other, (h, w) in zip(have, detections(theirs, want, 33), SIZES, strict=True):
        order = other["scores"].argsort(descending=True, stable=True)
        limits = torch.tensor([w, h, w, h])
        boxes = other["boxes"][order].clamp(min=0).minimum(limits)
        torch.testing.assert_close(mine.scores, other["scores"][order], atol=1e-4, rtol=0)
        # Detections of nearly the same score may change places.
        agree = mine.pred_classes == other["labels"][order]
        agree &= ((mine.pred_boxes.tensor - boxes).abs() < 1e-3 * max(h, w)).all(-1)
        assert agree.float().mean() > 0.9


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_converted_and_loaded_it_detects_the_same(variant: str, tmp_path: Path) -> None:
    theirs = build_theirs(variant)
    theirs.save_pretrained(tmp_path / "theirs")
    output = tmp_path / "ours.safetensors"
    assert convert([str(tmp_path / "theirs"), "--output", str(output)]) == 0
    ours = build_ours(variant)
    load_detector(ours, output, class_names=list(LABELS.values()))
    assert_same_detections(theirs, ours)


@pytest.mark.parametrize("variant", ["box_refined", "two_stage"])
def test_heads_that_transformers_5_made_one_are_given_to_every_layer(
    variant: str, tmp_path: Path
) -> None:
    theirs = build_theirs(variant, own_heads=False)
    theirs.save_pretrained(tmp_path / "theirs")
    output = tmp_path / "ours.safetensors"
    assert convert([str(tmp_path / "theirs"), "--output", str(output)]) == 0
    ours = build_ours(variant)
    load_detector(ours, output)
    assert_same_detections(theirs, ours)


def test_names_of_its_modules_are_known_as_well_as_those_of_its_files(tmp_path: Path) -> None:
    theirs = build_theirs("detr")
    (tmp_path / "theirs").mkdir()
    theirs.config.save_pretrained(tmp_path / "theirs")
    torch.save(theirs.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    output = tmp_path / "ours.safetensors"
    assert convert([str(tmp_path / "theirs"), "--output", str(output)]) == 0
    ours = build_ours("detr")
    load_detector(ours, output)
    assert_same_detections(theirs, ours)


def test_what_the_config_beside_a_file_says_gets_into_the_header(tmp_path: Path) -> None:
    build_theirs("two_stage").save_pretrained(tmp_path / "theirs")
    output = tmp_path / "ours.safetensors"
    assert convert([str(tmp_path / "theirs"), "--output", str(output)]) == 0
    header = read_header(read_weights(output).metadata, output)
    assert header is not None
    assert header.class_names == list(LABELS.values())
    assert header.architecture["num_heads"] == 4
    assert header.architecture["num_queries"] == 11
    assert header.source_layout == "transformers' Deformable DETR"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dilation": True}, "config.json: has dilation=True; only False is supported"),
        (
            {"backbone_config": {"model_type": "timm_backbone", "output_stride": 16}},
            "has backbone_config.output_stride=16, a dilated (DC5) backbone",
        ),
    ],
)
def test_dilation_is_refused(
    settings: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build_theirs("detr").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert convert([str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["detr", "deformable", "box_refined", "two_stage"])
def test_ours_exported_is_loaded_by_transformers_and_detects_the_same(
    variant: str, tmp_path: Path
) -> None:
    ours = build_ours(variant, resnet=instantiate(copy.deepcopy(resnet18)))
    for name, module in ours.net.named_children():
        if name != "backbone":
            disturbed(module)
    torch.save({"model": ours.state_dict()}, tmp_path / "best.pth")
    weights = of_detector(tmp_path / "best.pth", ours, "", Preprocess(NoResize()))
    export(weights, tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    back = read_foreign(path, read_weights(path))
    assert back.header.architecture == weights.header.architecture
    assert back.state.keys() == weights.state.keys()
    assert all(torch.equal(back.state[name], t) for name, t in weights.state.items())
    kind = DetrForObjectDetection if variant == "detr" else DeformableDetrForObjectDetection
    theirs = kind.from_pretrained(tmp_path / "theirs").eval()
    assert_same_detections(theirs, ours)


STATISTICS = {"pixel_mean": (100.0, 110.5, 120.25), "pixel_std": (50.0, 60.5, 70.0)}
FIXED = FixedSize(height_px=48, width_px=64)


def own_weights(folder: Path, resize: Resize | None, **settings: Any) -> Weights:
    """Of a detector of ours with pixel statistics of its own."""
    net = build_ours("detr", resnet=instantiate(copy.deepcopy(resnet18))).net
    for key, value in settings.items():
        setattr(net, key, value)
    ours = detector_of(net, list(LABELS.values()), **STATISTICS)
    torch.save({"model": ours.state_dict()}, folder / "best.pth")
    return of_detector(folder / "best.pth", ours, "", Preprocess(resize, **STATISTICS))


def test_transformers_prepares_images_for_an_exported_detector_as_we_do(tmp_path: Path) -> None:
    assert export(own_weights(tmp_path, FIXED), tmp_path / "theirs") == []
    processor = AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    grey = torch.full((3, 30, 50), 127, dtype=torch.uint8)
    pixels = processor(grey, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 48, 64)
    ours = detector_of(tiny_network("DETR"), **STATISTICS).images([{"image": grey}]).pixels
    torch.testing.assert_close(pixels[0, :, 0, 0], ours[0, :, 0, 0])


@pytest.mark.parametrize("resize", [FIXED, ShortestEdge(480, 800), NoResize()], ids=str)
def test_preprocessing_comes_back_from_transformers(resize: Resize, tmp_path: Path) -> None:
    export(own_weights(tmp_path, resize), tmp_path / "theirs")
    output = tmp_path / "back.safetensors"
    assert convert([str(tmp_path / "theirs"), "--output", str(output)]) == 0
    header = read_header(read_weights(output).metadata, output)
    assert header is not None
    assert header.preprocess == Preprocess(resize, **STATISTICS, size_divisor=1)


def test_the_image_processor_beside_a_file_of_transformers_is_read(tmp_path: Path) -> None:
    build_theirs("detr").save_pretrained(tmp_path)
    DetrImageProcessor(
        image_mean=[0.5, 0.5, 0.5], size={"shortest_edge": 320, "longest_edge": 640}
    ).save_pretrained(tmp_path)
    output = tmp_path / "ours.safetensors"
    assert convert([str(tmp_path), "--output", str(output)]) == 0
    header = read_header(read_weights(output).metadata, output)
    assert header is not None
    assert header.preprocess.pixel_mean == (127.5, 127.5, 127.5)
    assert header.preprocess.pixel_std == pytest.approx([58.395, 57.12, 57.375])
    assert header.preprocess.resize == ShortestEdge(320, 640)


def test_an_image_processor_without_statistics_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_theirs("detr").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 800, "max_size": 1333}')
    assert convert([str(tmp_path)]) == 2
    assert "preprocessor_config.json: has no pixel statistics" in capsys.readouterr().err


@pytest.mark.parametrize("resize", [None, ShortestEdge(480, 800, multiple_px=32)], ids=str)
def test_differences_that_remain_in_transformers_are_said(
    resize: Resize | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = own_weights(tmp_path, resize, isolate_padding=True)
    path = tmp_path / "ours.safetensors"
    write_published(path, weights.published_state(), weights.header)
    assert convert([str(path), "--to", "transformers", "--output", str(tmp_path / "theirs")]) == 0
    printed = capsys.readouterr().out
    assert "net.isolate_padding is true, but transformers does not support it" in printed
    assert (
        f"'shortest_edge': 800, 'longest_edge': 1333}}, because {resize} is not supported"
        in printed
    )


def test_a_resnet_of_no_known_depth_is_not_exported_to_transformers(tmp_path: Path) -> None:
    ours = build_ours("detr")
    torch.save({"model": ours.state_dict()}, tmp_path / "best.pth")
    weights = of_detector(tmp_path / "best.pth", ours, "", Preprocess(NoResize()))
    with pytest.raises(CheckpointError, match="not a ResNet of known depth"):
        export(weights, tmp_path / "out")
