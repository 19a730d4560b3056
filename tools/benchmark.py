#!/usr/bin/env python3
"""Measure what the parts of the project cost on this machine.

    python tools/benchmark.py                          # every case, on the GPU if there is one
    python tools/benchmark.py --cases attention --json attention.json
    python tools/benchmark.py --size 480 640 --backbone resnet50
    python tools/benchmark.py --parameters             # only the parameters of every detector

Every case compares variants with a baseline in the same run: the variants take turns, repeat by
repeat, so that a machine that slows down slows all of them. Times are medians. Pictures are noise
and weights are random; neither changes what is computed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from v2idetr.programs import ignore_torch_jit

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "configs" / "common" / "models"
CASES = ("attention", "detector", "msi")
NUM_FRAMES = 3
ROLES = {"model": "plain or student", "teacher": f"teacher, {NUM_FRAMES} frames"}

# Totals of the official code with a ResNet-50 and 91 classes, by file and by its keys of model.net.
# What the papers and SAM-DETR's logs give is 222,400 less: the trainable ones.
COCO_CLASSES = 91
OFFICIAL_TOTALS: list[tuple[str, dict[str, Any], int]] = [
    ("detr", {"num_queries": 100}, 41_524_768),
    ("deformable_detr", {"num_queries": 300}, 40_069_665),
    ("deformable_detr", {"num_queries": 300, "strides": [32]}, 34_066_593),
    ("deformable_detr", {"num_queries": 300, "box_refine": True}, 40_849_660),
    ("deformable_detr", {"num_queries": 300, "box_refine": True, "two_stage": True}, 41_181_529),
    ("sam_detr", {"num_queries": 300}, 58_296_458),
    ("sam_detr", {"num_queries": 300, "smca": True}, 58_345_706),
    ("sam_detr", {"num_queries": 300, "multi_scale": True}, 55_194_698),
]


@dataclass(frozen=True)
class Case:
    """Variants of one computation; calling one computes it once."""

    name: str
    baseline: str
    variants: dict[str, Callable[[], Any]]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and print it; 2 for a user's error."""
    options = _options(arguments)
    ignore_torch_jit()
    import torch  # after the options, so that --help answers at once
    from tabulate import tabulate

    from v2idetr.evaluation.cost import machine

    if options.parameters:
        _show_parameters(options.json)
        return 0
    best = "cuda" if torch.cuda.is_available() else "cpu"
    name = best if options.device == "auto" else options.device
    try:
        check(name, options.backbone)
    except ValueError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    device = torch.device(name)
    # Others' work on the same machine shows in the times.
    where = f"{machine(device)}, load before {os.getloadavg()[0]:.1f}"
    print(f"machine: {where}", flush=True)
    timings: list[dict[str, Any]] = []
    builders = {"attention": attention_cases, "detector": detector_cases, "msi": msi_cases}
    for name in options.cases:
        for case in builders[name](device, tuple(options.size), options.backbone):
            rows = measure(case, device, warm_up=options.warm_up, repeats=options.repeats)
            print(f"\n{case.name}\n{tabulate(rows, headers='keys', floatfmt='.2f')}", flush=True)
            timings += [{"case": case.name, "baseline": case.baseline, **row} for row in rows]
    if options.json:
        asked = {key: getattr(options, key) for key in ("size", "backbone", "warm_up", "repeats")}
        _write(options.json, {"machine": where, **asked, "timings": timings})
    return 0


def check(device: str, backbone: str) -> None:
    """ValueError for a device or a backbone that there is not."""
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = ["cpu", *(["cuda", *gpus] if gpus else [])]
    for option, given, known in (
        ("device", device, devices),
        ("backbone", backbone, list(_load("backbones"))),
    ):
        if given not in known:
            raise ValueError(f"--{option} {given}: not here; choose from {', '.join(known)}.")


