"""Exported file -> network that runs, in ONNX Runtime (``.onnx``) or in OpenVINO (``.xml``).

    open_backend       backend of a file, by its suffix
    available_devices  devices that a runtime has here
    openvino_core      OpenVINO's core, one in a process
    OnnxBackend        ONNX Runtime
    OpenVinoBackend    OpenVINO

A runtime is imported when a file needs it, by `runtime_module`. Inputs and outputs are those of
`model_info`.
"""

from __future__ import annotations

import os
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from v2i_runtime.model_info import KEY, ModelInfo, Outputs

EXPORT = "export the student with tools/export.py"
AGAIN = "copy the file again, or export it again"
WEIGHTS = (".pth", ".pt", ".pkl", ".safetensors", ".ckpt")
MOST_REQUESTS = 4  # compiled networks that are kept; each takes memory for weights and features
INPUT, OUTPUTS = "images", ("scores", "classes", "boxes")


@runtime_checkable
class Backend(Protocol):
    """A network in a runtime.

    Attributes:
        info: description in the file.
        runtime: name and version of the runtime, and its device, for messages.
    """

    info: ModelInfo
    runtime: str

    def run(self, images: UInt8[np.ndarray, "B H W 3"]) -> Outputs: ...


def open_backend(path: str | os.PathLike[str], *, device: str, threads: int | None) -> Backend:
    """Load an exported file.

    Args:
        path: ``.onnx``, or ``.xml`` with its ``.bin`` beside it.
        device: "CPU", or another device that the runtime has, such as "GPU" or "CUDA".
        threads: number of CPU threads; None for the runtime's choice.

    Raises:
        ValueError: no usable exported file, no such device, or a missing runtime; names the file.
    """
    path = Path(path)
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, but must be at least 1, or None")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the .xml or .onnx file in it")
    if not path.exists():
        raise ValueError(f"{path}: no such file; {EXPORT}")
    suffix = path.suffix.lower()
    backend = {".onnx": OnnxBackend, ".xml": OpenVinoBackend}.get(suffix)
    if backend is None:
        if suffix == ".bin" and path.with_suffix(".xml").exists():
            raise ValueError(f"{path}: holds only weights; give {path.with_suffix('.xml').name}")
        kind = "is a file of weights" if suffix in WEIGHTS else "is no .onnx or .xml file"
        raise ValueError(f"{path}: {kind}; {EXPORT}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty; {AGAIN}")
    return backend(path, device=device, threads=threads)


def available_devices(suffix: str) -> list[str]:
    """Devices of the runtime of ``.onnx`` or ``.xml`` files on this machine."""
    if suffix == ".onnx":
        return sorted(_providers(runtime_module("onnxruntime")))
    return sorted(_openvino_devices(openvino_core()))


def runtime_module(name: str) -> Any:
    """A library of a runtime, imported without its telemetry.

    OpenVINO and nncf report that they are imported, ONNX Runtime its sessions; of a program for
    patients' video nothing should leave the machine. Their own switches are used.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))  # each has a stub for this case
    return import_module(name)


@cache
def openvino_core() -> Any:
    """The ``openvino.Core`` of this process.

    OpenVINO's CPU plugin (2026.4) gives the thread that loads it a stack for signals, and puts the
    one before back when it is unloaded. Two that are unloaded in the order of loading, or one in
    another thread, leave a stack that is gone, and the next signal ends the process. So there is
    one core, and it stays.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    core = runtime_module("openvino").Core()
    # A mapped file that is overwritten ends the process (SIGBUS).
    core.set_property({"ENABLE_MMAP": False})
    return core


