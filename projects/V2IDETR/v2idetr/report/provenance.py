"""Provenance of a run: commands, settings, data, versions, durations."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from v2idetr.config.load import differing_keys, load_config
from v2idetr.config.stage_settings import steps_of, value_at
from v2idetr.config.yaml_text import dump_yaml
from v2idetr.data.coco_vid import SplitData
from v2idetr.report.curves import best_validation
from v2idetr.runs.reading import RunFiles, title_of

SYNTHETIC_RECORD = "generator.json"  # of datasets/make_synthetic.py

# The most important settings: key in the config, title.
KEY_SETTINGS = {
    "train.seed": "Seed",
    "train.batch_size": "Clips per step",
    "train.amp": "Mixed precision",
    "optimizer.lr": "Learning rate",
    "optimizer.backbone_lr": "Learning rate of the backbone",
    "data.num_frames": "Frames per clip, T",
    "data.window": "Largest distance of a reference, frames",
    "model.net.d": "Width, d",
    "model.net.num_queries": "Queries, N",
    "model.net.num_encoder_layers": "Encoder layers",
    "model.net.num_decoder_layers": "Decoder layers",
    "model.net.two_stage": "Two-stage queries",
    "model.net.box_refine": "Box refinement",
    "distillation.frames": "Distilled frames of a clip",
    "distillation.tfd.weight": "Weight of TFD",
    "distillation.fd.weight": "Weight of FD",
    "distillation.ed.weight": "Weight of ED",
    "distillation.qd.weight": "Weight of QD",
    "distillation.cqd.weight": "Weight of CQD",
    "distillation.cqd.mask": "Attention mask of CQD",
}


@dataclass(frozen=True)
class StageRow:
    """Progress and duration of one stage."""

    name: str
    title: str
    steps: str
    seconds_a_step: str
    time: str
    best: str


@dataclass(frozen=True)
class SplitRow:
    """Counts of one split; "" if unknown."""

    name: str
    videos: str
    frames: str
    lesions: str
    lesion_free: str


def commands(run: RunFiles) -> list[tuple[str, str]]:
    """(time, command line) of each start of the program."""
    return [
        (
            start["time"].replace("T", " ").replace("+00:00", " UTC"),
            shlex.join(["python", *start["command"]]),
        )
        for start in run.starts
    ]


def stage_rows(run: RunFiles) -> list[StageRow]:
    """One row per stage that the run has or plans."""
    rows = []
    for name in dict.fromkeys([*run.settings["train"]["stages"], *run.stages]):
        stage, planned = run.stages.get(name), steps_of(run.config, name)
        done = stage.done if stage else 0
        seconds = stage.train_seconds if stage else 0.0
        state = f"{done} of {planned}"
        if stage and stage.evaluation is not None and 0 < done < planned:
            state = f"{done}, stopped early (at most {planned})"
        if stage is None or (stage.evaluation is None and not done):
            state = (
                "given by teacher.checkpoint" if name == "teacher" and _given(run) else "not begun"
            )
        rows.append(
            StageRow(
                name=name,
                title=title_of(name),
                steps=state,
                seconds_a_step=f"{seconds / done:.2f} s" if done and seconds else "",
                time=duration(seconds) if seconds else "",
                best=_kept(run, name),
            )
        )
    return rows


def split_rows(run: RunFiles, train: SplitData | None) -> list[SplitRow]:
    """Train, validation and test splits with their counts."""
    rows = []
    if train is not None:
        report = train.report
        lesions = sum(report.boxes_per_class.values())
        counts = (report.videos, report.frames, lesions, report.lesion_free_frames)
        rows.append(SplitRow("train", *map(str, counts)))
    for evaluation in list(run.evaluations.values())[:1]:
        parts = {"val": evaluation["val"]}
        parts |= {f"test/{name}": part for name, part in evaluation["tests"].items()}
        keys = ("videos", "frames", "lesions", "lesion_free_frames")
        rows += [SplitRow(name, *(str(p[key]) for key in keys)) for name, p in parts.items()]
    known = {row.name for row in rows}
    frames = {n: str(d["frames"]) for s in run.starts for n, d in s.get("data", {}).items()}
    return rows + [SplitRow(n, "", count, "", "") for n, count in frames.items() if n not in known]


def is_synthetic(run: RunFiles) -> bool:
    """Whether the training frames were made by datasets/make_synthetic.py."""
    return (Path(run.settings["data"]["train"]["image_root"]) / SYNTHETIC_RECORD).is_file()


def settings(run: RunFiles) -> list[tuple[str, str]]:
    """The most important settings that the config has."""
    rows = []
    for key, words in KEY_SETTINGS.items():
        value = value_at(run.settings, key)
        if value is not None:
            rows.append((words, json.dumps(value).strip('"')))
    return rows


def differences(run: RunFiles) -> tuple[str, list[str]]:
    """The config file of the first start, and the settings that differ from it.

    ("", []) if the file is unknown or missing.
    """
    for start in run.starts[:1]:
        words = start["command"]
        for index, word in enumerate(words):
            name = word.partition("=")[2]
            if word == "--config-file" and index + 1 < len(words):
                name = words[index + 1]
            if word.startswith("--config-file") and Path(name).is_file():
                try:
                    return name, differing_keys(load_config(name), run.config)
                except ValueError:
                    return "", []  # the file has changed and no longer loads
    return "", []


def environment(run: RunFiles) -> list[tuple[str, str]]:
    """Machine and versions of the last start."""
    if not run.starts:
        return []
    start = run.starts[-1]
    packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items())
    rows = [
        ("Device", start["device"]),
        ("Processes", str(start["processes"])),
        ("Python", f"{start['python']} on {start['platform']}"),
        ("Packages", packages),
        ("Commit", start["git_commit"]),
    ]
    machines = {e["cost"]["machine"] for e in run.evaluations.values() if e.get("cost")}
    rows += [("Speed measured on", machine) for machine in sorted(machines)]
    return [(name, value) for name, value in rows if value]


def config_text(run: RunFiles) -> str:
    """The whole resolved config as YAML."""
    return dump_yaml(run.settings)


def duration(seconds: float) -> str:
    """1:02:03 h, 2:03 min or 3 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = str(timedelta(seconds=round(seconds)))
    return f"{whole} h" if seconds >= 3600 else f"{whole[2:].lstrip('0') or '0'} min"


def _given(run: RunFiles) -> bool:
    return bool((run.settings.get("teacher") or {}).get("checkpoint"))


def _kept(run: RunFiles, name: str) -> str:
    if name not in run.stages:
        return ""
    metric = run.settings["train"]["best_metric"]
    found = {key for line in run.stages[name].validations for key in line if key.startswith("val/")}
    if len(found) == 1:  # that of a stage of the user's own
        metric = found.pop().removeprefix("val/")
    best = best_validation(run.stages[name], metric)
    return f"{best[1]:.3f} at step {best[0]:.0f}" if best else ""