def _show_parameters(path: Path | None) -> None:
    from tabulate import tabulate

    tables = {"parameters": parameter_table(), "official": official_table()}
    titles = {
        "parameters": f"Parameters as configured, one class, {NUM_FRAMES} frames a clip",
        "official": f"Beside the official code: {COCO_CLASSES} classes, ResNet-50",
    }
    for name, rows in tables.items():
        print(f"\n{titles[name]}\n{tabulate(rows, headers='keys', intfmt=',')}")
    if path:
        _write(path, tables)


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 ...")
    add("--size", nargs=2, type=int, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    add("--backbone", default="resnet50", help="a name in configs/common/models/backbones.py")
    add("--warm-up", type=int, default=3, help="untimed calls of each variant (default 3)")
    add("--repeats", type=int, default=10, help="timed calls of each variant (default 10)")
    add("--json", type=Path, help="also write the result there")
    add("--parameters", action="store_true", help="print the parameters of every detector and stop")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.warm_up < 0:
        parser.error("--repeats must be at least 1 and --warm-up at least 0")
    return options


def measure(case: Case, device: Any, *, warm_up: int, repeats: int) -> list[dict[str, Any]]:
    """Time the variants in turn; ``speed_up`` is the baseline's median over the variant's."""
    from v2idetr.evaluation.cost import timed

    seconds: dict[str, list[float]] = {name: [] for name in case.variants}
    for repeat in range(warm_up + repeats):
        for name, call in case.variants.items():
            elapsed = timed(call, device)
            if repeat >= warm_up:
                seconds[name].append(elapsed)
    return [
        {
            "variant": name,
            "median_ms": 1e3 * median(times),
            "fastest_ms": 1e3 * min(times),
            "slowest_ms": 1e3 * max(times),
            "speed_up": median(seconds[case.baseline]) / median(times),
        }
        for name, times in seconds.items()
    ]


def attention_cases(device: Any, size: tuple[int, int], backbone: str) -> Iterator[Case]:
    """Implementations of the deformable read, as the encoder uses it (a query a token)."""
    import torch

    from v2idetr.modeling.deformable_attention import deformable_read, implementation

    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (8, 16, 32, 64)]
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

    names = dict.fromkeys(["grid_sample", "bags", default])
    for what, run in (("forward", forward), ("forward and backward", training_step)):
        title = f"deformable attention, {what}, {S} queries of {len(shapes)} levels"
        labels = {how: f"{how} (default)" if how == default else how for how in names}
        variants = {label: partial(run, how) for how, label in labels.items()}
        yield Case(title, labels["grid_sample"], variants)


def detector_cases(device: Any, size: tuple[int, int], backbone: str) -> Iterator[Case]:
    """Detecting one frame: a teacher that reads a clip, and the detectors that it teaches."""
    import torch

    sample = _noise_clip(size)

    @torch.no_grad()
    def detect(model: Any) -> None:
        model([sample])

    for students in families():
        models = {name: build(name, "model", backbone) for name in students}
        models[ROLES["teacher"]] = build(students[0], "teacher", backbone)
        variants = {
            label: partial(detect, model.to(device).eval()) for label, model in models.items()
        }
        title = f"{', '.join(students)} and their teacher, one detection at batch 1"
        yield Case(title, students[0], variants)


def msi_cases(device: Any, size: tuple[int, int], backbone: str) -> Iterator[Case]:
    """Features of a clip with and without MSI."""
    import torch

    detectors = {"without MSI": build("deformable_detr", "model", backbone)}
    role_sets = {
        "with MSI": ["local", "local", "global", "global"],
        "local levels only": ["local", "local", "none", "none"],
        "global levels only": ["none", "none", "global", "global"],
    }
    for label, roles in role_sets.items():
        detectors[label] = build("deformable_detr", "teacher", backbone, roles=roles)
    detectors = {label: detector.to(device).eval() for label, detector in detectors.items()}
    clip = detectors["with MSI"].images(_noise_clip(size)["clip"])

    def extract(detector: Any) -> None:
        with torch.no_grad():
            detector.net.extract(clip)

    variants = {label: partial(extract, detector) for label, detector in detectors.items()}
    yield Case(f"features of a clip of {NUM_FRAMES} frames", "without MSI", variants)


