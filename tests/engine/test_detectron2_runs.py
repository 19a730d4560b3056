"""Detectron2's detectors run through the stages as our own do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.tiny_runs import make_run
from v2idetr.config.load import ConfigError, load_config, load_run_config
from v2idetr.engine.stage_graph import build_stage
from v2idetr.engine.stage_training import train_stage
from v2idetr.engine.stages import evaluate_only, run_stages
from v2idetr.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write_config(tiny_config: Path) -> Callable[[str], Path]:
    """Makes the tiny config of a detector on the tiny backbone."""

    def write(kind: str) -> Path:
        config = yaml.safe_load(tiny_config.read_text())
        parts = ("recipes/paper.py", f"models/{kind}_small.py", "data/sun.py")
        config["_base_"] = [str(ROOT / "configs" / part) for part in parts]
        del config["teacher"]
        backbone = {
            "bottom_up": {"backbone": {"_target_": "tiny_parts.TinyBackbone", "width": 8}},
            "in_features": ["c0", "c1", "c2"],
        }
        config["model"] = {"weights": "", "net": {"backbone": backbone}}
        path = tiny_config.with_name(f"tiny_{kind}.yaml")
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def test_faster_rcnn_is_trained_evaluated_and_has_a_row_in_the_results(write_config) -> None:
    path = write_config("faster_rcnn")
    run = make_run(path)
    results = run_stages(run)
    assert results["plain"]["tests"]["held_out"]["frames"] == 3
    written = json.loads((run.folder / "results.json").read_text())
    assert "plain" in written["table"]
    again = evaluate_only(make_run(path), run.folder / "again")
    assert again["plain"]["tests"] == results["plain"]["tests"]


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "fcos"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    write_config, tmp_path: Path, kind: str
) -> None:
    path = write_config(kind)

    def train(name: str, steps: int) -> dict[str, torch.Tensor]:
        output = f"train.output_dir={tmp_path / name}"
        # The rate is constant, so that the shorter run is the beginning of the longer one.
        constant = "lr_multiplier={_target_: fvcore.common.param_scheduler.ConstantParamScheduler, "
        run = make_run(path, output, "train.eval_period=9", constant + "value: 1.0}")
        run.config.train.max_iter = 4
        stage = run.stages["plain"]
        stage.steps = lambda _: steps  # type: ignore[method-assign]
        train_stage(run, "plain")
        return load_checkpoint(tmp_path / name / "plain" / "last.pth").model

    whole = train("whole", 4)
    half = train("cut", 2)
    rest = train("cut", 4)
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
    assert any(not torch.equal(half[name], rest[name]) for name in whole)


def test_without_imagenet_weights_where_others_follow(write_config) -> None:
    config = load_config(write_config("fcos"), ["model.weights=there/is/none.pth"])
    with pytest.raises(ValueError, match="No backbone weights"):
        build_stage(config, "plain")
    assert build_stage(config, "plain", pretrained=False).model


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("teacher", r"train\.stages=\['teacher'\] needs the stage teacher.* no teacher\.model"),
        ("plain, student", r"needs the stage teacher, but this config has no teacher\.model"),
    ],
)
def test_a_stage_whose_model_the_config_lacks_is_refused(write_config, stages, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(
            write_config("fcos"), [f"train.stages=[{stages}]"], world_size=1, has_gpu=False
        )


def test_it_cannot_be_a_student(write_config, tiny_config: Path) -> None:
    config = load_config(tiny_config)
    config.model = load_config(write_config("retinanet")).model
    with pytest.raises(ValueError, match="Detectron2Detector has no queries and no memory"):
        build_stage(config, "student")
