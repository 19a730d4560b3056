"""A published file says what it is, is read without running code, and fits nothing else."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.checkpoints.tiny_detectors import detector_of, disturbed, tiny_network
from v2i_runtime.preprocess import FixedSize, Preprocess
from v2idetr.checkpoints.conversion import of_detector, read_published
from v2idetr.checkpoints.files import CheckpointError, read_weights, sha256
from v2idetr.checkpoints.published import Header, read_header, write_published
from v2idetr.checkpoints.settings_beside import read_folder
from v2idetr.modeling.meta_arch import Detector
from v2idetr.runs.checkpoint import load_detector

PREPROCESS = Preprocess(FixedSize(height_px=48, width_px=64))
KINDS = ("DETR", "DeformableDETR", "SAMDETR")


def tiny_detector(kind: str = "DETR", **changes) -> Detector:
    return detector_of(disturbed(tiny_network(kind, **changes)))  # type: ignore[arg-type]


def published(detector: Detector, folder: Path, **changes: Any) -> Path:
    """A file of a detector's weights, parts of its header changed."""
    source = folder / "best.pth"
    torch.save({"model": detector.state_dict()}, source)
    weights = of_detector(source, detector, "model: {}\n", PREPROCESS)
    path = folder / "published.safetensors"
    write_published(path, weights.published_state(), replace(weights.header, **changes))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    one, other = tiny_detector(kind), tiny_detector(kind)
    assert load_detector(other, published(one, tmp_path), class_names=one.class_names) == []
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_header_says_what_the_tensors_do_not(tmp_path: Path) -> None:
    detector = tiny_detector("DeformableDETR", box_refine=True, isolate_padding=True)
    path = published(detector, tmp_path)
    header = read_header(read_weights(path).metadata, path)
    assert isinstance(header, Header)
    assert header.architecture["network"] == "DeformableDETR"
    assert header.architecture["num_heads"] == 8
    assert header.architecture["strides"] == [8, 16, 32, 64]
    assert header.architecture["isolate_padding"] is True
    assert header.class_names == detector.class_names
    assert header.preprocess == PREPROCESS
    assert header.config == "model: {}\n"
    assert (header.source, header.source_sha256) == ("best.pth", sha256(tmp_path / "best.pth"))


@pytest.mark.parametrize(
    ("kind", "strides"),
    [("DETR", [16]), ("DeformableDETR", [8, 16]), ("DeformableDETR", [16, 32, 64])],
)
def test_levels_of_other_strides_than_published_ones_are_described_and_loaded(
    kind: str, strides: list[int], tmp_path: Path
) -> None:
    one, other = tiny_detector(kind, strides=strides), tiny_detector(kind, strides=strides)
    path = published(one, tmp_path)
    stored = read_weights(path)
    header = read_header(stored.metadata, path)
    assert header is not None and header.architecture["strides"] == strides
    bare = {name.removeprefix("net."): tensor for name, tensor in stored.state.items()}
    assert read_published(path, bare, header).header == header
    assert load_detector(other, path, class_names=one.class_names) == []


def test_anyone_can_read_the_header_with_safetensors_alone(tmp_path: Path) -> None:
    with safe_open(published(tiny_detector(), tmp_path), "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "v2idetr-weights"
    assert metadata["version"] == "2"
    assert '"network": "DETR"' in metadata["architecture"]
    assert json.loads(metadata["preprocess"]) == {
        "resize": {"kind": "fixed", "height_px": 48, "width_px": 64},
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
        "size_divisor": 32,
    }


# ------------------------------------------------------------------------- of something else


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("DeformableDETR", {}, r"net\.network is 'DeformableDETR', in the file 'DETR'"),
        ("DETR", {"num_queries": 9}, r"net\.num_queries is 9, in the file 7"),
        ("DETR", {"num_heads": 4}, r"net\.num_heads is 4, in the file 8"),
        ("DETR", {"strides": (16,)}, r"net\.strides is \[16\], in the file \[32\]"),
        ("DETR", {"ffn_dim": 64}, r"net\.ffn_dim is 64, in the file 48"),
        ("DETR", {"num_classes": 1}, r"net\.num_classes is 1, in the file 5[\s\S]*new-class-head"),
    ],
)
def test_another_architecture_is_refused(
    kind: str, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path, other = published(tiny_detector(), tmp_path), tiny_detector(kind, **changes)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=sentence):
        load_detector(other, path)
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())


