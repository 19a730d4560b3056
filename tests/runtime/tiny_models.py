"""Exported files of a tiny network, made without torch, and its results in NumPy.

The network looks at the mean colour of a frame. Its boxes reach outside the frame.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from v2i_runtime.integrity import PLACEHOLDER, seal
from v2i_runtime.model_info import KEY, ModelInfo, Probe, probe_image
from v2i_runtime.preprocess import FixedSize, Preprocess

SIZE = 24, 32
WEIGHTS = np.array([[2.0, -1.0], [0.5, 1.5], [-1.5, 1.0]], np.float32)
BOXES = np.array([[[-0.25, 0.1, 0.5, 1.5], [0.2, 0.2, 0.6, 0.9]]], np.float32)
NODES = [
    ("Cast", ["images"], ["pixels"], {"to": TensorProto.FLOAT}),
    ("ReduceMean", ["pixels", "height_and_width"], ["mean"], {"keepdims": 0}),
    ("Mul", ["mean", "unit"], ["color"], {}),
    ("MatMul", ["color", "weights"], ["logits"], {}),
    ("Sigmoid", ["logits"], ["chances"], {}),
    ("TopK", ["chances", "two"], ["scores", "classes"], {"axis": 1}),
    ("Slice", ["color", "zero", "one", "one"], ["red"], {}),
    ("Unsqueeze", ["red", "two"], ["shift"], {}),
    ("Add", ["shift", "reference_boxes"], ["boxes"], {}),
]


def expected(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, classes and boxes of the network, boxes xyxy in [0, 1]."""
    color = images.astype(np.float32).mean((1, 2)) / 255
    chances = 1 / (1 + np.exp(-(color @ WEIGHTS)))
    classes = np.argsort(-chances, axis=1, kind="stable")
    boxes = color[:, :1, None] + BOXES
    return np.take_along_axis(chances, classes, 1), classes, boxes


def tiny_info(**changes) -> ModelInfo:
    """Description of the network."""
    scores, classes, boxes = (out[0].tolist() for out in expected(probe_image(*SIZE)[None]))
    info = ModelInfo(
        network="Tiny",
        class_names=["polyp", "ulcer"],
        preprocess=Preprocess(FixedSize(*SIZE)),
        size=SIZE,
        precision="fp32",
        attention="",
        score_threshold=0.6,
        threshold_source="F1 on validation data",
        checkpoint="best.pth",
        checkpoint_sha256="0" * 64,
        versions={"onnx": onnx.__version__},
        parity={"scores": 0.0},
        card={"stage": "student"},
        probe=Probe(SIZE, scores, classes, boxes, tolerance=1e-4),
    )
    return replace(info, **changes)


def onnx_model(weights: np.ndarray = WEIGHTS) -> onnx.ModelProto:
    """The network without a description."""
    B = "B"
    values = {
        "height_and_width": np.array([1, 2]),
        "unit": np.float32(1 / 255),
        "weights": weights,
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "reference_boxes": BOXES,
    }
    graph = helper.make_graph(
        [helper.make_node(kind, into, out, **more) for kind, into, out, more in NODES],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [B, *SIZE, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [B, 2]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, [B, 2]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [B, 2, 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def write_model(path: Path, *, weights: np.ndarray = WEIGHTS, text: str = "", **changes) -> Path:
    """Write an ``.onnx``, or an ``.xml`` with its ``.bin``; ``text`` replaces the description."""
    model = onnx_model(weights)
    text = text or tiny_info(**changes).to_json()
    if path.suffix == ".onnx":
        helper.set_model_props(model, {KEY: text})
        onnx.save(model, path)
        return _sealed(path, text)
    import openvino

    source = path.with_suffix(".source.onnx")
    onnx.save(model, source)
    network = openvino.Core().read_model(source)
    network.set_rt_info(text, [KEY])
    openvino.save_model(network, path, compress_to_fp16=False)
    source.unlink()
    return _sealed(path, text)


def _sealed(path: Path, text: str) -> Path:
    if PLACEHOLDER in text:
        seal(path)
    return path
