"""Files of other code bases become our detectors."""

from __future__ import annotations

import argparse
import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from detectron2.config import instantiate
from torch import Tensor, nn

from configs.models.backbones import resnet50
from tests.checkpoints import file_names
from tests.checkpoints.file_names import TINY, Shapes, Size, tensors
from tests.checkpoints.tiny_detectors import detector_of, tiny_network
from v2idetr.checkpoints.conversion import Weights, read_foreign
from v2idetr.checkpoints.files import CheckpointError, read_weights
from v2idetr.checkpoints.layouts import find_layout, known_layouts, read_layout
from v2idetr.checkpoints.transformers_export import export
from v2idetr.modeling.weight_rules import families
from v2idetr.runs.checkpoint import load_into

COCO = Size()
REFINED, TWO_STAGE = {"refine": True}, {"refine": True, "two_stage": True}
OURS = {"refine": "box_refine"}

# Our network, the file's names, its sizes, its variant, and parameters as counted on the official
# code with a ResNet-50 and COCO's 91 ids (in millions of the papers: 41, 40, 34 and 58).
CASES = {
    "detr": ("DETR", "official_detr", {"ffn": 2048, "queries": 100}, {}, 41_524_768),
    "deformable": ("DeformableDETR", "official_deformable", {}, {}, 40_069_665),
    "single_scale": ("DeformableDETR", "official_deformable", {"levels": 1}, {}, 34_066_593),
    "box_refined": ("DeformableDETR", "official_deformable", {}, REFINED, 40_849_660),
    "two_stage": ("DeformableDETR", "official_deformable", {}, TWO_STAGE, 41_181_529),
    "sam": ("SAMDETR", "official_sam", {"ffn": 2048, "levels": 1}, {}, 58_296_458),
    "sam_no_norm": ("SAMDETR", "official_sam", {"ffn": 2048, "levels": 1}, {"norm": False}, None),
    "sam_smca": ("SAMDETR", "official_sam", {"ffn": 2048, "levels": 1}, {"smca": True}, 58_345_706),
    "sam_multi_scale": (
        "SAMDETR",
        "official_sam",
        {"ffn": 2048, "levels": 3},
        {"multi_scale": True},
        55_194_698,
    ),
    "detrex_detr": ("DETR", "detrex_detr", {"ffn": 2048, "queries": 100}, {}, 41_524_768),
    "detrex": ("DeformableDETR", "detrex_deformable", {}, {}, 40_069_665),
    "detrex_box_refined": ("DeformableDETR", "detrex_deformable", {}, REFINED, 40_849_660),
    "detrex_two_stage": ("DeformableDETR", "detrex_deformable", {}, TWO_STAGE, 41_181_529),
}


def shapes_of(case: str, size: Size) -> tuple[Shapes, dict[str, str]]:
    """Names and shapes of a case, and which of them are second names."""
    _, writer, changes, variant, _ = CASES[case]
    given = tiny_size(case) if size is TINY else Size(**changes)
    shapes: Any = getattr(file_names, writer)(given, **variant)
    return shapes if isinstance(shapes, tuple) else (shapes, {})


def tiny_size(case: str) -> Size:
    """Multi-scale SAM-DETR has as many decoder layers at each of three levels."""
    levels = CASES[case][2].get("levels", TINY.levels)
    return replace(TINY, levels=levels, decoder=3 if levels == 3 else TINY.decoder)


def settings_of(case: str) -> dict[str, Any]:
    """Our network's arguments for the variant of a case."""
    kind, _, changes, variant, _ = CASES[case]
    settings = {OURS.get(key, key): value for key, value in variant.items() if key != "norm"}
    if kind == "SAMDETR":
        settings["neck_norm"] = "group" if variant.get("norm", True) else "none"
    elif changes.get("levels") == 1:
        settings["strides"] = (32,)
    return settings