def parameter_table() -> list[dict[str, Any]]:
    """Parameters of every detector of ``configs/common/models`` with every backbone, in total.

    A teacher of several students stands once, with the first of them.
    """
    import torch

    from v2idetr.evaluation.cost import parameters

    asked = [
        (name, role)
        for students in families()
        for name, role in [*((name, "model") for name in students), (students[0], "teacher")]
    ]
    with torch.device("meta"):  # counted, never initialised
        return [
            {"detector": name, "backbone": backbone, "role": ROLES[role]}
            | parameters(build(name, role, backbone))
            for name, role in asked
            for backbone in _load("backbones")
        ]


def official_table() -> list[dict[str, Any]]:
    """Parameters at the size of the official detectors beside what their own code counts."""
    import torch
    from detectron2.config import instantiate

    from v2idetr.evaluation.cost import parameters

    rows = []
    for name, settings, official in OFFICIAL_TOTALS:
        net = _load(name).model.net
        net.update({"num_classes": COCO_CLASSES, "weights": "", **settings})
        with torch.device("meta"):
            count = parameters(instantiate(net))
        words = ", ".join(f"{key}={value}" for key, value in settings.items())
        rows.append({"detector": name, "configuration": words, "official": official, **count})
    return rows


def families() -> list[list[str]]:
    """The files of ``configs/common/models`` with a detector, by the teacher that they have."""
    from omegaconf import OmegaConf

    found: dict[str, list[str]] = {}
    for path in sorted(MODELS.glob("*.py")):
        if "model" in _load(path.stem):
            teacher = _with_data(path.stem).teacher.model
            settings = str(OmegaConf.to_container(teacher, resolve=True))
            found.setdefault(settings, []).append(path.stem)
    return list(found.values())


def build(name: str, role: str, backbone: str, *, roles: list[str] | None = None) -> Any:
    """A detector as training would build it, with random weights.

    Args:
        name: a file of ``configs/common/models``.
        role: "model" (plain detector and student) or "teacher".
        backbone: a key of ``configs/common/models/backbones.py``.
        roles: of MSI's levels; the configured ones by default.
    """
    from detectron2.config import instantiate

    config = _with_data(name)
    config.model.net.backbone = _ending_at(
        _load("backbones")[backbone], max(config.model.net.get("strides", [32]))
    )
    config.model.net.weights = ""
    if roles is not None:
        config.teacher.model.net.temporal.roles = roles
    return instantiate(config.model if role == "model" else config.teacher.model)


def _ending_at(backbone: Any, stride: int) -> Any:
    """A backbone without the levels behind a stride, in pixels."""
    key = "strides" if "strides" in backbone else "out_features"
    levels = zip((8, 16, 32), backbone[key], strict=True)
    backbone[key] = [level for pixels, level in levels if pixels <= stride]
    return backbone


def _with_data(name: str) -> Any:
    config = _load(name)
    config.data = {"class_names": ["lesion"], "num_frames": NUM_FRAMES}
    return config


def _load(name: str) -> Any:
    from detectron2.config import LazyConfig

    return LazyConfig.load(str(MODELS / f"{name}.py"))


def _noise_clip(size: tuple[int, int]) -> dict[str, Any]:
    import torch

    height, width = size
    frames = [
        {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8)}
        | {"height": height, "width": width, "file_name": f"noise {number}"}
        for number in range(NUM_FRAMES)
    ]
    current = NUM_FRAMES // 2
    return {**frames[current], "clip": frames, "clip_index": current}


if __name__ == "__main__":
    logging.getLogger("v2idetr").setLevel(logging.ERROR)  # random weights are on purpose here
    sys.exit(main())