@pytest.mark.parametrize("changes", [{"num_queries": 9}, {"num_classes": 1}])
def test_a_refusal_ends_with_the_advice_of_whoever_loads(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path, other = published(tiny_detector(), tmp_path), tiny_detector(**changes)
    with pytest.raises(CheckpointError, match=r"as in the file; or set it free\.$"):
        load_detector(other, path, advice="set it free")
    with pytest.raises(CheckpointError, match=r"as in the file\.$"):
        load_detector(other, path)


@pytest.mark.parametrize("partial", [False, True])
def test_other_pixel_statistics_are_refused(partial: bool, tmp_path: Path) -> None:
    other = replace(PREPROCESS, pixel_mean=(127.0, 127.0, 127.0))
    path = published(tiny_detector(), tmp_path, preprocess=other)
    with pytest.raises(CheckpointError, match=r"pixel_mean is \[123\.675.*in the file \[127"):
        load_detector(tiny_detector(), path, partial=partial)


def test_other_classes_are_refused_where_classes_matter(tmp_path: Path) -> None:
    path = published(tiny_detector(), tmp_path)
    with pytest.raises(CheckpointError, match=r"trained for the classes \['class 0'"):
        load_detector(tiny_detector(), path, class_names=["a", "b", "c", "d", "e"])


def test_partial_loading_takes_what_fits(tmp_path: Path) -> None:
    path, other = published(tiny_detector(), tmp_path), tiny_detector(num_queries=9, num_classes=1)
    left_out = load_detector(other, path, partial=True)
    assert left_out == ["net.class_head.bias", "net.class_head.weight", "net.query_embed.weight"]


def test_partial_loading_still_needs_as_many_heads(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"net\.num_heads is 4"):
        load_detector(
            tiny_detector(num_heads=4), published(tiny_detector(), tmp_path), partial=True
        )


def test_two_stage_queries_are_as_many_as_one_wants(tmp_path: Path) -> None:
    two_stage = {"box_refine": True, "two_stage": True}
    path = published(tiny_detector("DeformableDETR", **two_stage), tmp_path)
    assert load_detector(tiny_detector("DeformableDETR", **two_stage, num_queries=3), path) == []


MIXED = {"box_refine": True, "two_stage": True, "mixed_queries": True}


def test_the_header_says_whether_two_stage_queries_are_mixed(tmp_path: Path) -> None:
    path = published(tiny_detector("DeformableDETR", **MIXED), tmp_path)
    plain = tiny_detector("DeformableDETR", box_refine=True, two_stage=True)
    with pytest.raises(CheckpointError, match=r"net\.mixed_queries is False, in the file True"):
        load_detector(plain, path)
    with pytest.raises(CheckpointError, match=r"net\.num_queries is 3, in the file 7"):
        load_detector(tiny_detector("DeformableDETR", **MIXED, num_queries=3), path)
    assert load_detector(tiny_detector("DeformableDETR", **MIXED), path) == []


def test_a_header_of_before_there_were_mixed_queries_is_left_to_its_tensors(tmp_path: Path) -> None:
    path = published(tiny_detector("DeformableDETR", **MIXED), tmp_path)
    header = read_header(read_weights(path).metadata, path)
    assert header is not None
    old = {key: value for key, value in header.architecture.items() if key != "mixed_queries"}
    path = published(tiny_detector("DeformableDETR", **MIXED), tmp_path, architecture=old)
    assert load_detector(tiny_detector("DeformableDETR", **MIXED), path) == []
    with pytest.raises(CheckpointError, match=r"not in the model \(1\):\s+net\.content_embed"):
        load_detector(tiny_detector("DeformableDETR", box_refine=True, two_stage=True), path)


def test_padding_as_published_is_said_where_ours_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = published(tiny_detector(), tmp_path)
    with caplog.at_level(logging.INFO):
        load_detector(tiny_detector(isolate_padding=True), path)
    assert "isolate_padding=False" in caplog.text


def test_the_size_of_images_that_weights_were_trained_on_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = published(tiny_detector(), tmp_path, preprocess=replace(PREPROCESS, size_divisor=64))
    with caplog.at_level(logging.INFO):
        load_detector(tiny_detector(), path)
    assert "resized by FixedSize(height_px=48, width_px=64), padded to multip" in caplog.text
    assert "multiples of 64 (here 32)" in caplog.text


def test_a_file_of_another_code_base_is_sent_to_the_converter(tmp_path: Path) -> None:
    name = "transformer.decoder.layers.0.multihead_attn.in_proj_weight"
    torch.save({"model": {name: torch.zeros(1)}}, tmp_path / "detr.pth")
    with pytest.raises(CheckpointError, match=r"official code of DETR.*convert_checkpoint\.py"):
        load_detector(tiny_detector(), tmp_path / "detr.pth")


# ------------------------------------------------------------------------- damaged and unsafe


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_recognised(share: float, tmp_path: Path) -> None:
    path = published(tiny_detector(), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"published\.safetensors: is truncated or damaged"):
        read_weights(path)


@pytest.mark.parametrize("lost", ["architecture", "class_names"])
def test_a_header_that_lacks_a_part_is_refused(lost: str, tmp_path: Path) -> None:
    path = published(tiny_detector(), tmp_path)
    stored = read_weights(path)
    save_file(stored.state, path, {k: v for k, v in stored.metadata.items() if k != lost})
    with pytest.raises(CheckpointError, match=f"header is damaged.*{lost}"):
        load_detector(tiny_detector(), path)


def test_a_header_that_names_no_network_is_refused(tmp_path: Path) -> None:
    path = published(tiny_detector(), tmp_path)
    stored = read_weights(path)
    save_file(stored.state, path, stored.metadata | {"architecture": "[]"})
    with pytest.raises(CheckpointError, match="header is damaged"):
        load_detector(tiny_detector(), path)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("class_names", 3),
        ("class_names", [1]),
        ("config", None),
        ("architecture", {"network": 3}),
    ],
)
def test_a_header_of_other_types_is_refused(part: str, value: Any, tmp_path: Path) -> None:
    path = published(tiny_detector(), tmp_path)
    stored = read_weights(path)
    save_file(stored.state, path, stored.metadata | {part: json.dumps(value)})
    with pytest.raises(CheckpointError, match=f"header is damaged \\({part} is"):
        load_detector(tiny_detector(), path)