def tiny_file(case: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file of noise as the code base would have saved it, and its tensors."""
    state = tensors(*shapes_of(case, TINY))
    path = folder / f"{case}.pth"
    content: dict[str, Any] = {"model": state}
    if CASES[case][1].startswith("official"):
        content["args"] = argparse.Namespace(nheads=TINY.heads, dilation=False, num_queries=9)
    torch.save(content, path)
    return path, state


def read(path: Path) -> Weights:
    return read_foreign(path, read_weights(path))


def renamed(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors of a file's, and names without a place."""
    return read_layout(find_layout(state, "file")[1], state, "file")


def test_the_resnet_of_the_lists_is_torchvisions() -> None:
    with torch.device("meta"):
        body = torchvision.models.resnet50(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    want = {n: tuple(t.shape) for n, t in body.state_dict().items() if not n.startswith("fc.")}
    assert file_names.torchvision_resnet(COCO) == want


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][-1]])
def test_the_lists_have_the_parameters_of_the_official_detectors(case: str) -> None:
    shapes, second = shapes_of(case, COCO)
    count = 0
    for name, shape in shapes.items():
        frozen = re.search(r"\.bn\d\.|downsample\.1|^backbone.*\.norm\.", name)
        if not frozen and not name.startswith(tuple(second)):
            count += torch.Size(shape).numel()
    assert count == CASES[case][-1]


def test_the_official_detr_has_458_tensors() -> None:
    assert len(shapes_of("detr", COCO)[0]) == 458


@pytest.mark.filterwarnings("ignore:.*meta:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_become_those_of_our_network(case: str) -> None:
    kind, _, changes, _, _ = CASES[case]
    shapes, _ = shapes_of(case, COCO)
    settings = {"num_classes": 91, "num_queries": changes.get("queries", 300)}
    with torch.device("meta"):
        net = families()[kind](
            backbone=instantiate(copy.deepcopy(resnet50)), **settings, **settings_of(case)
        )
    want = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    one = torch.zeros(())  # takes no memory, whatever its shape
    file = {name: one.expand(shape) for name, shape in shapes.items()}
    ours, unknown = renamed(file)
    assert not unknown
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == want


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_a_file_arrives_once_bit_for_bit(case: str) -> None:
    shapes, second = shapes_of(case, TINY)
    file = tensors(shapes, second)
    ours, _ = renamed(file)
    firsts = [tensor for name, tensor in file.items() if not name.startswith(tuple(second))]
    content = sorted(tensor.flatten().tolist() for tensor in firsts)
    assert sorted(tensor.flatten().tolist() for tensor in ours.values()) == content


@pytest.mark.parametrize("case", CASES)
def test_a_file_says_what_our_network_must_be(case: str, tmp_path: Path) -> None:
    path, _ = tiny_file(case, tmp_path)
    weights = read(path)
    net = tiny_network(CASES[case][0], tiny_size(case), **settings_of(case))
    architecture = weights.header.architecture
    assert architecture["network"] == CASES[case][0]
    assert architecture["num_heads"] == 8
    assert (
        architecture.items()
        >= {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in settings_of(case).items()
        }.items()
    )
    load_into(detector_of(net), weights.published_state(), path)


def test_what_tensors_do_not_show_is_read_beside_them(tmp_path: Path) -> None:
    path, _ = tiny_file("two_stage", tmp_path)
    content = torch.load(path, weights_only=False)
    torch.save(content | {"args": argparse.Namespace(nheads=4, num_queries=9)}, path)
    architecture = read(path).header.architecture
    assert (architecture["num_heads"], architecture["num_points"]) == (4, 8)
    assert architecture["num_queries"] == 9, "two-stage queries are no tensor"


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("sam")])
def test_the_heads_of_sam_detr_show_in_its_tensors(case: str, tmp_path: Path) -> None:
    _, writer, _, variant, _ = CASES[case]
    shapes, second = getattr(file_names, writer)(replace(tiny_size(case), heads=2), **variant)
    torch.save({"model": tensors(shapes, second)}, tmp_path / "sam.pth")
    architecture = read(tmp_path / "sam.pth").header.architecture
    assert architecture["num_heads"] == 2
    assert architecture["smca"] is variant.get("smca", False)


def test_norms_of_the_deformable_decoder_land_where_they_are_used() -> None:
    # The norms of its decoder are counted from the cross-attention, which comes second.
    state = tensors(*file_names.official_deformable(TINY))
    ours, _ = renamed(state)
    decoder = "transformer.decoder.layers.1."
    assert torch.equal(ours["decoder.1.self_norm.weight"], state[f"{decoder}norm2.weight"])
    assert torch.equal(ours["decoder.1.cross_norm.weight"], state[f"{decoder}norm1.weight"])


