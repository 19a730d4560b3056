"""Cost of a detector: parameters, FLOPs, time and memory of one detection."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from v2idetr.data.reference_sampler import AdjacentSampler, ReferenceSampler, VideoFrames
from v2idetr.evaluation.predictions import evaluating
from v2idetr.modeling.deformable_attention import DeformableAttention

WARM_UP = 2
REPEATS = 20
MIN_REPEATS = 3
MAX_SECONDS = 15.0  # no further repeats after this, for slow CPUs
VIDEO_FRAMES = 4000  # of the video in whose middle a detector of whole videos is measured


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters without buffers, shared ones once: ``{"total", "trainable"}``."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "total": sum(size for size, _ in sizes),
        "trainable": sum(size for size, trainable in sizes if trainable),
    }


def flops(model: nn.Module, sample: dict[str, Any]) -> int:
    """Floating-point operations of one detection on ``sample``; a multiply-add counts as two.

    Counted in a forward pass: convolutions, matrix products and attention (torch's counter), and
    the sampling of deformable attention, which torch's counter does not see: 4 grid cells of
    ``d / heads`` channels per head and point, one multiply-add each, hence
    ``2 * 4 * levels * points * d`` per query. Normalisation, activations, interpolation and
    position arithmetic are left out, as is customary. For a teacher, all its frames count; with
    ``order = "video"`` only what is computed anew for a frame.
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
            call = next(_detections(model, sample))
            reads.clear()  # of the frames before
            with FlopCounterMode(display=False) as counter:
                call()
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() + sum(reads)


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


def seconds_per_frame(model: nn.Module, sample: dict[str, Any], *, repeats: int = REPEATS) -> float:
    """Median time in seconds of one detection at batch 1, after a warm-up.

    From decoded frames in memory to boxes: normalisation, network and post-processing, without
    reading and decoding files. On a GPU every repeat is synchronised.
    """
    device = _device(model)
    with evaluating(model):
        calls = _detections(model, sample)
        for _ in range(min(WARM_UP, repeats)):
            timed(next(calls), device)
        start = time.perf_counter()
        times = []
        while len(times) < repeats:
            times.append(timed(next(calls), device))
            if len(times) >= MIN_REPEATS and time.perf_counter() - start > MAX_SECONDS:
                break
    return median(times)


def successive_frames(
    sample: dict[str, Any], sampler: ReferenceSampler
) -> Iterator[dict[str, Any]]:
    """Samples of successive frames from the middle of a long video on.

    Args:
        sample: a clip, whose images the video repeats.
        sampler: choice of the frames of a clip.
    """
    images = sample.get("clip", [sample])
    listed = VideoFrames(range(VIDEO_FRAMES), range(VIDEO_FRAMES))
    for current in range(VIDEO_FRAMES // 2, VIDEO_FRAMES):
        clip = [
            {**images[place % len(images)], "image_id": place, "frame_index": place}
            for place in sampler(listed, current, None)
        ]
        yield {**clip[sampler.clip_index], "clip": clip, "clip_index": sampler.clip_index}


def _detections(model: Any, sample: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    """Detections of one frame each, at the pace of live video.

    A detector of whole videos keeps what it knows of earlier frames: it sees as many frames as its
    references span before, outside the measurement.
    """
    while getattr(model, "order", "any") != "video":
        yield partial(model, [sample])
    own = getattr(model, "evaluation_sampler", None) or getattr(model, "reference_sampler", None)
    sampler = own or AdjacentSampler(before=len(sample.get("clip", [sample])) - 1, after=0)
    frames = successive_frames(sample, sampler)
    model.reset()
    for frame in islice(frames, _span(sampler)):
        model([frame])
    yield from (partial(model, [frame]) for frame in frames)


def _span(sampler: ReferenceSampler) -> int:
    """Frames from the first to the last of a clip, without those of the whole video."""
    listed = VideoFrames(range(VIDEO_FRAMES), range(VIDEO_FRAMES))
    places = sampler(listed, VIDEO_FRAMES // 2, None)
    near = places[: len(places) - sampler.num_global]
    return max(near) - min(near) + 1


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


def peak_memory_mib(model: nn.Module, sample: dict[str, Any]) -> float | None:
    """Peak GPU memory of one detection in MiB, weights included; None on a CPU."""
    device = _device(model)
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    with evaluating(model):
        next(_detections(model, sample))()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def measure_cost(
    model: nn.Module, sample: dict[str, Any], *, repeats: int = REPEATS
) -> dict[str, Any]:
    """All costs for one sample, with input size and machine (JSON-able).

    Args:
        model: a detector; for a student, the detector without its distillation modules.
        sample: one frame, or one clip for a video detector, at the size of evaluation.
        repeats: number of timed runs after the warm-up.
    """
    height, width = sample["image"].shape[-2:]
    count = parameters(model)
    return {
        "parameters": count["total"],
        "trainable_parameters": count["trainable"],
        "flops": flops(model, sample),
        "frames_per_second": 1 / seconds_per_frame(model, sample, repeats=repeats),
        "peak_memory_mib": peak_memory_mib(model, sample),
        "input_height": int(height),
        "input_width": int(width),
        "frames_per_detection": len(sample.get("clip", [sample])),
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
