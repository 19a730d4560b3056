"""ImageNet weights of other code bases become what a backbone of ours loads."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2.config import instantiate
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from configs.models.backbones import resnet18
from tests.checkpoints import file_names
from tests.checkpoints.file_names import Size
from tools.convert_checkpoint import main as convert
from v2idetr.checkpoints.files import read_weights
from v2idetr.modeling.backbone import TimmBackbone
from v2idetr.modeling.backbone_weights import load_imagenet_weights

PIXELS = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
State = dict[str, Tensor]


@pytest.fixture(name="model", scope="module")
def _model() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def features(model: nn.Module) -> Tensor:
    x = model.maxpool(model.relu(model.bn1(model.conv1(PIXELS))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def moco(state: State) -> dict:
    """Both encoders, the second with other numbers, a head of two layers, and the queue."""
    body = {name: t for name, t in state.items() if not name.startswith("fc.")}
    head = {"fc.0.weight": torch.zeros(512, 512), "fc.2.weight": torch.zeros(128, 512)}
    other = {name: t * 0 for name, t in (body | head).items()}
    return {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": prefixed("module.encoder_q.", body | head)
        | prefixed("module.encoder_k.", other)
        | {"module.queue": torch.zeros(128, 64), "module.queue_ptr": torch.zeros(1).long()},
    }


def moco_v3(state: State) -> dict:
    names = prefixed("module.base_encoder.", state)
    return {"state_dict": names | prefixed("module.momentum_encoder.", state)}


def detectron2(state: State) -> dict:
    names = file_names.detectron2_resnet(
        Size(blocks=(2, 2, 2, 2), stem=64, widths=(64, 128, 256, 512), bottleneck=False), ""
    )
    body = [t for n, t in state.items() if not n.endswith("tracked") and not n.startswith("fc.")]
    return {"model": {n: t.numpy() for n, t in zip(names, body, strict=True)}, "__author__": "x"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("resnet18-f37072fd.pth", lambda state: state),
        ("checkpoint.pth.tar", lambda state: {"state_dict": prefixed("module.", state)}),
        ("moco_v2.pth.tar", moco),
        ("r-18-moco-v3.pth.tar", moco_v3),
        ("R-18.pkl", detectron2),
    ],
)
def test_a_resnet_of_every_layout_gives_the_same_features(
    name: str, content: Callable[[State], dict], model: nn.Module, tmp_path: Path
) -> None:
    path, output = tmp_path / name, tmp_path / "resnet18.safetensors"
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content(dict(model.state_dict()))))
    else:
        torch.save(content(dict(model.state_dict())), path)
    assert convert([str(path), "--output", str(output)]) == 0
    for ours in (instantiate(copy.deepcopy(resnet18)), TimmBackbone("resnet18", strides=(32,))):
        load_imagenet_weights(ours, str(output))
        with torch.no_grad():
            have, want = list(ours(PIXELS).values())[-1], features(model)
        torch.testing.assert_close(have, want, atol=1e-4 * want.abs().max().item(), rtol=1e-4)
    metadata = read_weights(output).metadata
    assert metadata["format"] == "v2idetr-backbone"
    assert metadata["backbone"] == '"resnet18"'


def test_a_resnet_of_timm_is_read(model: nn.Module, tmp_path: Path) -> None:
    theirs = timm.create_model("resnet18", pretrained=False)
    theirs.load_state_dict(model.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "resnet18.a1_in1k.bin")
    assert (
        convert(
            [str(tmp_path / "resnet18.a1_in1k.bin"), "--output", str(tmp_path / "a.safetensors")]
        )
        == 0
    )


def test_a_resnet_of_transformers_is_read(tmp_path: Path) -> None:
    widths = (64, 128, 256, 512)
    config = ResNetConfig(
        embedding_size=64,
        hidden_sizes=list(widths),
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=3,
    )
    theirs = ResNetForImageClassification(config)
    theirs.save_pretrained(tmp_path / "theirs")
    output = tmp_path / "ours.safetensors"
    assert convert([str(tmp_path / "theirs"), "--output", str(output)]) == 0
    state = read_weights(output).state
    want = theirs.resnet.encoder.stages[1].layers[0].shortcut.convolution.weight
    assert torch.equal(state["layer2.0.downsample.0.weight"], want)
    size = Size(blocks=(2, 2, 2, 2), stem=64, widths=widths, bottleneck=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == file_names.torchvision_resnet(size)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {n: t for n, t in state.items() if n != "layer2.0.conv2.weight"},
        lambda state: state | {"layer1.0.se.fc1.weight": torch.zeros(1)},
        lambda state: {n: t for n, t in state.items() if not n.startswith("layer4.1.")},
    ],
    ids=["missing", "squeeze_and_excite", "no_known_depth"],
)
def test_another_network_is_refused(
    change: Callable[[State], State],
    model: nn.Module,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(change(dict(model.state_dict())), tmp_path / "net.pth")
    assert convert([str(tmp_path / "net.pth"), "--output", str(tmp_path / "a.safetensors")]) == 2
    assert "not a plain ResNet-18" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnext50_32x4d"])
def test_a_resnet_of_the_same_names_but_other_shapes_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name).state_dict()
    zero = torch.zeros(())  # takes no memory, whatever its shape
    torch.save({n: zero.expand(t.shape) for n, t in shapes.items()}, tmp_path / "net.pth")
    assert convert([str(tmp_path / "net.pth"), "--output", str(tmp_path / "a.safetensors")]) == 2
    assert "not a plain ResNet-18" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


def test_a_backbone_is_no_detector_to_start_from(model: nn.Module, tmp_path: Path) -> None:
    from v2idetr.checkpoints.files import CheckpointError
    from v2idetr.runs.checkpoint import load_detector

    torch.save(model.state_dict(), tmp_path / "net.pth")
    output = tmp_path / "a.safetensors"
    assert convert([str(tmp_path / "net.pth"), "--output", str(output)]) == 0
    with pytest.raises(CheckpointError, match=r"only a backbone.*model\.net\.weights"):
        load_detector(nn.Linear(2, 2), output)