def test_linear_layers_stand_for_convolutions_of_one_cell() -> None:
    shapes, second = file_names.official_sam(replace(TINY, levels=1))
    state = tensors(shapes, second)
    ours, _ = renamed(state)
    conv = nn.Conv2d(32, 8, 1)
    conv.load_state_dict(
        {k: state[f"transformer.decoder.layers.0.point1.0.{k}"] for k in ("weight", "bias")}
    )
    cell = torch.randn(1, 32, 1, 1)
    linear = ours["decoder.0.aligner.region_proj.weight"] @ cell.flatten()
    linear = linear + ours["decoder.0.aligner.region_proj.bias"]
    torch.testing.assert_close(linear, conv(cell).flatten())


def test_an_older_spelling_of_detrex_is_read() -> None:
    shapes, second = file_names.detrex_deformable(TINY, refine=True, two_stage=True)
    state = tensors(shapes, second)
    old = {n.replace("enc_output_norm", "enc_outpout_norm"): t for n, t in state.items()}
    assert renamed(old)[0].keys() == renamed(state)[0].keys()


def test_what_a_file_holds_beside_the_detector_is_left_out(tmp_path: Path) -> None:
    path, state = tiny_file("detrex_detr", tmp_path)
    noise = {
        "criterion.empty_weight": torch.ones(6),
        "backbone.stem.conv1.norm.num_batches_tracked": torch.tensor(0),
    }
    torch.save({"model": state | noise, "optimizer": {"state": {}}, "iteration": 3}, path)
    weights = read(path)
    assert not [name for name in weights.state if "empty" in name or "tracked" in name]


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("case", CASES)
def test_missing_tensors_are_listed_as_the_file_calls_them(case: str, tmp_path: Path) -> None:
    path, state = tiny_file(case, tmp_path)
    lost = ["decoder.layers.1.", "backbone."]
    names = [next(n for n in state if part in n and n.endswith("weight")) for part in lost]
    torch.save({"model": {n: t for n, t in state.items() if n not in names}}, path)
    with pytest.raises(CheckpointError, match="not a complete detector") as caught:
        read(path)
    assert "missing (2)" in str(caught.value)
    assert str(caught.value).endswith("or save the complete model.state_dict() again.")
    assert all(name in str(caught.value) for name in names)


def test_a_whole_part_that_is_missing_is_named(tmp_path: Path) -> None:
    path, state = tiny_file("deformable", tmp_path)
    rest = {n: t for n, t in state.items() if not n.startswith(("input_proj", "class_embed"))}
    torch.save({"model": rest}, path)
    with pytest.raises(CheckpointError, match=r"missing \(1\):\s+(input_proj|class_embed)\.0"):
        read(path)


def test_tensors_of_another_shape_are_listed(tmp_path: Path) -> None:
    path, state = tiny_file("detr", tmp_path)
    state["transformer.decoder.norm.weight"] = torch.zeros(31)
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"decoder\.norm\.weight \(31,\), expected \(32,\)"):
        read(path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mask_head.lay1.weight", "segmentation head"),
        ("transformer.encoder.norm.weight", "pre_norm"),
        ("backbone.1.row_embed.weight", "learnt position embedding"),
        ("transformer.decoder.ref_point_head.layers.0.weight", "Conditional DETR"),
        ("something.else.weight", r"unexpected \(1\):\s+something\.else\.weight"),
    ],
)
def test_a_part_that_we_do_not_have_is_named(name: str, sentence: str, tmp_path: Path) -> None:
    path, state = tiny_file("detr", tmp_path)
    torch.save({"model": state | {name: torch.zeros(32)}}, path)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        read(path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("transformer.decoder.layers.0.ca_qpos_proj.weight", "Conditional DETR or DAB-DETR"),
        ("detr.transformer.encoder.layers.0.linear1.weight", "Detectron2 wrapper"),
        ("bbox_head.transformer.encoder.layers.0.norms.0.weight", "MMDetection"),
        ("head.weight", r"names such as head\.weight\.$"),
    ],
)
def test_an_unknown_layout_is_refused_with_what_it_may_be(name: str, sentence: str) -> None:
    with pytest.raises(CheckpointError, match="in no layout known here") as caught:
        find_layout({name: torch.zeros(1)}, "file.pth")
    assert re.search(sentence, str(caught.value))
    assert all(layout.title in str(caught.value) for _, layout in known_layouts())


