"""Where the lines of metrics.jsonl go as well: TensorBoard, Weights & Biases, MLflow.

A resumed training writes again what it had written after its last checkpoint. TensorBoard then
hides the earlier points; to the others, which keep what they have, only new steps are given.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from v2idetr.atomic_file import write_text_atomically
from v2idetr.config.load import to_plain
from v2idetr.config.stage_settings import value_at
from v2idetr.runs.folder import CONFIG, MLFLOW

logger = logging.getLogger(__name__)

SAMPLES = "val/samples"  # name of the images


@runtime_checkable
class Logger(Protocol):
    """One of the places."""

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Numbers by name after so many steps; one that is undefined is NaN."""
        ...

    def image(self, iteration: int, path: Path) -> None:
        """The sample frames of a validation."""
        ...

    def close(self, *, finished: bool) -> None:
        """The training has ended, by its last step or before."""
        ...


class Loggers:
    """All loggers of a stage; one that fails is left out from then on, with a warning."""

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self._loggers = list(loggers)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        values = {name: float(value) for name, value in line.items() if name != "iteration"}
        self._each(lambda one: one.metrics(line["iteration"], values))

    def image(self, iteration: int, path: Path) -> None:
        """The sample frames of a validation."""
        self._each(lambda one: one.image(iteration, path))

    def close(self, *, finished: bool) -> None:
        """Write what is left."""
        self._each(lambda one: one.close(finished=finished))
        self._loggers = []

    def _each(self, tell: Callable[[Logger], None]) -> None:
        for one in list(self._loggers):
            try:
                tell(one)
            except Exception as error:  # a server that goes away must not end a training
                name, reason = type(one).__name__, str(error).split("\n")[0]
                logger.warning("%s failed, and gets nothing any more: %s", name, reason)
                self._loggers.remove(one)


def open_loggers(config: DictConfig, stage: str, start: int) -> Loggers:
    """The loggers of `train.loggers` for a stage that has done `start` steps.

    Raises:
        ValueError: one of them does not start, such as W&B without a login.
    """
    folder = Path(config.train.output_dir)
    opened: list[Logger] = []
    for name in value_at(config, "train.loggers", []):
        try:
            if name == "tensorboard":
                opened.append(TensorBoardLogger(folder / stage, start))
            elif name == "wandb":
                opened.append(WandbLogger(folder, stage, config))
            else:
                opened.append(MLflowLogger(folder, stage))
        except Exception as error:
            raise ValueError(
                f"train.loggers: {name} does not start: {str(error).strip() or repr(error)}\n"
                "Leave it out, or set it up; WANDB_MODE=offline needs no login."
            ) from error
    return Loggers(opened)


class TensorBoardLogger:
    """Event files in the stage's folder, so that `--logdir RUN` shows stages as runs."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        # Points of an earlier process after the checkpoint that this one continues are hidden.
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()  # or two minutes pass before it is seen

    def image(self, iteration: int, path: Path) -> None:
        self._writer.add_image(SAMPLES, _pixels(path), iteration, dataformats="HWC")

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases for a stage, grouped by the folder of the run.

    Its project is WANDB_PROJECT, or v2idetr. W&B ignores steps before the last one that it has, so
    a resumed training adds no point twice. With WANDB_MODE=offline each start of the program leaves
    a folder for `wandb sync`, all of one run.
    """

    def __init__(self, folder: Path, stage: str, config: DictConfig) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._image = wandb.Image
        project = os.environ.get("WANDB_PROJECT", "v2idetr")
        identity = _identity(folder / stage / "wandb_run.txt") or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=project,
            id=identity,
            resume="allow",
            dir=str(folder / stage),
            name=f"{folder.name}/{stage}",
            group=folder.name,
            config=to_plain(config),
        )
        write_text_atomically(folder / stage / "wandb_run.txt", identity + "\n")

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=iteration)

    def image(self, iteration: int, path: Path) -> None:
        self._run.log({SAMPLES: self._image(str(path))}, step=iteration)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflowLogger:
    """A run of MLflow for a stage, in an experiment with the name of the run's folder.

    It goes to MLFLOW_TRACKING_URI, or into the folder `mlflow` of the run, which `mlflow ui
    --backend-store-uri sqlite:///RUN/mlflow/mlflow.db` shows. MLflow keeps every value that it is
    given, so a resumed training asks which steps it has.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._metric = Metric
        place, files = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not place:
            own = (folder / MLFLOW).resolve()
            own.mkdir(exist_ok=True)
            place, files = f"sqlite:///{own / 'mlflow.db'}", (own / "files").as_uri()
        self._client = MlflowClient(tracking_uri=place)
        file = folder / stage / "mlflow_run.txt"
        self._id = _identity(file)
        self._known: dict[str, set[int]] | None = {} if self._id else None
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", folder.name)
        experiment = self._client.get_experiment_by_name(name)
        number = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(name, artifact_location=files)
        )
        self._id = self._client.create_run(number, run_name=stage).info.run_id
        write_text_atomically(file, self._id + "\n")
        self._client.log_artifact(self._id, str(folder / stage / CONFIG))

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        now_ms = round(1000 * time.time())
        new = [
            self._metric(name, value, now_ms, iteration)
            for name, value in values.items()
            if iteration not in self._steps(name)
        ]
        self._client.log_batch(self._id, metrics=new)

    def image(self, iteration: int, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), "samples")

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")

    def _steps(self, name: str) -> set[int]:
        """The steps of a metric that earlier processes have written."""
        if self._known is None:
            return set()
        if name not in self._known:
            history = self._client.get_metric_history(self._id, name)
            self._known[name] = {value.step for value in history}
        return self._known[name]


def _identity(file: Path) -> str:
    """The run that an earlier start of the stage has opened; "" for none."""
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
