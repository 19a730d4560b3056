"""INT8 after training (NNCF): backbone, neck and encoder; decoder and heads stay in float.

A quantized decoder of RT-DETR finds nothing (mAP 0.0002, ultralytics #26191).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch.export import ExportedProgram

from v2i_runtime.backends import INPUT, runtime_module

QUANTIZED = ("net.backbone", "net.neck", "net.encoder")


def quantized_nodes(program: ExportedProgram, modules: tuple[str, ...] = QUANTIZED) -> set[str]:
    """Names of the operations of a graph that belong to modules which are quantized.

    Args:
        program: graph.
        modules: beginnings of the modules' names.
    """
    names = set()
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if any(path.startswith(modules) for path, _ in stack.values()):
            names.add(node.name)
        else:
            # OpenVINO numbers convolutions anew, so that their modules cannot be told.
            assert not node.name.startswith("conv"), f"{node.name} is in no quantized module"
    return names


def quantize(model: Any, nodes: set[str], frames: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Any:
    """A model of OpenVINO with operations in INT8.

    Args:
        model: of ``export.to_openvino``.
        nodes: see :func:`quantized_nodes`.
        frames: calibration frames of the network's input size.
    """
    nncf = runtime_module("nncf")
    nncf.set_log_level(logging.ERROR)
    operations = [op.get_friendly_name() for op in model.get_ordered_ops()]
    ignored = [name for name in operations if not _is_quantized(name, nodes)]
    return nncf.quantize(
        model,
        nncf.Dataset(frames, lambda frame: {INPUT: frame[None]}),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
        subset_size=len(frames),
    )


def _is_quantized(operation: str, nodes: set[str]) -> bool:
    """Whether an operation such as "linear_3/aten.linear.default/MatMul" is to be quantized."""
    node = operation.split("/")[0]
    return node in nodes or node.startswith("conv")
