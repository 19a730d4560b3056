"""The folder of a run: who may write to it, what is recorded in it, which stages in it are done.

output_dir/config.yaml  run.json  log.txt  results.json
output_dir/<stage>/     config.yaml  metrics.jsonl  last.pth  best.pth  final.pth  evaluation.json
output_dir/evaluation/  config.yaml  log.txt  results.json  <stage>/evaluation.json (--eval-only)
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from v2idetr.atomic_file import read_record, write_text_atomically
from v2idetr.config.load import ConfigError, differing_keys, fingerprint, load_config, save_config
from v2idetr.config.stage_settings import EVALUATION, stage_names
from v2idetr.data.coco_vid import SplitData
from v2idetr.output_folder import LOCK
from v2idetr.runs.stage_folder import StageFolder

logger = logging.getLogger(__name__)

CONFIG, RECORD, RESULTS, LOG = "config.yaml", "run.json", "results.json", "log.txt"
MLFLOW = "mlflow"  # of the logger mlflow
CONSOLE = (".log", ".out", ".err", ".txt")  # what users let programs print into
PACKAGES = [
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "Pillow",
    "timm",
    "omegaconf",
    "fvcore",
    "faster-coco-eval",
    "sal-detectron2",
    "detectron2",
]


def output_folder(config: DictConfig, options: argparse.Namespace) -> Path:
    """Where train_net.py writes: the run's folder, or that of an evaluation alone."""
    folder = Path(config.train.output_dir)
    return Path(options.output or folder / EVALUATION) if options.eval_only else folder


def claim(folder: Path, config: DictConfig, *, resume: bool) -> None:
    """Make sure that this run, which alone uses its folder, may write to it; save its config there.

    A new run needs a folder without one; a resumed run continues only what was started with the
    same settings. With `resume` and nothing to resume, the run simply starts. A start that ended
    before its first checkpoint leaves nothing that must be kept.

    Raises:
        ValueError: the folder holds a run and `resume` is off, or that run had another config; or
            it holds something else.
    """
    existing = folder / CONFIG
    if holds_results(folder):
        if not resume:
            raise ValueError(
                f"{folder} already holds a run. Add --resume to continue it, or choose another "
                "folder with train.output_dir=..."
            )
        if existing.exists():
            _check_same(saved_config(existing), config, folder)
    else:
        ours = {CONFIG, RECORD, EVALUATION, MLFLOW, *stage_names(config)}
        _check_nothing_else(folder, ours, "train.output_dir=...")
        if resume:
            logger.info(
                "there is nothing to resume in %s: the run starts from the beginning", folder
            )
        (folder / RECORD).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for part in (folder, *(folder / stage for stage in stage_names(config))):
        for leftover in part.glob(".*.tmp"):  # of writes that were killed
            leftover.unlink()
    save_config(config, existing)


def saved_config(path: Path) -> DictConfig:
    """The config that a run has saved.

    Raises:
        ValueError: this version does not read it; names the file.
    """
    try:
        return load_config(path)
    except ConfigError as error:
        raise ValueError(
            f"{path}: was saved by another version of this program, or is damaged. Use another "
            "folder; the weights beside it can be evaluated with a config of today, by --eval-only "
            f"--weights FILE. {error}"
        ) from error


def holds_results(folder: Path) -> bool:
    """Whether a run has a checkpoint, or an evaluation, of any of its stages."""
    if not (folder / CONFIG).exists():
        return False
    stages = [part for part in folder.iterdir() if part.is_dir()]
    return any(StageFolder(s).evaluation.exists() or any(s.glob("*.pth")) for s in stages)


@dataclass(frozen=True)
class Before:
    """What a folder held before a start, which leaves nothing behind if it fails early.

    Attributes:
        folder: of the run or evaluation.
        names: in it.
        missing: the folder and those above it that did not exist, the innermost first.
    """

    folder: Path
    names: frozenset[str]
    missing: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path) -> Before:
        """What it holds now."""
        names = frozenset(p.name for p in folder.iterdir()) if folder.is_dir() else frozenset()
        missing = tuple(path for path in (folder, *folder.parents) if not path.exists())
        return cls(folder, names, missing)

    def restore(self) -> None:
        """Remove what the start has written, unless a stage or an evaluation has begun."""
        with contextlib.suppress(OSError):
            if any(p.is_dir() and p.name not in self.names for p in self.folder.iterdir()):
                return
            for name in {CONFIG, RECORD, LOG, LOCK} - self.names:
                (self.folder / name).unlink(missing_ok=True)
            for path in self.missing:
                path.rmdir()


