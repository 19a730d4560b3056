"""A detector that a user has written beside the package is saved, loaded and published."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

import v2idetr.modeling
from tests.checkpoints.tiny_detectors import detector_of, disturbed, tiny_network, tiny_resnet
from tests.conftest import TinyBackbone
from tools.convert_checkpoint import main
from v2i_runtime.preprocess import NoResize, Preprocess
from v2idetr.checkpoints.architecture import describe
from v2idetr.checkpoints.conversion import (
    for_classes,
    of_detector,
    read_foreign,
    read_published,
)
from v2idetr.checkpoints.files import CheckpointError, read_weights
from v2idetr.checkpoints.published import read_header, write_published
from v2idetr.config.load import load_config
from v2idetr.engine.stage_graph import build_stage
from v2idetr.modeling.deformable_detr import DeformableDETR
from v2idetr.modeling.interface import Context, Decoded, Features, Images, Memory, Queries
from v2idetr.modeling.renaming import Rule
from v2idetr.modeling.weight_rules import Architecture, Layout, WeightRules, families
from v2idetr.runs.checkpoint import Checkpoint, load_detector, save_checkpoint

FOCAL = {"_target_": "v2idetr.modeling.classification.FocalClassification"}
PARTS = ("backbone", "mixer", "scorer", "boxer")
DEFORMABLE = {"num_classes": 1, "d": 32, "num_encoder_layers": 1, "num_decoder_layers": 1}


class ToyNetwork(nn.Module):
    """One query: the mean of a convolution. Nothing in it is named as in the package."""

    num_queries, strides, reference_dim = 1, (32,), 2

    def __init__(
        self, *, backbone: nn.Module, num_classes: int = 1, d: int = 8, weights: str | None = None
    ) -> None:
        super().__init__()
        self.d, self.num_classes, self.num_logits = d, num_classes, num_classes
        self.backbone = backbone
        self.mixer = nn.Conv2d(list(backbone.output_shape().values())[-1].channels, d, 1)
        self.scorer = nn.Linear(d, num_classes)
        self.boxer = nn.Linear(d, 4)

    def extract(self, images: Images) -> Features:
        raise NotImplementedError

    def encode(self, features: Features) -> Memory:
        raise NotImplementedError

    def queries(self, memory: Memory) -> Queries:
        raise NotImplementedError

    def decode(self, memory: Memory, queries: Queries, context: Context | None = None) -> Decoded:
        raise NotImplementedError


def _describe(state: dict[str, Tensor], known: object) -> Architecture:
    d, channels = state["mixer.weight"].shape[:2]
    return {"d": d, "num_classes": len(state["scorer.bias"]), "channels": channels}


class RuledNetwork(ToyNetwork):
    """The same with rules for its weights."""

    weight_rules = WeightRules(
        marks=("scorer.weight", "boxer.weight"),
        describe=_describe,
        hidden=lambda net: {},
        backbone_channels=lambda state, settings: {32: settings["channels"]},
        layouts=(
            Layout(
                name="toys",
                title="the toy shop's detector",
                marks=("shop.scorer.weight",),
                rules=tuple(Rule(f"{part}.", f"shop.{part}.") for part in PARTS),
            ),
        ),
        class_heads="scorer.",
    )


class OtherDeformableDETR(DeformableDETR):
    """Has the names of its base class, and no rules of its own."""


def toy_detector(kind: type[ToyNetwork] = ToyNetwork, **changes):
    return detector_of(disturbed(kind(backbone=TinyBackbone(), **changes)))


def published(detector, folder: Path) -> Path:
    torch.save({"model": detector.state_dict()}, folder / "best.pth")
    weights = of_detector(folder / "best.pth", detector, "", Preprocess(NoResize()))
    path = folder / "toy.safetensors"
    write_published(path, weights.published_state(), weights.header)
    return path


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


def test_a_network_without_rules_is_described_by_its_class() -> None:
    assert describe(ToyNetwork(backbone=TinyBackbone())) == {"network": "ToyNetwork"}
    assert describe(tiny_network("DETR"))["network"] == "DETR"


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    one, other = toy_detector(), toy_detector()
    architecture = describe(one.net)
    checkpoint = Checkpoint("plain", 2, dict(one.state_dict()), architecture=architecture)
    save_checkpoint(checkpoint, tmp_path / "best.pth")
    assert load_detector(other, tmp_path / "best.pth") == []
    assert_same(one, other)
    with pytest.raises(CheckpointError, match=r"net\.network is 'DETR', in the file 'ToyNetwork'"):
        load_detector(detector_of(tiny_network("DETR")), tmp_path / "best.pth")


@pytest.mark.parametrize("kind", [ToyNetwork, RuledNetwork])
def test_it_is_published_and_loaded(kind: type[ToyNetwork], tmp_path: Path) -> None:
    one, other = toy_detector(kind), toy_detector(kind)
    path = published(one, tmp_path)
    assert load_detector(other, path, class_names=one.class_names) == []
    assert_same(one, other)


def test_a_subclass_of_a_family_takes_a_bare_state_dict(tmp_path: Path) -> None:
    one, other = (detector_of(tiny_network(kind)) for kind in ("DeformableDETR", "DETR"))
    own = detector_of(OtherDeformableDETR(backbone=TinyBackbone(), **DEFORMABLE))
    torch.save({"model": own.state_dict()}, tmp_path / "own.pth")
    assert describe(own.net) == {"network": "OtherDeformableDETR"}
    assert load_detector(own, tmp_path / "own.pth") == []
    torch.save({"model": other.state_dict()}, tmp_path / "detr.pth")
    for detector in (own, one):
        with pytest.raises(CheckpointError, match="in the file 'DETR'"):
            load_detector(detector, tmp_path / "detr.pth")


def test_rules_outside_the_package_describe_a_published_file(tmp_path: Path) -> None:
    path = published(toy_detector(RuledNetwork, num_classes=3), tmp_path)
    stored = read_weights(path)
    header = read_header(stored.metadata, path)
    assert header is not None
    settings = {"d": 8, "num_classes": 3, "channels": 32, "num_queries": 1}
    assert header.architecture == {"network": "RuledNetwork", "backbone": "other", **settings}
    bare = {name.removeprefix("net."): tensor for name, tensor in stored.state.items()}
    weights = read_published(path, bare, header, RuledNetwork)
    fresh = for_classes(weights, ["a", "b"], new_head=True)
    assert fresh.state["scorer.weight"].shape == (2, 8)
    with pytest.raises(CheckpointError, match=r"scorer\.weight \(3, 8\), expected \(3, 9\)"):
        read_published(
            path, bare | {"mixer.weight": torch.zeros(9, 32, 1, 1)}, header, RuledNetwork
        )
    with pytest.raises(CheckpointError, match=r"missing \(1\):\s+boxer\.bias"):
        del bare["boxer.bias"]
        read_published(path, bare, header, RuledNetwork)


def test_a_folder_with_a_family_is_found_and_files_in_its_layout_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toys").mkdir()
    line = f"from {__name__} import RuledNetwork\n"
    (tmp_path / "toys" / "__init__.py").write_text(line)
    monkeypatch.setattr(v2idetr.modeling, "__path__", [*v2idetr.modeling.__path__, str(tmp_path)])
    families.cache_clear()
    try:
        assert families()["RuledNetwork"] is RuledNetwork
        net = RuledNetwork(backbone=tiny_resnet())
        state = {f"shop.{name}": tensor for name, tensor in net.state_dict().items()}
        torch.save({"model": state}, tmp_path / "shop.pth")
        weights = read_foreign(tmp_path / "shop.pth", read_weights(tmp_path / "shop.pth"))
    finally:
        families.cache_clear()
        sys.modules.pop("v2idetr.modeling.toys", None)
    assert weights.header.source_layout == "the toy shop's detector"
    assert torch.equal(weights.state["mixer.weight"], net.mixer.weight)


@pytest.fixture(name="config")
def _config(tiny_detr_config: Path) -> Path:
    """The tiny config with the toy network; its teacher is a Deformable DETR."""
    content = yaml.safe_load(tiny_detr_config.read_text())
    backbone = {"_target_": "tests.conftest.TinyBackbone"}
    target = "tests.checkpoints.test_own_networks.ToyNetwork"
    net = {"_target_": target, "backbone": backbone, "num_classes": 1, "d": 8, "weights": ""}
    content["model"]["net"] = net
    content["teacher"]["model"]["net"]["isolate_padding"] = False
    content["model"]["criterion"] = {"classification": FOCAL}
    tiny_detr_config.write_text(yaml.safe_dump(content))
    return tiny_detr_config


def test_the_converter_publishes_it_and_reads_it_with_its_config(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, path = tmp_path / "best.pth", tmp_path / "toy.safetensors"
    detector = build_stage(load_config(config, []), "plain").model
    assert type(detector.net).__name__ == "ToyNetwork"
    save_checkpoint(
        Checkpoint("plain", 6, dict(detector.state_dict()), class_names=["polyp"]), best
    )
    given = ["--config-file", str(config)]
    assert main([str(best), *given, "--output", str(path)]) == 0
    assert load_detector(detector, path) == []
    assert main([str(path)]) == 2
    assert "the network 'ToyNetwork', which is none of DETR" in capsys.readouterr().err
    assert main([str(path), *given]) == 0
    assert main([str(path), *given, "--new-class-head"]) == 2
    assert (
        "class heads of ToyNetwork are unknown; add weight_rules to the class"
        in capsys.readouterr().err
    )
    assert main([str(path), *given, "--to", "transformers", "--output", str(tmp_path / "t")]) == 2
    assert "transformers has no ToyNetwork" in capsys.readouterr().err
