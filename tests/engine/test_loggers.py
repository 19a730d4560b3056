"""TensorBoard, W&B and MLflow get what metrics.jsonl has, also after a resume; weights stay."""

from __future__ import annotations

import importlib.util
import json
import logging
import signal
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tests.tiny_runs import before_step, run, same, send
from v2idetr.config.load import ConfigError, load_run_config
from v2idetr.engine.hooks import DistillationHook
from v2idetr.engine.loggers import Loggers, MLflowLogger, WandbLogger, open_loggers
from v2idetr.runs.checkpoint import load_checkpoint

STAGES = ("teacher", "student")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars that TensorBoard shows for a folder, and the steps of its images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder)).Reload()
    images = {
        name: [(image.step, 0) for image in shown.Images(name)] for name in shown.Tags()["images"]
    }
    return images | {
        name: [(event.step, event.value) for event in shown.Scalars(name)]
        for name in shown.Tags()["scalars"]
    }


def test_tensorboard_shows_the_lines_of_the_log_once_after_a_kill_and_a_resume(
    tiny_config, tmp_path, in_child
) -> None:
    output = tmp_path / "run"
    own = ["train.loggers=[tensorboard]", "train.log_period=1"]

    def killed() -> int:  # after step 5 was logged; last.pth is of step 4
        before_step(6, send(signal.SIGKILL))
        return run(tiny_config, output, overrides=own)

    assert in_child(killed) == -signal.SIGKILL
    assert points(output / "plain")["total_loss"][-1][0] == 5
    assert in_child(lambda: run(tiny_config, output, resume=True, overrides=own)) == 0

    expected: dict[str, list[tuple[int, float]]] = {}
    for line in lines(output / "plain"):
        for name, value in line.items():
            if name != "iteration" and value is not None:
                expected.setdefault(name, []).append((line["iteration"], pytest.approx(value)))
    shown = points(output / "plain")
    assert [step for step, _ in shown["total_loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in shown["val/AP50"]] == [3, 6]
    assert shown.pop("val/samples") == [(3, 0), (6, 0)]
    undefined = shown.keys() - expected.keys()  # NaN, which JSON does not know
    assert all(value != value for name in undefined for _, value in shown[name])
    assert {name: shown[name] for name in expected} == expected


def test_weights_are_the_same_with_and_without_all_that_is_logged(
    tiny_config, tmp_path, in_child
) -> None:
    def bare() -> int:
        DistillationHook.before_step = lambda self: None  # agreement is not measured
        off = ["train.sample_frames=0"]
        return run(tiny_config, tmp_path / "bare", stages=STAGES, overrides=off)

    def full() -> int:
        on = ["train.sample_frames=3", "train.loggers=[tensorboard]"]
        return run(tiny_config, tmp_path / "full", stages=STAGES, overrides=on)

    assert in_child(bare) == in_child(full) == 0
    for stage in STAGES:
        one, other = (load_checkpoint(tmp_path / n / stage / "last.pth") for n in ("bare", "full"))
        assert same(one.model, other.model) and same(one.optimizer, other.optimizer)
    assert not (tmp_path / "bare" / "student" / "samples").exists()
    assert not list((tmp_path / "bare" / "student").glob("events*"))
    assert "agreement/cqd" not in lines(tmp_path / "bare" / "student")[0]
    samples = sorted(path.name for path in (tmp_path / "full/student/samples").iterdir())
    assert samples == ["000003.jpg", "000006.jpg"]
    first = lines(tmp_path / "full" / "student")[0]
    assert first["agreement/cqd"] == pytest.approx(first["loss_cqd"] / 5, rel=1e-4)
    assert first["agreement/cosine_layer0"] == pytest.approx(1 - first["agreement/cqd"], abs=1e-5)
    assert {"lr", "lr/backbone", "lr/slow"} <= first.keys()


# ------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("[tensorbord]", "Did you mean tensorboard?"),
        ("[tensorboard, tensorboard]", "each logger once"),
        ("[wandb]", "not installed: python -m pip install wandb"),
        ("tensorboard", "must be a list"),
    ],
)
def test_a_logger_that_cannot_be_is_an_error_before_the_run(
    tiny_config, monkeypatch, names, said
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "wandb" else find(n))
    with pytest.raises(ConfigError, match=r"train\.loggers") as caught:
        load_run_config(tiny_config, [f"train.loggers={names}"], world_size=1, has_gpu=False)
    assert any(said in problem for problem in caught.value.problems)


