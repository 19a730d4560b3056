"""Cases of the benchmark for exported detectors: torch, ONNX Runtime and OpenVINO on a CPU."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmark_cases import Call, Case, Setting
from benchmark_models import build

STUDENTS = ("deformable_detr", "detr", "sam_detr")
EAGER, ONNX, OPENVINO = "eager", "ONNX Runtime fp32", "OpenVINO fp32"
HALF, INT8 = "OpenVINO fp16 weights", "OpenVINO INT8"
# Idle threads of ONNX Runtime spin: without a pause, torch takes 1.25 to 1.4 times as long behind
# it; with one, as long as by itself (2 cores).
PAUSE_S = 0.05
CALIBRATION = 3  # frames of noise: speed does not depend on the ranges that they give


@dataclass(frozen=True)
class _Detector:
    """A detector to be exported.

    Attributes:
        module: frames to scores, classes and boxes.
        readings: contexts of further variants in torch.
        batches: batch sizes that it takes.
        trace: makes its graph.
        quantized: names of the operations of a graph that INT8 is for.
        reads: operations of one frame that ``cost.flops`` does not see.
    """

    name: str
    module: Any
    readings: dict[str, Callable[[], Any]]
    batches: tuple[int, ...]
    trace: Callable[[], Any]
    quantized: Callable[[Any], set[str]]
    reads: int = 0


def export_cases(setting: Setting) -> Iterator[Case]:
    """Students in torch, ONNX Runtime and OpenVINO on a CPU, beside small real-time detectors.

    All have torch's number of threads. INT8 is calibrated on noise: its speed counts, not its
    detections. Real-time detectors are as transformers builds them, without the fusion of parallel
    convolutions that their authors deploy. The last cases compare all detectors in OpenVINO.
    """
    _check(setting)
    case = partial(Case, pause_s=PAUSE_S)
    together: dict[int, dict[str, Call]] = {batch: {} for batch in setting.batches}
    facts: dict[str, dict[str, Any]] = {}
    for make in _makers(setting):
        detector = make()
        try:
            facts[detector.name] = _facts(detector, setting.size)
        except RuntimeError as error:  # too few tokens for the queries
            print(f"{detector.name} cannot take frames of this size: {_reason(error)}")
            continue
        backends, failed, sizes = _backends(detector, setting.size)
        for batch in detector.batches:
            frames = _noise(batch, setting.size)
            variants = _eager(detector, frames) | {
                label: partial(backend.run, frames) for label, backend in backends.items()
            }
            columns = {label: {"file_mib": size} for label, size in sizes.items()}
            columns[EAGER] = facts[detector.name]
            title = f"{detector.name}, exported, batch {batch}"
            yield case(title, EAGER, variants, columns, frames=batch, failed=failed)
            if OPENVINO in backends:
                together[batch][detector.name] = variants[OPENVINO]
    for batch, variants in together.items():
        if variants:
            title = f"all detectors, {OPENVINO}, batch {batch}"
            yield case(title, next(iter(variants)), variants, facts, frames=batch)


def _check(setting: Setting) -> None:
    """Raise ValueError where nothing can be exported."""
    from v2idetr.deploy.export import missing_libraries

    if setting.device.type != "cpu":
        raise ValueError("--export compares runtimes on CPUs; add --device cpu.")
    names = {
        *missing_libraries("onnx", quantized=False),
        *missing_libraries("openvino", quantized=True),
    }
    if names:
        raise ValueError(
            f"--export needs {', '.join(sorted(names))}: pip install -r requirements-deploy.txt"
        )


def _makers(setting: Setting) -> Iterator[Callable[[], _Detector]]:
    """Detectors, each made when its turn comes."""
    for name in STUDENTS:
        yield partial(_student, name, setting)
    if not importlib.util.find_spec("transformers"):
        print("no comparison with real-time detectors: transformers is not installed")
    elif 1 not in setting.batches:
        print("no comparison with real-time detectors: they are exported for batch 1")
    else:
        from benchmark_real_time import REAL_TIME

        for name in REAL_TIME:
            yield partial(_real_time, name, setting)


def _student(name: str, setting: Setting) -> _Detector:
    from benchmark_bags import read_bags

    from v2idetr.deploy.export import trace
    from v2idetr.deploy.quantization import quantized_nodes
    from v2idetr.modeling import deformable_attention

    detector = build(name, "model", setting.backbone).eval()
    module = detector.image_detector().eval().requires_grad_(False)
    readings: dict[str, Callable[[], Any]] = {EAGER: nullcontext}
    kind = deformable_attention.DeformableAttention
    if any(isinstance(part, kind) for part in module.modules()):
        readings[f"{EAGER}, grid_sample"] = partial(
            deformable_attention.reading_with, "grid_sample"
        )
        readings[f"{EAGER}, bags"] = partial(
            mock.patch.object, deformable_attention, "deformable_read", read_bags
        )
    return _Detector(
        name,
        module,
        readings,
        setting.batches,
        partial(trace, module, setting.size, "grid_sample"),
        quantized_nodes,
    )


def _real_time(name: str, setting: Setting) -> _Detector:
    from benchmark_real_time import QUANTIZED, REAL_TIME, RealTimeDetector, trace_one

    from v2idetr.deploy.quantization import quantized_nodes

    module = RealTimeDetector(REAL_TIME[name](setting.size)).eval().requires_grad_(False)
    trace = partial(trace_one, module, setting.size)
    return _Detector(
        name,
        module,
        {EAGER: nullcontext},
        (1,),
        trace,
        partial(quantized_nodes, modules=QUANTIZED),
        module.reads(),
    )


def _backends(
    detector: _Detector, size: tuple[int, int]
) -> tuple[dict[str, Any], dict[str, str], dict[str, float]]:
    """Exported detector in every runtime: (backends, reasons of failures, MiB of the files)."""
    import torch

    from v2i_runtime.backends import open_backend
    from v2i_runtime.model_info import probe_image
    from v2idetr.deploy import export as files
    from v2idetr.deploy.quantization import quantize

    program = cache(detector.trace)
    model = cache(lambda: files.to_openvino(program()))

    def quantized() -> Any:
        frames = [probe_image(*size), *_noise(CALIBRATION, size)]
        return quantize(model(), detector.quantized(program()), frames)

    writers: dict[str, Callable[[Path], None]] = {
        ONNX: lambda path: files.save_onnx(program(), path, half=False),
        OPENVINO: lambda path: files.save_openvino(model(), path, half=False),
        HALF: lambda path: files.save_openvino(model(), path, half=True),
        INT8: lambda path: files.save_openvino(quantized(), path, half=False),
    }
    backends, failed, sizes = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (label, write) in enumerate(writers.items()):
            print(f"{detector.name}: exporting for {label}", flush=True)
            path = Path(folder) / f"{number}{'.onnx' if label == ONNX else '.xml'}"
            try:
                write(path)
                files.describe(path, _info(size, "int8" if label == INT8 else "fp32"))
                backends[label] = open_backend(path, device="CPU", threads=torch.get_num_threads())
                for batch in detector.batches:  # OpenVINO compiles for each
                    backends[label].run(_noise(batch, size))
            except Exception as error:  # exporters can raise anything
                backends.pop(label, None)
                failed[label] = _reason(error)
            else:
                written = path.parent.glob(f"{path.stem}.*")
                sizes[label] = sum(file.stat().st_size for file in written) / 2**20
    return backends, failed, sizes


def _info(size: tuple[int, int], precision: str) -> Any:
    """The description that the runtime asks for, of a detector without training."""
    from v2i_runtime.model_info import ModelInfo, Probe
    from v2i_runtime.preprocess import FixedSize, Preprocess

    return ModelInfo(
        network="",
        class_names=["lesion"],
        preprocess=Preprocess(FixedSize(*size)),
        size=size,
        precision=precision,
        attention="",
        score_threshold=None,
        threshold_source="",
        checkpoint="",
        checkpoint_sha256="",
        versions={},
        parity={},
        card={},
        probe=Probe(size, [], [], [], tolerance=1.0),
    )


def _eager(detector: _Detector, frames: Any) -> dict[str, Call]:
    import torch

    images = torch.from_numpy(frames)

    def detect(reading: Callable[[], Any]) -> None:
        with torch.inference_mode(), reading():
            detector.module(images)

    return {label: partial(detect, reading) for label, reading in detector.readings.items()}


def _facts(detector: _Detector, size: tuple[int, int]) -> dict[str, float]:
    """Parameters, and GFLOPs of one frame."""
    import torch
    from torch import nn

    from v2idetr.evaluation.cost import flops, parameters

    class OfSamples(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = detector.module

        def forward(self, samples: list[Any]) -> Any:
            return self.module(samples[0]["images"])

    sample = {"images": torch.from_numpy(_noise(1, size))}
    operations = flops(OfSamples(), sample) + detector.reads
    return {"parameters": parameters(detector.module)["total"], "gflops": operations / 1e9}


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def _noise(batch: int, size: tuple[int, int]) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)


EXPORT_CASES: dict[str, Callable[[Setting], Iterator[Case]]] = {"export": export_cases}