class OnnxBackend:
    """A network in ONNX Runtime; may be run from several threads at once.

    Args:
        path: ``.onnx`` file.
        device: execution provider without "ExecutionProvider", such as "CPU" or "CUDA".
        threads: number of CPU threads; None for all physical cores.

    Raises:
        ValueError: see `open_backend`.
    """

    def __init__(self, path: Path, *, device: str, threads: int | None) -> None:
        ort = _import("onnxruntime", path, "onnx")
        providers = _providers(ort)
        device = _known_device(path, device, providers, "ONNX Runtime")
        provider = providers[device]
        self.runtime = f"ONNX Runtime {ort.__version__} on {device}"
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors arrive as exceptions
        options.intra_op_num_threads = threads or 0
        with _explained(path, f"cannot be loaded by {self.runtime}", AGAIN):
            self._session = ort.InferenceSession(path, options, providers=[provider])
        if provider not in self._session.get_providers():  # it falls back to the CPU
            raise ValueError(
                f"{path}: {self.runtime} cannot be started; install what this device needs, or "
                "use device='CPU'"
            )
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.info = _info(path, metadata.get(KEY))
        self._path = path
        _check_names(path, _names(self._session.get_inputs()), _names(self._session.get_outputs()))

    def run(self, images: UInt8[np.ndarray, "B H W 3"]) -> Outputs:
        """Detections of a batch.

        Raises:
            ValueError: the runtime failed, for instance for lack of memory; names the file.
        """
        with _explained(self._path, f"failed in {self.runtime}", "use another device or batch"):
            return Outputs(*self._session.run(list(OUTPUTS), {INPUT: images}))


class OpenVinoBackend:
    """A network in OpenVINO; calls from several threads wait for each other.

    The network is compiled for each number of frames in a batch when it is first needed: with a
    free number a frame takes a tenth to a third longer.

    It computes in float32, also where the CPU would choose bfloat16. A GPU computes a file of
    precision "fp16" in float16; a CPU does not, as bfloat16 is all that it would offer instead.

    Args:
        path: ``.xml`` file.
        device: device of OpenVINO, such as "CPU", "GPU" or "AUTO".
        threads: number of threads, on a CPU only; None for all physical cores.

    Raises:
        ValueError: see `open_backend`.
    """

    def __init__(self, path: Path, *, device: str, threads: int | None) -> None:
        _check_weights(path)
        ov = _import("openvino", path, "openvino")
        core = openvino_core()
        device = _known_device(path, device, _openvino_devices(core), "OpenVINO")
        self.runtime = f"OpenVINO {ov.__version__.split('-')[0]} on {device}"
        with _explained(path, f"cannot be loaded by {self.runtime}", AGAIN):
            model = core.read_model(path)
            text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        self.info = _info(path, text)
        _check_names(path, _openvino_names(model.inputs), _openvino_names(model.outputs))
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU" or self.info.precision != "fp16":
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        if threads is not None:
            if device != "CPU":
                raise ValueError(
                    f"threads={threads} is for device='CPU'; leave it out for {device}"
                )
            settings["INFERENCE_NUM_THREADS"] = threads
        _decompress(ov, model)
        self._path, self._lock = path, threading.Lock()
        self._model, self._device, self._settings = model, device, settings
        self._requests: dict[tuple[int, ...], Any] = {}

    def run(self, images: UInt8[np.ndarray, "B H W 3"]) -> Outputs:
        """Detections of a batch.

        Raises:
            ValueError: the runtime failed, for instance for lack of memory; names the file.
        """
        with (
            self._lock,
            _explained(self._path, f"failed in {self.runtime}", "use another device or batch"),
        ):
            request = self._request(images.shape)
            request.infer({INPUT: np.ascontiguousarray(images)}, share_inputs=True)
            # The next run overwrites the memory of the request.
            return Outputs(*(request.get_tensor(name).data.copy() for name in OUTPUTS))

    def _request(self, shape: tuple[int, ...]) -> Any:
        """The compiled network for batches of one shape."""
        if shape not in self._requests:
            if len(self._requests) == MOST_REQUESTS:
                self._requests.pop(next(iter(self._requests)))
            model = self._model.clone()
            model.reshape({INPUT: list(shape)})
            compiled = openvino_core().compile_model(model, self._device, self._settings)
            self._requests[shape] = compiled.create_infer_request()
        return self._requests[shape]


def _decompress(ov: Any, model: Any) -> None:
    """Turn float16 weights into float32, as the CPU computes.

    Compiled for several frames, OpenVINO 2026.4 computes a DETR with float16 weights wrongly.
    """
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Convert" or op.get_output_element_type(0) != ov.Type.f32:
            continue
        weights = op.input_value(0).get_node()
        if weights.get_type_name() == "Constant" and weights.get_element_type() == ov.Type.f16:
            constant = ov.op.Constant(weights.get_data().astype(np.float32))
            for user in op.output(0).get_target_inputs():
                user.replace_source_output(constant.output(0))


