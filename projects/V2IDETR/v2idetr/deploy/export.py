"""Student -> ONNX or OpenVINO file that holds its own description.

The network in the file normalises, pads and detects; see ``v2i_runtime.model_info`` for inputs and
outputs. The number of frames per batch is free, their size is fixed: tracing a small DETR
with a symbolic size had not ended after six minutes.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import Dim, ExportedProgram

from v2i_runtime.backends import INPUT, OUTPUTS, openvino_core, runtime_module
from v2i_runtime.integrity import PLACEHOLDER, seal
from v2i_runtime.model_info import KEY, ModelInfo
from v2idetr.modeling.deformable_attention import Implementation, reading_with
from v2idetr.modeling.inference import ImageDetector

Format = Literal["onnx", "openvino"]
LIBRARIES = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("torch", "openvino"),
}
# GridSample came with 16; 20 renames its modes, which OpenVINO's importer rejects (#33531).
OPSET = 18
MOST_FRAMES = 1024  # in a batch
SMALL = 1024  # elements; smaller tensors stay in float32


def trace(
    module: ImageDetector, size: tuple[int, int], attention: Implementation
) -> ExportedProgram:
    """The network as a graph for frames of one size, in batches of any number.

    Args:
        module: the detector, in evaluation mode and without gradients.
        size: (height, width) of the input, px.
        attention: reads of deformable attention: "grid_sample", or "gather" for devices that
            compute GridSample wrongly.

    Raises:
        ValueError: the network cannot take this size.
    """
    frames = torch.zeros(3, *size, 3, dtype=torch.uint8)  # 3: no other size of the network
    batch = Dim("batch", min=1, max=MOST_FRAMES)
    with reading_with(attention), torch.no_grad(), _quiet():
        module(frames[:1])  # errors of the network itself, in its own words
        return torch.export.export(module, (frames,), dynamic_shapes=({0: batch},), strict=False)


def save_onnx(program: ExportedProgram, path: Path, *, half: bool) -> None:
    """Write a graph as ONNX, without a description; ``half``: weights in float16."""
    import onnx

    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            optimize=False,  # the optimised graph of Deformable DETR names a missing input
            verbose=False,
        )
    assert exported is not None
    exported.save(path)
    if half:
        model = onnx.load(path)
        _halve(model)
        onnx.save(model, path)


def save_openvino(model: Any, path: Path, *, half: bool) -> None:
    """Write a model of OpenVINO; ``half``: weights in float16."""
    ov = runtime_module("openvino")

    ov.save_model(model, path, compress_to_fp16=half)


def to_openvino(program: ExportedProgram) -> Any:
    """A graph as a model of OpenVINO."""
    ov = runtime_module("openvino")

    with _quiet():
        model = ov.convert_model(program)
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    shape = program.example_inputs[0][0].shape if program.example_inputs else None
    assert shape is not None
    model.reshape({INPUT: ov.PartialShape([-1, *shape[1:]])})  # else of any size
    return model


def describe(path: Path, info: ModelInfo) -> None:
    """Put the description and the file's digest into an exported file, in place of earlier ones."""
    _describe(path, replace(info, file_sha256=PLACEHOLDER).to_json())
    seal(path)


def _describe(path: Path, text: str) -> None:
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, {KEY: text})
        onnx.save(model, path)
        return
    ov = runtime_module("openvino")

    model = openvino_core().read_model(path)
    model.set_rt_info(text, [KEY])
    ov.save_model(model, path, compress_to_fp16=False)  # keeps the types that are there


def versions_of_libraries(format: Format, *, quantized: bool) -> dict[str, str]:
    """Versions of the libraries that make a file."""
    names = [*LIBRARIES[format], *(["nncf"] if quantized else [])]
    return {name: version(name) for name in names}


def missing_libraries(format: Format, *, quantized: bool) -> list[str]:
    """Libraries for a format that are not installed."""
    from importlib.util import find_spec

    names = [*LIBRARIES[format], *(["nncf"] if quantized else [])]
    return [name for name in names if find_spec(name) is None]


def _halve(model: Any) -> None:
    """Weights of an ONNX model as float16, with a cast to float32 behind each."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size <= SMALL:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of exporters, which address the authors of a network."""
    names = ("torch.onnx", "torch.export", "onnxscript", "torch.fx")
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