@pytest.mark.parametrize(
    "changes",
    [
        {"pixel_mean": "x"},
        {"pixel_mean": None},
        {"pixel_std": [1.0, 2.0]},
        {"pixel_std": [1.0, 2.0, 0.0]},
        {"size_divisor": "32"},
        {"size_divisor": 0},
        {"resize": "fixed"},
        {"resize": {"kind": "crop", "height_px": 48, "width_px": 64}},
        {"resize": {"kind": "fixed", "height_px": 48}},
        {"resize": {"kind": "fixed", "height_px": 48, "width_px": -64}},
        {"resize": {"kind": "fixed", "height_px": 48, "width_px": 64.5}},
    ],
)
def test_a_header_with_other_preprocessing_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path = published(tiny_detector(), tmp_path)
    stored = read_weights(path)
    content = json.dumps(PREPROCESS.to_json() | changes)
    save_file(stored.state, path, stored.metadata | {"preprocess": content})
    with pytest.raises(CheckpointError, match=r"published\.safetensors: its header is damaged"):
        load_detector(tiny_detector(), path)


def as_version_1(path: Path, **changes: Any) -> None:
    """Turn a published file into one of before the resize was data."""
    stored = read_weights(path)
    metadata = {key: value for key, value in stored.metadata.items() if key != "preprocess"}
    old = PREPROCESS.to_json() | {"input_size": "resize_fixed width=64 height=48"} | changes
    del old["resize"]
    words = {key: json.dumps(value) for key, value in old.items()}
    save_file(stored.state, path, metadata | words | {"version": "1"})


def test_a_file_of_version_1_is_loaded_and_its_resize_is_not_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = tiny_detector(), tiny_detector()
    path = published(one, tmp_path)
    as_version_1(path)
    with caplog.at_level(logging.INFO):
        assert load_detector(other, path, class_names=one.class_names) == []
    assert torch.equal(other.net.query_embed.weight, one.net.query_embed.weight)
    assert "version 1, its resize in words: resize_fixed width=64 height=48" in caplog.text
    header = read_header(read_weights(path).metadata, path)
    assert header is not None and header.preprocess == replace(PREPROCESS, resize=None)