def test_of_a_file_that_lost_what_it_is_known_by_the_nearest_layout_is_named() -> None:
    mark = "transformer.decoder.layers.0.multihead_attn.in_proj_weight"
    state = {n: t for n, t in tensors(*shapes_of("detr", TINY)).items() if n != mark}
    with pytest.raises(CheckpointError) as caught:
        find_layout(state, "file.pth")
    nearest = f"most similar to the official code of DETR, but has no {mark}."
    assert nearest in str(caught.value)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"dilation": True}, "--dilation"),
        ({"pre_norm": True}, "--pre_norm"),
        ({"position_embedding": "learned"}, "--position_embedding learned"),
        ({"nheads": 5}, "cannot be divided into 5 heads"),
        ({"nheads": 0}, "cannot be divided into 0 heads"),
    ],
)
def test_settings_that_we_do_not_have_are_refused(
    args: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path, state = tiny_file("detr", tmp_path)
    torch.save({"model": state, "args": argparse.Namespace(**args)}, path)
    with pytest.raises(CheckpointError, match=sentence):
        read(path)


def test_a_backbone_of_other_shapes_than_its_names_say_is_refused(tmp_path: Path) -> None:
    # The depth of a ResNet-18, half as wide.
    size = replace(TINY, blocks=(2, 2, 2, 2), stem=32, widths=(32, 64, 128, 256))
    torch.save({"model": tensors(file_names.official_detr(size))}, tmp_path / "detr.pth")
    with pytest.raises(CheckpointError, match="its backbone is not a plain ResNet-18"):
        read(tmp_path / "detr.pth")


def test_a_dilated_detector_is_known_by_its_file_name(tmp_path: Path) -> None:
    path, _ = tiny_file("detrex_detr", tmp_path)  # which says nothing else
    with pytest.raises(CheckpointError, match=r"DC5 detector by its name.*rename the file"):
        read(path.rename(tmp_path / "detr-r50-dc5-f0fb7ef5.pth"))


def test_a_file_is_believed_against_its_name(tmp_path: Path) -> None:
    path = tiny_file("detr", tmp_path)[0].rename(tmp_path / "without_dc5.pth")
    assert read(path).header.source == path.name


def test_what_to_do_about_a_tensor_too_many_is_said(tmp_path: Path) -> None:
    path, state = tiny_file("detr", tmp_path)
    torch.save({"model": state | {"extra": torch.zeros(2)}}, path)
    with pytest.raises(
        CheckpointError, match="If the detector works without them, save only the oth"
    ):
        read(path)


def test_tensors_that_should_be_one_must_be_equal(tmp_path: Path) -> None:
    path, state = tiny_file("deformable", tmp_path)
    state["class_embed.1.bias"] = state["class_embed.1.bias"] + 1
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"class_embed\.1\.bias and class_embed\.0\.bias"):
        read(path)


def test_a_detector_that_transformers_does_not_have_is_not_exported(tmp_path: Path) -> None:
    path, _ = tiny_file("sam", tmp_path)
    with pytest.raises(CheckpointError, match="transformers has no SAMDETR, only"):
        export(read(path), tmp_path / "out")
    weights = read(tiny_file("deformable", tmp_path)[0])
    for part, sentence in (
        ("fusion.blocks.0.weight", r"It is a teacher[\s\S]*fusion\.blocks\.0\.weight"),
        ("content_embed.weight", r"learnt contents \(mixed_queries\)[\s\S]*content_embed\.weight"),
    ):
        more = replace(weights, state=weights.state | {part: torch.zeros(1)})
        with pytest.raises(CheckpointError, match=sentence):
            export(more, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("case", "strides"), [("detr", [16]), ("deformable", [8, 16])])
def test_levels_that_transformers_does_not_read_are_not_exported(
    case: str, strides: list[int], tmp_path: Path
) -> None:
    weights = read(tiny_file(case, tmp_path)[0])
    architecture = weights.header.architecture | {"strides": strides}
    other = replace(weights, header=replace(weights.header, architecture=architecture))
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(strides))}, but .* only 32"):
        export(other, tmp_path / "out")
