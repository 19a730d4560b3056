"""Cases of the benchmark: computations with their variants."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmark_models import (
    NUM_FRAMES,
    OTHER_ROLES,
    ROLES,
    as_configured,
    build,
    build_student,
    families,
    load,
    noise_clip,
    others,
)

from v2idetr.process_setup import give_memory_back

PRECISIONS = ("fp32", "tf32", "bf16")
Call = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """Settings of the cases.

    Attributes:
        device: torch device.
        size: height and width of an image, in pixels.
        backbone: a key of ``configs/models/backbones.py``.
        batches: batch sizes of inference.
        clips: clips per training step.
    """

    device: Any
    size: tuple[int, int]
    backbone: str
    batches: tuple[int, ...] = (1,)
    clips: int = 1


@dataclass(frozen=True)
class Case:
    """Variants of one computation; calling one computes it once.

    Attributes:
        facts: further columns of the table, by variant.
        frames: frames that a call computes, for frames per second; None for no such column.
        failed: variants that cannot be computed, with the reason.
        pause_s: sleep before each call, in which threads of the variant before fall asleep, too.
    """

    name: str
    baseline: str
    variants: dict[str, Call]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    frames: int | None = None
    failed: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0


def attention_cases(setting: Setting) -> Iterator[Case]:
    """Implementations of deformable sampling, as in the encoder (one query per token).

    Sampling locations are spread over the whole image, which is harder for caches than those of a
    trained encoder.
    """
    import torch

    from v2idetr.modeling.deformable_attention import deformable_read, implementation

    device = setting.device
    height, width = setting.size
    shapes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64)]
    S, heads, c, points = sum(h * w for h, w in shapes), 8, 32, 4
    grid = (1, S, heads, len(shapes), points)
    value = torch.randn(1, S, heads, c, device=device, requires_grad=True)
    locations = torch.rand(*grid, 2, device=device, requires_grad=True)
    weights = torch.rand(grid, device=device, requires_grad=True)
    default = implementation(device.type)

    def forward(how: Any) -> Any:
        with torch.no_grad():
            return deformable_read(value, shapes, locations, weights, how)

    def training_step(how: Any) -> None:
        read = deformable_read(value, shapes, locations, weights, how)
        torch.autograd.grad(read.sum(), (value, locations, weights))

    names = ["grid_sample", "gather", default]
    names += ["compiled"] if importlib.util.find_spec("torch_ms_deform_attn") else []
    names += ["triton"] if device.type == "cuda" and importlib.util.find_spec("triton") else []
    for what, run in (("forward", forward), ("forward and backward", training_step)):
        title = f"deformable attention, {what}, {S} queries of {len(shapes)} levels"
        labels = {how: f"{how} (default)" if how == default else how for how in names}
        variants = {label: partial(run, how) for how, label in labels.items()}
        yield Case(title, labels["grid_sample"], variants)


def inference_cases(setting: Setting) -> Iterator[Case]:
    """Inference of all detectors, and of those of transformers."""
    sample = noise_clip(setting.size)
    for students in families():
        models = {name: build(name, "model", setting.backbone) for name in students}
        models[ROLES["teacher"]] = build(students[0], "teacher", setting.backbone)
        models = {name: model.to(setting.device).eval() for name, model in models.items()}
        floors = {name: _floor(model, sample) for name, model in models.items()}
        for batch in setting.batches:
            for precision in _precisions(setting):
                variants = {
                    name: partial(_detect, model, [sample] * batch, precision)
                    for name, model in models.items()
                }
                title = f"{', '.join(students)} and their teacher, batch {batch}, {precision}"
                yield Case(title, students[0], variants, floors if batch == 1 else {})
    yield from _other_cases(setting, sample)
    if setting.backbone == "resnet50" and importlib.util.find_spec("transformers"):
        yield from _transformers_cases(setting, sample)
    else:
        print("no comparison with transformers: not installed, or the backbone is not resnet50")


def _other_cases(setting: Setting, sample: dict[str, Any]) -> Iterator[Case]:
    """Detectors without a teacher beside their video detectors, a frame at a time.

    Those of full size with ResNet-50 and the small ones with EfficientNet-Lite0.
    """
    from v2idetr.evaluation.cost import successive_frames

    size = {"resnet50": False, "efficientnet_lite0": True}
    for name in others():
        if name.endswith("_small") != size.get(setting.backbone):
            continue
        single = as_configured(name, "model").to(setting.device).eval()
        variants = {OTHER_ROLES["model"]: partial(_detect, single, [sample], "fp32")}
        if "video" in load(name):
            video = as_configured(name, "video").to(setting.device).eval()
            video.reset()
            sampler = video.evaluation_sampler or video.reference_sampler
            frames = successive_frames(noise_clip(setting.size), sampler)
            variants[OTHER_ROLES["video"]] = partial(_detect_next, video, frames)
        yield Case(f"{name}, batch 1", OTHER_ROLES["model"], variants)


def _detect_next(detector: Any, frames: Iterator[dict[str, Any]]) -> Any:
    """Detection of the next frame of a video; what is known of earlier ones is kept."""
    return _detect(detector, [next(frames)], "fp32")


def _precisions(setting: Setting) -> tuple[str, ...]:
    return PRECISIONS if setting.device.type == "cuda" else PRECISIONS[:1]


def compiled_cases(setting: Setting) -> Iterator[Case]:
    """Networks of our detectors, eager, compiled, and with CUDA graphs."""
    sample = noise_clip(setting.size)
    for name in [student for students in families() for student in students]:
        model = build(name, "model", setting.backbone).to(setting.device).eval()
        for batch in setting.batches:
            for precision in _precisions(setting):
                yield compiled_case(name, model, [sample] * batch, precision)


# Arguments of torch.compile by name of the variant.
COMPILED: dict[str, dict[str, Any]] = {
    "torch.compile": {"mode": "default"},
    "torch.compile, CUDA graphs": {"mode": "reduce-overhead"},
}


def compiled_case(name: str, model: Any, batch: list[dict[str, Any]], precision: str) -> Case:
    """The network of a detector, normalised images to boxes, eager and compiled.

    Variants that fail to compile are reported and left out.
    """
    import torch

    net, images = model.net, model.images(model.frames(batch))

    def detect() -> Any:
        memory = net.encode(net.extract(images))
        decoded = net.decode(memory, net.queries(memory))
        return decoded.logits[-1], decoded.boxes[-1]

    variants: dict[str, Call] = {"as it is": partial(_in_precision, detect, model, precision)}
    for way, how in COMPILED.items():
        try:
            call = partial(_in_precision, torch.compile(detect, **how), model, precision)
            call()
        except Exception as error:  # compilers can raise anything
            print(f"{name}, {way}, fails: {str(error).splitlines()[0]}")
        else:
            variants[way] = call
    title = f"network of {name}, batch {len(batch)}, {precision}, compiled"
    return Case(title, "as it is", variants)


def _transformers_cases(setting: Setting, sample: dict[str, Any]) -> Iterator[Case]:
    import torch

    pixels = torch.rand(1, 3, *setting.size, device=setting.device)
    for name, theirs in _transformers_models().items():
        ours = build(name, "model", "resnet50").to(setting.device).eval()
        variants: dict[str, Call] = {name: partial(_detect, ours, [sample], "fp32")}
        for label, model in theirs.items():
            variants[label] = partial(_run, model.to(setting.device).eval(), pixels)
        yield Case(f"{name} and transformers, batch 1", next(iter(theirs)), variants)


def _transformers_models() -> dict[str, dict[str, Any]]:
    """Detectors of transformers of equal size, by ours; the first has the same architecture."""
    import transformers

    library: Any = transformers  # its configs take keywords that are not in their signatures
    three = library.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    last = library.ResNetConfig(out_features=["stage4"])
    size = {"num_queries": 100, "num_labels": 1}
    deformable = library.DeformableDetrForObjectDetection(
        library.DeformableDetrConfig(backbone_config=three, **size)
    )
    rtdetr = library.RTDetrForObjectDetection(library.RTDetrConfig(**size))
    detr = library.DetrForObjectDetection(library.DetrConfig(backbone_config=last, **size))
    return {
        "deformable_detr": {"transformers": deformable, "transformers RT-DETR R50": rtdetr},
        "detr": {"transformers": detr},
    }


def _run(model: Any, pixels: Any) -> None:
    import torch

    with torch.inference_mode():
        model(pixels)


def _detect(model: Any, batch: list[dict[str, Any]], precision: str) -> Any:
    return _in_precision(partial(model, batch), model, precision)


def _in_precision(call: Call, model: Any, precision: str) -> Any:
    import torch

    device = next(model.parameters()).device.type
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        return call()


def _floor(model: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """GFLOPs of one detection, and their time as one matrix product."""
    from v2idetr.evaluation.cost import flops

    operations = flops(model, sample)
    return {"gflops": operations / 1e9, "floor_ms": 1e3 * operations / _matrix_rate(model.device)}


def _matrix_rate(device: Any) -> float:
    """Operations per second of a matrix product, the best of five."""
    import torch

    from v2idetr.evaluation.cost import timed

    a = torch.rand(2048, 2048, device=device)
    return 2 * 2048**3 / min(timed(lambda: a @ a, device) for _ in range(5))


def msi_cases(setting: Setting) -> Iterator[Case]:
    """Features of a clip with and without MSI."""
    import torch

    detectors = {"without MSI": build("deformable_detr", "model", setting.backbone)}
    role_sets = {
        "with MSI": ["local", "local", "global", "global"],
        "local levels only": ["local", "local", "none", "none"],
        "global levels only": ["none", "none", "global", "global"],
    }
    for label, roles in role_sets.items():
        detectors[label] = build("deformable_detr", "teacher", setting.backbone, roles=roles)
    detectors = {label: model.to(setting.device).eval() for label, model in detectors.items()}
    clip = detectors["with MSI"].images(noise_clip(setting.size)["clip"])

    def extract(detector: Any) -> None:
        with torch.no_grad():
            detector.net.extract(clip)

    variants = {label: partial(extract, detector) for label, detector in detectors.items()}
    yield Case(f"features of a clip of {NUM_FRAMES} frames", "without MSI", variants)


def training_cases(setting: Setting) -> Iterator[Case]:
    """Forward and backward of the three stages, and TFD and CQD by themselves."""
    for students in families():
        name = students[0]
        yield _training_case(name, setting, setting.size, setting.clips, NUM_FRAMES, None)


def sweep_cases(setting: Setting) -> Iterator[Case]:
    """Training steps for several T, N, image sizes and batch sizes."""
    small = (setting.size[0] // 2, setting.size[1] // 2)
    for T, N, size, clips in (
        (2, None, small, 1),
        (3, None, small, 1),
        (5, None, small, 1),
        (3, 50, small, 1),
        (3, 300, small, 1),
        (3, None, small, 2),
        (3, None, small, 4),
        (3, None, setting.size, 1),
    ):
        yield _training_case("deformable_detr", setting, size, clips, T, N)


def _training_case(
    name: str, setting: Setting, size: tuple[int, int], clips: int, T: int, N: int | None
) -> Case:
    import torch

    from v2idetr.distillation.knowledge import teacher_knowledge

    sizes = {"num_frames": T, "num_queries": N}
    _, student, frozen = build_student(name, setting.backbone, **sizes)
    plain = build(name, "model", setting.backbone, **sizes)
    teacher = build(name, "teacher", setting.backbone, **sizes)
    plain, student, teacher = (m.to(setting.device).train() for m in (plain, student, teacher))
    frozen = frozen.to(setting.device)
    batch = [noise_clip(size, T) for _ in range(clips)]

    def step(model: Any, **more: Any) -> None:
        losses = model(batch, num_boxes=float(clips), **more)
        torch.stack(list(losses.values())).sum().backward()
        model.zero_grad(set_to_none=True)

    def student_step() -> None:
        step(student, knowledge=student.knowledge(frozen, batch))

    losses = _losses_alone(student, teacher_knowledge(frozen, batch), batch)
    variants: dict[str, Call] = {
        "plain": partial(step, plain),
        "V2I student": student_step,
        "teacher": partial(step, teacher),
        **losses,
    }
    facts = {
        label: {"added_mib": _added_memory_mib(variants[label], setting.device)}
        for label in ("plain", "V2I student", "teacher")
    }
    height, width = size
    queries = N or student.student.net.num_queries
    title = f"training {name}, {clips} clips, T {T}, N {queries}, {height} x {width} px"
    return Case(title, "plain", variants, facts)


def _losses_alone(student: Any, knowledge: Any, batch: list[dict[str, Any]]) -> dict[str, Call]:
    """TFD and CQD with their gradients, from precomputed features and decoded queries."""
    import torch

    from v2idetr.modeling.extra_queries import decode_beside

    plain = student.student
    with torch.no_grad():
        memory = plain.net.encode(plain.net.extract(plain.images(batch)))
        own = plain.net.queries(memory)
        draw = partial(
            student.losses["cqd"].extra_queries, knowledge, reference_dim=plain.net.reference_dim
        )
        generators = [torch.Generator().manual_seed(1) for _ in batch]
        cross = draw(generators=generators)
        _, (decoded,) = decode_beside(plain.net, memory, own, [cross])
    boxes = [sample["instances"].gt_boxes.tensor.to(plain.device) for sample in batch]
    maps = memory.features.maps
    for stride in maps:
        maps[stride] = maps[stride].requires_grad_()
    decoded.hidden.requires_grad_()

    def tfd() -> None:
        student.losses["tfd"].compare(memory.features, knowledge.features, boxes).backward()

    def cqd() -> None:
        cross = draw(generators=generators)
        student.losses["cqd"].compare(decoded, cross).backward()

    return {"TFD alone": tfd, "CQD alone": cqd}


def _added_memory_mib(call: Call, device: Any) -> float | None:
    """Peak memory of one call beyond the memory in use before, in MiB.

    Of the GPU, or of this process on Linux; else None.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        give_memory_back()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak, see proc(5)
        before = _status_kib("VmRSS")
        call()
        return (_status_kib("VmHWM") - before) / 1024
    except OSError:
        return None


def _status_kib(key: str) -> int:
    with open("/proc/self/status") as file:
        return int(dict(line.split(":", 1) for line in file)[key].split()[0])


CASES: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "attention": attention_cases,
    "inference": inference_cases,
    "compiled": compiled_cases,
    "msi": msi_cases,
    "training": training_cases,
    "sweep": sweep_cases,
}