def test_statistics_of_a_file_of_version_1_are_compared_too(tmp_path: Path) -> None:
    path = published(tiny_detector(), tmp_path)
    as_version_1(path, pixel_mean=[127.0, 127.0, 127.0])
    with pytest.raises(CheckpointError, match=r"pixel_mean is \[123\.675.*in the file \[127"):
        load_detector(tiny_detector(), path)


def test_a_header_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = published(tiny_detector(), tmp_path)
    stored = read_weights(path)
    save_file(stored.state, path, stored.metadata | {"version": "3"})
    with pytest.raises(CheckpointError, match=r"header version 3.*reads version 2"):
        load_detector(tiny_detector(), path)


def test_safetensors_without_our_header_are_a_bare_state_dict(tmp_path: Path) -> None:
    one, other = tiny_detector(), tiny_detector()
    save_file(dict(one.state_dict()), tmp_path / "bare.safetensors")
    assert load_detector(other, tmp_path / "bare.safetensors") == []


def test_the_command_line_in_official_files_is_no_code(tmp_path: Path) -> None:
    args = argparse.Namespace(lr=1e-4, backbone="resnet50", dilation=False, nheads=8)
    content = {"model": {"w": torch.ones(2)}, "args": args, "epoch": 3}
    torch.save(content, tmp_path / "official.pth")
    assert read_weights(tmp_path / "official.pth").beside["args"] == args
    torch.save(content, tmp_path / "2020.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "2020.pth").state["w"], torch.ones(2))


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("inside", [False, True])
def test_code_is_refused_and_not_run(suffix: str, inside: bool, tmp_path: Path) -> None:
    path, target = tmp_path / f"evil{suffix}", tmp_path / "touched"
    code: Any = Malicious(target)
    content = {
        "model": {"w": torch.ones(1)},
        "args": argparse.Namespace(x=code) if inside else code,
    }
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"not loaded|truncated or damaged"):
        read_weights(path)
    assert not target.exists()


def test_weights_are_found_under_the_second_key_where_the_first_is_something_else(
    tmp_path: Path,
) -> None:
    content = {"model": {"name": "detr"}, "state_dict": {"w": torch.ones(2)}, "epoch": 3}
    torch.save(content, tmp_path / "a.pth")
    stored = read_weights(tmp_path / "a.pth")
    assert torch.equal(stored.state["w"], torch.ones(2))
    assert stored.beside.keys() == {"model", "epoch"}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"ema": {"w": [1.0]}, "epoch": 3}, "has the keys 'ema', 'epoch'"),
        ({"model": {"0": 1}}, "has the keys 'model'"),
        ({0: torch.ones(1)}, "has the keys 0"),
        ([1], "is a list"),
    ],
)
def test_a_file_without_weights_is_refused_with_what_it_holds(
    content: Any, found: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"such as 'model' or 'state_dict'; it {found}\. If"):
        read_weights(tmp_path / "a.pth")


def test_what_data_parallel_puts_before_all_names_is_taken_off(tmp_path: Path) -> None:
    detector = tiny_detector()
    state = {f"module.{name}": tensor for name, tensor in detector.state_dict().items()}
    torch.save({"model": state}, tmp_path / "a.pth")
    assert load_detector(tiny_detector(), tmp_path / "a.pth") == []
    torch.save({"model": state | {"w": torch.ones(1)}}, tmp_path / "a.pth")
    assert "module.net.class_head.bias" in read_weights(tmp_path / "a.pth").state


def test_a_pickle_of_arrays_is_read(tmp_path: Path) -> None:
    content = {"model": {"w": np.ones((2, 3), np.float32)}, "__author__": "detectron2"}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert torch.equal(read_weights(tmp_path / "a.pkl").state["w"], torch.ones(2, 3))


def test_settings_of_transformers_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"encoder_attention_heads": 4, "decoder_attention_heads": 4}', encoding="utf-8-sig"
    )
    assert read_folder(tmp_path)["num_heads"] == 4