def test_a_folder_of_a_loggers_name_is_not_its_package(tiny_config, tmp_path, monkeypatch) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("W&B is installed")
    (tmp_path / "wandb").mkdir()  # as W&B leaves it
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="not installed"):
        load_run_config(tiny_config, ["train.loggers=[wandb]"], world_size=1, has_gpu=False)


def test_a_config_of_an_earlier_version_is_read_and_logs_nothing_more(tiny_config) -> None:
    config = load_run_config(tiny_config, [], world_size=1, has_gpu=False)
    for name in ("loggers", "sample_frames"):
        del config.train[name]
    tiny_config.write_text(yaml.safe_dump(OmegaConf.to_container(config)))
    old = load_run_config(tiny_config, [], world_size=1, has_gpu=False)
    assert open_loggers(old, "plain", 0)._loggers == []


def test_a_logger_that_fails_is_left_out_and_training_goes_on(caplog) -> None:
    class Sound:
        def __init__(self) -> None:
            self.seen: list[tuple[int, dict]] = []

        def metrics(self, iteration: int, values: dict) -> None:
            self.seen.append((iteration, values))

        def image(self, iteration: int, path: Path) -> None: ...

        def close(self, *, finished: bool) -> None: ...

    class Broken(Sound):
        def metrics(self, iteration: int, values: dict) -> None:
            raise ConnectionError("the server is gone\nlong trace")

    both = Loggers([Broken(), sound := Sound()])
    with caplog.at_level(logging.WARNING):
        both.metrics({"iteration": 1, "total_loss": 2.0})
        both.metrics({"iteration": 2, "total_loss": 1.0})
    assert sound.seen == [(1, {"total_loss": 2.0}), (2, {"total_loss": 1.0})]
    (record,) = caplog.records
    assert record.message == "Broken failed, and gets nothing any more: the server is gone"


# -------------------------------------------------------------------- where they are installed


@pytest.fixture
def stage_folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "plain").mkdir(parents=True)
    (tmp_path / "run" / "plain" / "config.yaml").write_text("train: {}\n")
    return tmp_path / "run"


def test_mlflow_keeps_each_point_once_after_a_resume(stage_folder, monkeypatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    first = MLflowLogger(stage_folder, "plain")
    for step in (1, 2, 3):
        first.metrics(step, {"total_loss": float(step)})
    first.close(finished=False)
    second = MLflowLogger(stage_folder, "plain")
    for step in (2, 3, 4):
        second.metrics(step, {"total_loss": float(step), "val/AP50": 0.5})
    second.close(finished=True)

    client = second._client
    (found,) = client.search_runs([client.get_experiment_by_name("run").experiment_id])
    assert (found.info.run_name, found.info.status) == ("plain", "FINISHED")
    history = client.get_metric_history(found.info.run_id, "total_loss")
    assert [(metric.step, metric.value) for metric in history] == [
        (n, float(n)) for n in range(1, 5)
    ]
    assert [artifact.path for artifact in client.list_artifacts(found.info.run_id)] == [
        "config.yaml"
    ]
    assert (stage_folder / "mlflow" / "mlflow.db").is_file()


@pytest.mark.slow  # W&B starts a process
def test_wandb_writes_offline_into_the_stage_and_goes_on_with_its_run(
    stage_folder, monkeypatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = OmegaConf.create({"train": {"output_dir": str(stage_folder)}})
    for step in (1, 2):
        opened = WandbLogger(stage_folder, "plain", config)
        opened.metrics(step, {"total_loss": 1.0})
        opened.close(finished=True)
    identity = (stage_folder / "plain" / "wandb_run.txt").read_text().strip()
    written = sorted((stage_folder / "plain" / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert written and all(path.stat().st_size for path in written)