def _import(module: str, path: Path, extra: str) -> Any:
    try:
        return runtime_module(module)
    except ImportError as error:
        raise ValueError(
            f"{path}: needs {module}, which cannot be imported ({error}): "
            f"pip install 'v2i-runtime[{extra}]'"
        ) from error


@contextmanager
def _explained(path: Path, failure: str, remedy: str) -> Iterator[None]:
    """Errors of a runtime, which have no class in common, as a ValueError."""
    try:
        yield
    except Exception as error:
        # OpenVINO's messages begin with lines about its sources.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        own = [line for line in lines if not line.startswith(("Exception from", "Check "))]
        reason = (own or lines or [type(error).__name__])[0]
        raise ValueError(f"{path}: {failure} ({reason:.300}); {remedy}") from error


def _info(path: Path, text: str | None) -> ModelInfo:
    if text is None:
        raise ValueError(
            f"{path}: was not made by tools/export.py, or lost its description; {EXPORT}"
        )
    return ModelInfo.from_json(text, str(path))


def _check_names(path: Path, inputs: list[str], outputs: list[str]) -> None:
    if inputs != [INPUT] or sorted(outputs) != sorted(OUTPUTS):
        raise ValueError(
            f"{path}: its inputs and outputs are {inputs} and {outputs}, but must be {[INPUT]} and "
            f"{list(OUTPUTS)}; {EXPORT}"
        )


def _names(ports: Iterable[Any]) -> list[str]:
    return [port.name for port in ports]


def _openvino_names(ports: Iterable[Any]) -> list[str]:
    """The name of the contract among those of each port, which can have several."""
    known = {INPUT, *OUTPUTS}
    names = [sorted(port.get_names(), key=lambda name: (name not in known, name)) for port in ports]
    return [name[0] if name else "" for name in names]


def _known_device(path: Path, device: str, known: Iterable[str], runtime: str) -> str:
    """The device in upper case, if it is known.

    Raises:
        ValueError: it is not.
    """
    known = sorted(known)
    if device.upper() not in known:
        raise ValueError(
            f"{path}: device is {device!r}, but {runtime} has only {', '.join(known)} here"
        )
    return device.upper()


def _providers(ort: Any) -> dict[str, str]:
    """Execution providers of ONNX Runtime by device."""
    names = ort.get_available_providers()
    providers = {name.removesuffix("ExecutionProvider").upper(): name for name in names}
    providers.pop("AZURE", None)  # in every build, but runs nothing on this machine
    return providers


def _openvino_devices(core: Any) -> set[str]:
    devices = core.available_devices
    return {"AUTO", *devices, *(name.split(".")[0] for name in devices)}  # GPU of GPU.0


def _check_weights(path: Path) -> None:
    """Check that the ``.bin`` beside an ``.xml`` is there and long enough.

    OpenVINO refuses a truncated one, too, but names no file.

    Raises:
        ValueError: it is not, or the ``.xml`` is damaged or no network of OpenVINO.
    """
    weights, needed, root = path.with_suffix(".bin"), 0, None
    try:
        for event, element in ET.iterparse(path, ("start", "end")):
            if root is None:
                root = element.tag
            if event == "end" and element.tag == "data" and "offset" in element.attrib:
                size, offset = int(element.attrib.get("size", 0)), int(element.attrib["offset"])
                needed = max(needed, offset + size)
    except (ET.ParseError, UnicodeDecodeError, ValueError) as error:
        kind = "is no XML" if root is None else "is damaged or truncated"
        raise ValueError(f"{path}: {kind} ({error}); {AGAIN}") from error
    if root != "net":
        raise ValueError(f"{path}: is no network of OpenVINO; {EXPORT}")
    if needed and not weights.is_file():
        raise ValueError(f"{weights}: no such file; copy it to the .xml, or export again")
    if needed and weights.stat().st_size < needed:
        raise ValueError(
            f"{weights}: has {weights.stat().st_size} bytes of the {needed} that {path.name} "
            "needs; it is truncated or of another export: copy both files again"
        )
