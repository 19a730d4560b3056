"""Files that are no exports, or damaged ones, are refused by name with what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtime.tiny_models import WEIGHTS, onnx_model, tiny_info, write_model
from v2i_runtime import Detector
from v2i_runtime.backends import available_devices, open_backend
from v2i_runtime.model_info import probe_image

SUFFIXES = (".onnx", ".xml")
in_both = pytest.mark.parametrize("suffix", SUFFIXES)


def foreign_openvino(path: Path) -> None:
    import openvino

    onnx.save(onnx_model(), path.with_suffix(".onnx"))
    openvino.save_model(openvino.Core().read_model(path.with_suffix(".onnx")), path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.onnx", None, "no such file; export the student with"),
        ("best.pth", b"PK", "is a file of weights; export the student with"),
        ("best.safetensors", b"{}", "is a file of weights; export"),
        ("notes.txt", b"notes", r"is no \.onnx or \.xml file; export"),
        ("model", b"notes", r"is no \.onnx or \.xml file; export"),
        ("a.onnx", b"", "is empty; copy the file again"),
        ("a.xml", b"", "is empty; copy the file again"),
        ("a.onnx", b"some notes about a model\n" * 9, "cannot be loaded by ONNX Runtime .*copy"),
        ("a.xml", b"some notes about a model\n" * 9, "is no XML .*; copy the file again"),
        ("a.xml", b"\x80\x81PK" * 9, "is no XML .*; copy the file again"),
        ("a.xml", b"<annotation><size/></annotation>", "is no network of OpenVINO; export"),
        ("a.xml", b"<net><layers><layer></net>", "is damaged or truncated .*; copy the file again"),
        ("a.xml", b"<net name='a' version='11'></net>", r"was not made by tools/export\.py"),
        ("a.xml", b"<net version='99'><layers><layer/></layers></net>", "cannot be loaded by Open"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, content, message) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path / name}: {message}"):
        Detector(tmp_path / name)


def test_a_folder_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; give the \.xml or \.onnx file in it"):
        Detector(tmp_path)


def test_weights_alone_are_refused_with_the_file_to_give(tmp_path) -> None:
    path = write_model(tmp_path / "tiny.xml")
    with pytest.raises(ValueError, match=r"tiny\.bin: holds only weights; give tiny\.xml"):
        Detector(path.with_suffix(".bin"))


@in_both
def test_a_network_of_somebody_else_is_refused(tmp_path, suffix) -> None:
    path = tmp_path / f"theirs{suffix}"
    if suffix == ".onnx":
        onnx.save(onnx_model(), path)
    else:
        foreign_openvino(path)
    with pytest.raises(ValueError, match=r"theirs\.\w+: was not made by tools/export\.py"):
        Detector(path)


def test_a_network_with_other_outputs_is_refused(tmp_path) -> None:
    path = write_model(tmp_path / "other.onnx")
    model = onnx.load(path)
    del model.graph.output[1]
    onnx.save(model, path)
    with pytest.raises(
        ValueError, match=r"other\.onnx: its inputs and outputs are \['images'\] and"
    ):
        Detector(path)


@in_both
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.98])
def test_a_truncated_file_is_refused(tmp_path, suffix, share) -> None:
    path = write_model(tmp_path / f"cut{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"cut\{suffix}: .*(copy|export)"):
        Detector(path)


@pytest.mark.parametrize("missing", [1, 30, "all"])
def test_truncated_weights_are_refused(tmp_path, missing) -> None:
    weights = write_model(tmp_path / "cut.xml").with_suffix(".bin")
    data = weights.read_bytes()
    weights.write_bytes(b"" if missing == "all" else data[:-missing])
    message = rf"cut\.bin: has \d+ bytes of the {len(data)} .*copy both files again"
    with pytest.raises(ValueError, match=message):
        Detector(weights.with_suffix(".xml"), verify=False)


def test_missing_weights_are_named(tmp_path) -> None:
    weights = write_model(tmp_path / "tiny.xml").with_suffix(".bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"tiny\.bin: no such file; copy it to the \.xml"):
        Detector(weights.with_suffix(".xml"))


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.xml", "tiny.bin"])
def test_a_file_in_which_one_bit_has_changed_is_refused(tmp_path, name) -> None:
    changed = tmp_path / name
    path = write_model(changed.with_suffix(".onnx" if name == "tiny.onnx" else ".xml"))
    Detector(path)
    data = changed.read_bytes()
    # The least bit of a weight, and a word of the description that nothing else checks.
    value, other = {
        ".onnx": (WEIGHTS.tobytes(), np.nextafter(WEIGHTS, np.float32(9)).tobytes()),
        ".bin": (WEIGHTS.tobytes(), np.nextafter(WEIGHTS, np.float32(9)).tobytes()),
        ".xml": (b"student", b"teacher"),
    }[changed.suffix]
    assert data.count(value) == 1
    changed.write_bytes(data.replace(value, other))
    with pytest.raises(ValueError, match=rf"{path}: it .*was changed or damaged after .*copy the"):
        Detector(path)
    assert Detector(path, verify=False).info.network == "Tiny"


@in_both
def test_a_runtime_that_computes_otherwise_is_refused(tmp_path, suffix) -> None:
    path = write_model(tmp_path / f"tiny{suffix}", weights=WEIGHTS + np.float32(0.5))
    with pytest.raises(ValueError, match=r"finds other .* than at export, by 0\.\d+.*otherwise"):
        Detector(path)


@in_both
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "its description is damaged; export it again"),
        ("[1, 2]", "its description is damaged; export it again"),
        (tiny_info().to_json().replace('"version": 2', '"version": 9'), "of version 9, but this"),
        (tiny_info().to_json().replace('"fp32"', '"fp8"'), "damaged .precision is 'fp8'"),
        (tiny_info().to_json().replace('"probe"', '"prob"'), "damaged .'probe'"),
        (tiny_info(class_names=[]).to_json(), r"damaged .class_names is \[\]"),
        (tiny_info(file_sha256="no digest").to_json(), "damaged .file_sha256 is 'no digest'"),
    ],
)
def test_an_unusable_description_is_refused(tmp_path, suffix, text, message) -> None:
    path = write_model(tmp_path / f"tiny{suffix}", text=text)
    with pytest.raises(ValueError, match=rf"tiny\{suffix}: .*{message}"):
        Detector(path)


@in_both
def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path, suffix) -> None:
    path = write_model(tmp_path / f"tiny{suffix}")
    with pytest.raises(ValueError, match=r"device is 'abacus', but .* has only .*CPU"):
        Detector(path, device="abacus")
    Detector(path, device="cpu")
    assert "CPU" in available_devices(suffix)


@pytest.mark.parametrize(("suffix", "module"), [(".onnx", "onnxruntime"), (".xml", "openvino")])
def test_a_missing_runtime_is_named_with_its_installation(
    tmp_path, suffix, module, monkeypatch
) -> None:
    path = write_model(tmp_path / f"tiny{suffix}")
    monkeypatch.setitem(sys.modules, module, None)
    extra = module.removesuffix("runtime")
    with pytest.raises(ValueError, match=rf"needs {module}.*pip install 'v2i-runtime\[{extra}\]'"):
        Detector(path)


@in_both
def test_a_runtime_takes_the_number_of_threads_that_it_is_given(tmp_path, suffix) -> None:
    path = write_model(tmp_path / f"tiny{suffix}")
    backend: Any = open_backend(path, device="CPU", threads=1)
    backend.run(probe_image(24, 32)[None])
    if suffix == ".onnx":
        assert backend._session.get_session_options().intra_op_num_threads == 1
    else:
        (request,) = backend._requests.values()
        assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


@in_both
def test_outputs_survive_the_next_run(tmp_path, suffix) -> None:
    backend = open_backend(write_model(tmp_path / f"tiny{suffix}"), device="CPU", threads=1)
    first = backend.run(np.zeros((1, 24, 32, 3), np.uint8))
    scores = first.scores.tolist()
    backend.run(np.full((1, 24, 32, 3), 255, np.uint8))
    assert first.scores.tolist() == scores


def test_an_openvino_file_may_be_replaced_while_it_is_used(tmp_path) -> None:
    path = write_model(tmp_path / "tiny.xml")
    backend = open_backend(path, device="CPU", threads=1)
    images = probe_image(24, 32)[None]
    before = backend.run(images)
    path.with_suffix(".bin").write_bytes(b"")
    for one, other in zip(backend.run(images), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_precision_is_computed_in_float32_on_a_cpu(tmp_path, precision) -> None:
    path = write_model(tmp_path / "tiny.xml", precision=precision)
    backend = open_backend(path, device="CPU", threads=None)
    assert backend.runtime.endswith("on CPU")
    Detector(path)
