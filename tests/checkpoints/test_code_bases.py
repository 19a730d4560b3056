"""Files of other code bases become our detectors, and our detectors such files again."""

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
from v2idetr.checkpoints.architecture import NETWORKS
from v2idetr.checkpoints.conversion import LAYOUTS, Weights, find_layout, read_foreign
from v2idetr.checkpoints.export import export
from v2idetr.checkpoints.files import CheckpointError, read_weights
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
    stored = read_weights(path)
    return read_foreign(path, stored, find_layout(stored.state, path))


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
def test_names_and_shapes_become_those_of_our_network_and_back(case: str) -> None:
    kind, _, changes, _, _ = CASES[case]
    shapes, _ = shapes_of(case, COCO)
    settings = {"num_classes": 91, "num_queries": changes.get("queries", 300)}
    with torch.device("meta"):
        net = NETWORKS[kind](
            backbone=instantiate(copy.deepcopy(resnet50)), **settings, **settings_of(case)
        )
    want = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    one = torch.zeros(())  # takes no memory, whatever its shape
    file = {name: one.expand(shape) for name, shape in shapes.items()}
    layout = find_layout(file, "file")
    ours, unknown = layout.to_ours(file, "file")
    assert not unknown
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == want
    back = layout.from_ours(ours, "file")
    assert {name: tuple(tensor.shape) for name, tensor in back.items()} == shapes


@pytest.mark.parametrize("case", CASES)
def test_a_file_there_and_back_is_the_same_bit_for_bit(case: str, tmp_path: Path) -> None:
    path, state = tiny_file(case, tmp_path)
    weights = read(path)
    export(weights, case.split("_")[0] if "detrex" in case else "official", tmp_path / "back.pth")
    back = read_weights(tmp_path / "back.pth").state
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("case", CASES)
def test_a_detector_there_and_back_is_the_same_in_everything(case: str, tmp_path: Path) -> None:
    weights = read(tiny_file(case, tmp_path)[0])
    heads = weights.header.architecture["num_heads"]
    if not case.startswith("sam"):  # its tensors show it
        heads = 4
    architecture = weights.header.architecture | {"num_heads": heads, "isolate_padding": True}
    if "num_points" in architecture:
        architecture["num_points"] *= 8 // heads
    header = replace(
        weights.header,
        architecture=architecture,
        class_names=["a", "b", "c", "d", "e"],
        pixel_mean=[1.0, 2.0, 3.0],
        pixel_std=[4.0, 5.0, 6.0],
        input_size="resize_fixed width=64 height=48",
        size_divisor=32,
        config="model: {}\n",
    )
    code_base = case.split("_")[0] if "detrex" in case else "official"
    export(replace(weights, header=header), code_base, tmp_path / "theirs.pth")
    back = read(tmp_path / "theirs.pth").header
    assert (back.source, back.source_layout) == ("theirs.pth", weights.header.source_layout)
    same = {"source": header.source, "source_sha256": header.source_sha256}
    assert replace(back, **same) == header


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
    ours, _ = find_layout(state, "file").to_ours(state, "file")
    decoder = "transformer.decoder.layers.1."
    assert torch.equal(ours["decoder.1.self_norm.weight"], state[f"{decoder}norm2.weight"])
    assert torch.equal(ours["decoder.1.cross_norm.weight"], state[f"{decoder}norm1.weight"])


def test_linear_layers_stand_for_convolutions_of_one_cell() -> None:
    shapes, second = file_names.official_sam(replace(TINY, levels=1))
    state = tensors(shapes, second)
    ours, _ = find_layout(state, "file").to_ours(state, "file")
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
    layout = find_layout(old, "file")
    assert layout.to_ours(old, "file")[0].keys() == layout.to_ours(state, "file")[0].keys()


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
    with pytest.raises(CheckpointError, match="not a whole detector") as caught:
        read(path)
    assert "missing (2)" in str(caught.value)
    assert str(caught.value).endswith("or save all of model.state_dict() again.")
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
    assert all(layout.title in str(caught.value) for layout in LAYOUTS)


def test_of_a_file_that_lost_what_it_is_known_by_the_nearest_layout_is_named() -> None:
    mark = "transformer.decoder.layers.0.multihead_attn.in_proj_weight"
    state = {n: t for n, t in tensors(*shapes_of("detr", TINY)).items() if n != mark}
    with pytest.raises(CheckpointError) as caught:
        find_layout(state, "file.pth")
    nearest = f"nearest to the official code of DETR, but has no {mark}."
    assert nearest in str(caught.value)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"dilation": True}, "--dilation"),
        ({"pre_norm": True}, "--pre_norm"),
        ({"position_embedding": "learned"}, "--position_embedding learned"),
        ({"nheads": 5}, "cannot be cut into 5 heads"),
        ({"nheads": 0}, "cannot be cut into 0 heads"),
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


@pytest.mark.parametrize("case", ["detr", "detrex_detr"])
def test_a_file_is_believed_against_its_name(case: str, tmp_path: Path) -> None:
    weights = read(tiny_file(case, tmp_path)[0])
    name = "without_dc5.pth"
    export(weights, "official" if case == "detr" else "detrex", tmp_path / name)
    if case == "detr":
        state = torch.load(tmp_path / name)["model"]
        beside = argparse.Namespace(nheads=8, dilation=False)
        torch.save({"model": state, "args": beside}, tmp_path / name)
    assert read(tmp_path / name).header.source == name


def test_what_to_do_about_a_tensor_too_many_is_said(tmp_path: Path) -> None:
    path, state = tiny_file("detr", tmp_path)
    torch.save({"model": state | {"extra": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match="If the detector works without them, save the oth"):
        read(path)


def test_tensors_that_should_be_one_must_be_equal(tmp_path: Path) -> None:
    path, state = tiny_file("deformable", tmp_path)
    state["class_embed.1.bias"] = state["class_embed.1.bias"] + 1
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"class_embed\.1\.bias and class_embed\.0\.bias"):
        read(path)


def test_a_detector_without_a_place_elsewhere_is_not_exported(tmp_path: Path) -> None:
    path, _ = tiny_file("sam", tmp_path)
    with pytest.raises(CheckpointError, match="detrex has no SAMDETR; these do: the official code"):
        export(read(path), "detrex", tmp_path / "out.pth")
    weights = read(tiny_file("deformable", tmp_path)[0])
    for part, sentence in (
        ("temporal.blocks.0.weight", r"It is a teacher[\s\S]*temporal\.blocks\.0\.weight"),
        ("content_embed.weight", r"learnt contents \(mixed_queries\)[\s\S]*content_embed\.weight"),
    ):
        more = replace(weights, state=weights.state | {part: torch.zeros(1)})
        with pytest.raises(CheckpointError, match=sentence):
            export(more, "official", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("case", "name", "strides"),
    [("detr", "official", [16]), ("detr", "transformers", [16]), ("deformable", "detrex", [8, 16])],
)
def test_levels_that_a_code_base_does_not_read_are_not_exported(
    case: str, name: str, strides: list[int], tmp_path: Path
) -> None:
    weights = read(tiny_file(case, tmp_path)[0])
    architecture = weights.header.architecture | {"strides": strides}
    other = replace(weights, header=replace(weights.header, architecture=architecture))
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(strides))}, but .* {name} give 32"):
        export(other, name, tmp_path / "out.pth")
