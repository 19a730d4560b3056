#!/usr/bin/env python3
"""Measure time and memory of parts of the project on this machine.

    python tools/benchmark.py                          # the default cases, on a GPU if available
    python tools/benchmark.py --attention --inference --training --json benchmark.json
    python tools/benchmark.py --inference --size 480 640 --backbone resnet50 --batch 1 16
    python tools/benchmark.py --sweep                  # time and memory over T, N, size and batch
    python tools/benchmark.py --startup --waiting      # imports, kernels; load by another process
    python tools/benchmark.py --export --device cpu    # students in ONNX Runtime and OpenVINO
    python tools/benchmark.py --parameters             # only parameter counts

Every case compares variants with a baseline. The variants take turns, repeat by repeat, so that a
slowdown of the machine affects all of them. `p95_ms` is the 95th percentile, `times_baseline` a
variant's median over the baseline's. Images are noise and weights random; neither changes the
computation. `floor_ms` is the time of a detection's operations as one matrix product on this
machine. `--keep-memory` keeps freed memory as train_net.py does, which makes large tensors cheaper
in all variants. `added_mib` is the peak memory of a training step beyond that of the models.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmark_cases import CASES, Case, Setting
from benchmark_export import EXPORT_CASES
from benchmark_models import (
    COCO_CLASSES,
    NUM_FRAMES,
    load,
    official_table,
    other_table,
    parameter_table,
)
from benchmark_processes import PROCESS_CASES

from v2idetr.output_folder import check_writable, explain_os_error
from v2idetr.process_setup import ignore_torch_jit, keep_freed_memory

ALL_CASES = CASES | PROCESS_CASES | EXPORT_CASES
USUAL = ("attention", "inference", "msi", "training")


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen cases and print them; returns 2 after a user's error."""
    options = _options(arguments)
    ignore_torch_jit()
    if options.keep_memory:
        keep_freed_memory()
    try:
        if options.json:
            check_writable(options.json, "--json", is_file=True)
        return _run(options)
    except OSError as error:
        print(f"benchmark: {explain_os_error(error)}", file=sys.stderr)
    except ValueError as error:
        print(f"benchmark: {error}", file=sys.stderr)
    return 2


def _run(options: argparse.Namespace) -> int:
    import torch  # after the options, so that --help answers at once
    from tabulate import tabulate

    from v2idetr.evaluation.cost import machine

    if options.parameters:
        _show_parameters(options.json)
        return 0
    best = "cuda" if torch.cuda.is_available() else "cpu"
    name = best if options.device == "auto" else options.device
    check(name, options.backbone)
    device = torch.device(name)
    # Other load on the machine affects the times.
    where = f"{machine(device)}, load before {os.getloadavg()[0]:.1f}"
    print(f"machine: {where}", flush=True)
    setting = Setting(
        device, tuple(options.size), options.backbone, tuple(options.batch), options.clips
    )
    timings: list[dict[str, Any]] = []
    asked = {
        key: getattr(options, key)
        for key in ("size", "backbone", "warm_up", "repeats", "keep_memory")
    }
    for name in [case for case in ALL_CASES if getattr(options, case)] or USUAL:
        for case in ALL_CASES[name](setting):
            rows = measure(case, device, warm_up=options.warm_up, repeats=options.repeats)
            table = tabulate(rows, headers="keys", floatfmt=".2f", missingval="-")
            print(f"\n{case.name}\n{table}", flush=True)
            timings += [{"case": case.name, "baseline": case.baseline, **row} for row in rows]
            if options.json:  # case by case: an interrupted run keeps what it has measured
                _write(options.json, {"machine": where, **asked, "timings": timings})
    return 0


def check(device: str, backbone: str) -> None:
    """Raise ValueError for an unknown device or backbone."""
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = ["cpu", *(["cuda", *gpus] if gpus else [])]
    for option, given, known in (
        ("device", device, devices),
        ("backbone", backbone, list(load("backbones"))),
    ):
        if given not in known:
            raise ValueError(f"--{option} {given}: not available; choose from {', '.join(known)}.")


def _show_parameters(path: Path | None) -> None:
    from tabulate import tabulate

    tables = {
        "parameters": parameter_table(),
        "others": other_table(),
        "official": official_table(),
    }
    titles = {
        "parameters": f"Parameters as configured, one class, {NUM_FRAMES} frames a clip",
        "others": "Other detectors and video detectors, with the backbones of their files",
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
    for name, cases in ALL_CASES.items():
        add(f"--{name}", action="store_true", help=(cases.__doc__ or "").split("\n")[0])
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 ...")
    add("--size", nargs=2, type=int, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    add("--backbone", default="resnet50", help="a name in configs/models/backbones.py (resnet50)")
    add("--batch", nargs="+", type=int, default=[1], help="batch sizes of inference (default 1)")
    add("--clips", type=int, default=1, help="clips per training step (default 1)")
    add("--warm-up", type=int, default=3, help="untimed calls of each variant (default 3)")
    add("--repeats", type=int, default=10, help="timed calls of each variant (default 10)")
    add("--keep-memory", action="store_true", help="keep freed memory, as training does")
    add("--json", type=Path, help="file to which the result is written as well")
    add("--parameters", action="store_true", help="print the parameters of every detector and stop")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.warm_up < 0 or min(*options.batch, options.clips, 1) < 1:
        parser.error("--repeats, --batch and --clips must be at least 1 and --warm-up at least 0")
    return options


def measure(case: Case, device: Any, *, warm_up: int, repeats: int) -> list[dict[str, Any]]:
    """Time the variants in turn."""
    import numpy as np

    from v2idetr.evaluation.cost import timed

    seconds: dict[str, list[float]] = {name: [] for name in case.variants}
    for repeat in range(warm_up + repeats):
        for name, call in case.variants.items():
            time.sleep(case.pause_s)
            elapsed = timed(call, device)
            if repeat >= warm_up:
                seconds[name].append(elapsed)
    base = median(seconds[case.baseline])
    rows: list[dict[str, Any]] = []
    for name, times in seconds.items():
        rate = {} if case.frames is None else {"frames_per_s": case.frames / median(times)}
        rows.append(
            {
                "variant": name,
                "median_ms": 1e3 * median(times),
                "p95_ms": 1e3 * float(np.percentile(times, 95)),
                "fastest_ms": 1e3 * min(times),
                "slowest_ms": 1e3 * max(times),
                "times_baseline": median(times) / base,
                "speed_up": base / median(times),
                **rate,
                **case.facts.get(name, {}),
            }
        )
    return rows + [{"variant": name, "failed": reason} for name, reason in case.failed.items()]


if __name__ == "__main__":
    logging.getLogger("v2idetr").setLevel(logging.ERROR)  # random weights are intended here
    sys.exit(main())