def _check_nothing_else(folder: Path, ours: Collection[str], remedy: str) -> None:
    """Refuse a folder with other files than ours, hidden ones and what programs print."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    strange = [
        path.name
        for path in there
        if path.name not in ours
        and not path.name.startswith(".")
        and path.name != "log"
        and not (path.suffix in CONSOLE and path.is_file())
    ]
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise ValueError(
            f"{folder} holds something else ({', '.join(strange[:3])}{more}): choose another "
            f"folder with {remedy}"
        )


def check_evaluation(folder: Path, config: DictConfig, weights: Mapping[str, Path]) -> None:
    """Make sure that an evaluation alone overwrites only an earlier one of the same.

    Args:
        folder: where it writes.
        config: with what it evaluates.
        weights: what it evaluates: the file by the row's name.

    Raises:
        ValueError: the folder holds a run, an evaluation by other settings or of other weights, or
            something else.
    """
    if (folder / RECORD).exists():
        raise ValueError(f"{folder} holds a run: choose another folder with --output FOLDER.")
    if not (folder / RESULTS).exists():
        _check_nothing_else(folder, {CONFIG, *weights}, "--output FOLDER")
        return
    before = read_record(folder / RESULTS)["stages"]
    files = {name: Path(result["checkpoint"]) for name, result in before.items()}
    changed = ["its settings are unknown"]
    if (folder / CONFIG).exists():
        changed = differing_keys(saved_config(folder / CONFIG), config, with_data_paths=True)
    if [file.resolve() for file in files.values()] != [f.resolve() for f in weights.values()]:
        both = (", ".join(map(str, paths.values())) for paths in (files, weights))
        changed.append("weights: " + " -> ".join(both))
    if changed:
        raise ValueError(
            f"{folder} holds another evaluation:\n  "
            + "\n  ".join(changed)
            + "\nKeep it and write this one into another folder with --output FOLDER, or remove it."
        )


def record(
    folder: Path, config: DictConfig, splits: dict[str, SplitData], *, device: str, processes: int
) -> None:
    """Add this start of the program to run.json: versions, commit, data, command line.

    Raises:
        ValueError: an annotation file differs from that of the run's first start.
    """
    path = folder / RECORD
    data = {name: data_fingerprint(split) for name, split in splits.items()}
    history = read_record(path) if path.exists() else {"starts": []}
    if history["starts"]:
        before = history["starts"][0]["data"]
        both = before.keys() & data.keys()  # an evaluation alone has no training data
        changed = [name for name in differing_splits(before, data) if name in both]
        if changed:
            raise ValueError(
                f"{folder}: the annotations of {', '.join(changed)} changed since this run began; "
                "start a new run in another train.output_dir."
            )
        once = history["starts"][0]["processes"]
        if once != processes:
            logger.warning(
                "%s was started with %d processes and goes on with %d (--num-gpus): dropout "
                "is drawn by process, so the weights will not be those of an uninterrupted run.",
                folder,
                once,
                processes,
            )
    history["starts"].append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "config_fingerprint": fingerprint(config),
            "git_commit": git_commit(),
            "device": device,
            "processes": processes,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": _versions(),
            "data": data,
        }
    )
    write_text_atomically(path, json.dumps(history, indent=1) + "\n")


def weights_of(config: DictConfig, stage: str) -> Path:
    """The file of a stage that is evaluated when it is trained, and that teaches."""
    return Path(config.train.output_dir) / stage / f"{config.evaluation.checkpoint}.pth"


def data_fingerprint(split: SplitData) -> dict[str, Any]:
    """Hash of the annotation file and the number of frames; images are not read."""
    digest = hashlib.sha256(Path(split.json_path).read_bytes()).hexdigest()
    return {"json": str(split.json_path), "sha256": digest[:16], "frames": len(split.records)}


def differing_splits(
    one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Names of splits, by `data_fingerprint`, that differ or that only one side has."""
    names = sorted(one.keys() | other.keys())
    return [n for n in names if one.get(n, {}).get("sha256") != other.get(n, {}).get("sha256")]


def git_commit() -> str:
    """Commit of the source tree, with "+" for local changes; "" if unknown."""
    source = Path(__file__).parent
    try:
        head = _git(source, "rev-parse", "HEAD")
        return head + ("+" if _git(source, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu" with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def _check_same(before: DictConfig, now: DictConfig, folder: Path) -> None:
    changed = differing_keys(before, now)
    if changed:
        raise ValueError(
            f"{folder} was started with other settings, so it cannot be resumed with these:\n  "
            + "\n  ".join(changed)
            + "\nResume with the old settings, or start a new run in another train.output_dir, "
            "with train.init_checkpoint for the weights."
        )


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
