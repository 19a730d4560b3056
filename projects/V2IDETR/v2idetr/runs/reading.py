"""What a run of train_net.py left on disk, as far as it got.

A report is also wanted of a run that was cut off, so everything but the config may be missing:
a stage that has not begun, a last line of ``metrics.jsonl`` that was cut, an evaluation to come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from v2idetr.config.load import to_plain
from v2idetr.config.stage_settings import stage_names
from v2idetr.runs.folder import saved_config
from v2idetr.runs.stage_folder import StageFolder, read_metrics

# What a reader calls the stages.
TITLES = {"teacher": "Teacher", "plain": "Plain student", "student": "V2I student"}


def title_of(stage: str) -> str:
    """What a reader calls a stage, also one of the user's own."""
    return TITLES.get(stage, stage.replace("_", " ").capitalize())


@dataclass(frozen=True)
class StageFiles:
    """One stage of a run.

    Attributes:
        name: such as "teacher", "plain" or "student".
        folder: where it wrote.
        steps: lines of ``metrics.jsonl`` about training: means since the line before.
        validations: lines of ``metrics.jsonl`` about the validation split, keys ``val/<metric>``.
        evaluation: content of ``evaluation.json``; None while the stage is not evaluated.
    """

    name: str
    folder: Path
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    evaluation: dict[str, Any] | None

    @property
    def title(self) -> str:
        """What a reader calls it."""
        return title_of(self.name)

    @property
    def done(self) -> int:
        """The last step that the log knows of."""
        return max((line["iteration"] for line in self.steps + self.validations), default=0)

    @property
    def train_seconds(self) -> float:
        """Time spent in training steps, reading data included, evaluations left out."""
        seconds, before = 0.0, 0
        for line in self.steps:
            seconds += (line.get("time_s") or 0.0) * (line["iteration"] - before)
            before = line["iteration"]
        return seconds

    def predictions(self, split: str) -> Path:
        """File with the detections on a split; it may not exist."""
        return StageFolder(self.folder).predictions(split)


@dataclass(frozen=True)
class RunFiles:
    """A run.

    Attributes:
        config: resolved, as it was saved with the run.
        stages: by name, those that have begun, in the order of training.
        starts: one record for every time the program was started, oldest first.
    """

    folder: Path
    config: DictConfig
    stages: dict[str, StageFiles]
    starts: list[dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        """The config as plain dicts and lists."""
        return to_plain(self.config)

    @property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Evaluations of detectors by stage, of the stages that have one."""
        found = {n: s.evaluation for n, s in self.stages.items() if s.evaluation is not None}
        return {n: e for n, e in found.items() if "thresholds" in e}


def read_run(folder: str | Path) -> RunFiles:
    """Read a run's folder.

    Raises:
        ValueError: it is not the folder of a run, or one of its files is damaged; names the file.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"{folder}: there is no config.yaml in it, so it is not the folder of a run; give the "
            "train.output_dir of train_net.py."
        )
    record = _read_json(folder / "run.json")
    if record is None:
        raise ValueError(
            f"{folder}: there is no run.json in it, so it is the folder of an evaluation or of "
            "a stage; give the train.output_dir of train_net.py."
        )
    settings = saved_config(config)
    begun = [name for name in stage_names(settings) if (folder / name).is_dir()]
    return RunFiles(
        folder=folder,
        config=settings,
        stages={name: _read_stage(folder / name) for name in begun},
        starts=list(record.get("starts", [])),
    )


def _read_stage(folder: Path) -> StageFiles:
    files = StageFolder(folder)
    lines = read_metrics(files.metrics)
    validations = [line for line in lines if any(key.startswith("val/") for key in line)]
    return StageFiles(
        name=folder.name,
        folder=folder,
        steps=[line for line in lines if "total_loss" in line],
        validations=validations,
        evaluation=_read_json(files.evaluation),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: is not JSON ({error}); remove it and run train_net.py --resume, which writes "
            "it again."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: must hold an object, not a {type(content).__name__}.")
    return dict(content)
