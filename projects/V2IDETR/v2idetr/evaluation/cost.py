"""Cost of a detector: parameters, FLOPs, time and memory of one detection."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median, median_high
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from v2idetr.evaluation.predictions import evaluating
from v2idetr.modeling.deformable_attention import DeformableAttention
from v2idetr.modeling.trainable import Sample

WARM_UP = 2
REPEATS = 20
MIN_REPEATS = 3
MAX_SECONDS = 15.0  # no further repeats after this, for slow CPUs


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters without buffers, shared ones once: ``{"total", "trainable"}``."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "total": sum(size for size, _ in sizes),
        "trainable": sum(size for size, trainable in sizes if trainable),
    }


def flops(model: nn.Module, samples: Sequence[Sample]) -> int:
    """Floating-point operations of one detection; a multiply-add counts as two.

    Args:
        model: a detector.
        samples: see :func:`measure_cost`.

    Counted in a forward pass: convolutions, matrix products and attention (torch's counter), and
    the sampling of deformable attention, which torch's counter does not see: 4 grid cells of
    ``d / heads`` channels per head and point, one multiply-add each, hence
    ``2 * 4 * levels * points * d`` per query. Normalisation, activations, interpolation and
    position arithmetic are left out, as is customary. For a teacher, all its frames count. With
    ``order = "video"`` it is the median of some frames: at a cut more than one is new, at the end
    of a video none.
    """
    reads: list[int] = []

    def add_reads(module: DeformableAttention, _: Any, output: Tensor) -> None:
        reads.append(2 * 4 * module.num_levels * module.num_points * output.numel())

    hooks = [
        module.register_forward_hook(add_reads)
        for module in model.modules()
        if isinstance(module, DeformableAttention)
    ]
    try:
        with evaluating(model), _without_gradients(model), _countable_attention():
            counts = []
            for call in islice(_detections(model, samples), _num_different(model, samples)):
                reads.clear()  # of the frame before
                with FlopCounterMode(display=False) as counter:
                    call()
                counts.append(counter.get_total_flops() + sum(reads))
    finally:
        for hook in hooks:
            hook.remove()
    return median_high(counts)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Set ``requires_grad`` of all parameters to False in this block.

    Under ``no_grad``, chunks of a split parameter still require a gradient but have no graph, and
    torch's counter, which registers gradient hooks, fails on them.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Unfused attention: torch's counter does not see the fused CPU kernels."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def seconds_per_frame(
    model: nn.Module, samples: Sequence[Sample], *, repeats: int = REPEATS
) -> float:
    """Median time in seconds of one detection at batch 1, after a warm-up.

    From decoded frames in memory to boxes: normalisation, network and post-processing, without
    reading and decoding files. On a GPU every repeat is synchronised.
    """
    device = _device(model)
    with evaluating(model):
        calls = _detections(model, samples)
        for _ in range(min(WARM_UP, repeats)):
            timed(next(calls), device)
        start = time.perf_counter()
        times = []
        while len(times) < repeats:
            times.append(timed(next(calls), device))
            if len(times) >= MIN_REPEATS and time.perf_counter() - start > MAX_SECONDS:
                break
    return median(times)


def _detections(model: Any, samples: Sequence[Sample]) -> Iterator[Callable[[], Any]]:
    """Endless detections of one frame each, at the pace of live video.

    A detector of whole videos keeps what it knows of earlier frames: it sees the first half of the
    samples before the others, outside the measurement.
    """
    while not _in_order(model):
        yield partial(model, [samples[0]])
    video = _first_video(samples)
    half = len(video) // 2
    while True:
        model.reset()
        for sample in video[:half]:
            model([sample])
        yield from (partial(model, [sample]) for sample in video[half:])


def _num_different(model: nn.Module, samples: Sequence[Sample]) -> int:
    """After how many detections they repeat themselves."""
    length = len(_first_video(samples))
    return length - length // 2 if _in_order(model) else 1


def _in_order(model: nn.Module) -> bool:
    return getattr(model, "order", "any") == "video"


def _first_video(samples: Sequence[Sample]) -> list[Sample]:
    return [s for s in samples if s.get("video_id") == samples[0].get("video_id")]


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Duration of one call in seconds, synchronised with the GPU."""
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_mib(model: nn.Module, samples: Sequence[Sample]) -> float | None:
    """Peak GPU memory of one detection in MiB, weights included; None on a CPU."""
    device = _device(model)
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    with evaluating(model):
        next(_detections(model, samples))()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def measure_cost(
    model: nn.Module, samples: Sequence[Sample], *, repeats: int = REPEATS
) -> dict[str, Any]:
    """All costs of one detection, with input size and machine (JSON-able).

    Args:
        model: a detector; for a student, the detector without its distillation modules.
        samples: frames or, for a video detector, clips at the size of evaluation. The first is
            measured; with ``order = "video"`` those of the second half, successive frames of one
            video.
        repeats: number of timed runs after the warm-up.
    """
    height, width = samples[0]["image"].shape[-2:]
    count = parameters(model)
    return {
        "parameters": count["total"],
        "trainable_parameters": count["trainable"],
        "flops": flops(model, samples),
        "frames_per_second": 1 / seconds_per_frame(model, samples, repeats=repeats),
        "peak_memory_mib": peak_memory_mib(model, samples),
        "input_height": int(height),
        "input_width": int(width),
        "frames_per_detection": len(samples[0].get("clip", samples[:1])),
        "machine": machine(_device(model)),
    }


def machine(device: torch.device) -> str:
    """Description in one line: processor or GPU, threads, version of torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return f"{_processor()}, {threads} thread{plural}, torch {torch.__version__}"


def _processor() -> str:
    """Name of the processor; `platform.processor` has only the architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
