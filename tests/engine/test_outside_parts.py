"""A detector, a stage and a sampler of references from a folder outside the package.

They stand in ``outside/`` and a config names them: train_net.py trains and evaluates them without
an edit of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.engine.test_train_net import ENVIRONMENT, HERE, ROOT
from tests.tiny_runs import make_run
from v2idetr.config.load import ConfigError, load_run_config
from v2idetr.engine.stages import run_stages
from v2idetr.report.page import write_report
from v2idetr.runs.checkpoint import load_checkpoint

OUTSIDE = str(HERE / "outside")
sys.path.insert(0, OUTSIDE)

STAGES = [
    "+stages.pretrain={_target_: my_parts.Pretraining}",
    "stages.plain.needs={backbone: pretrain}",
    "train.stages=[pretrain, plain]",
]


PAIRS = [("a", "b"), ("b", "a")]


@pytest.fixture
def outside_config(tiny_config: Path) -> Path:
    """The recipe and the data of the tiny config with a detector of one's own."""
    config = yaml.safe_load(tiny_config.read_text())
    config["_base_"] = [
        f"{OUTSIDE}/my_model.py" if "models" in base else base for base in config["_base_"]
    ]
    config["train"]["stages"] = ["plain"]
    del config["teacher"], config["model"]
    path = tiny_config.with_name("outside.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def test_train_net_trains_a_stage_and_a_detector_of_ones_own(
    outside_config: Path, tmp_path: Path
) -> None:
    environment = dict(ENVIRONMENT)
    environment["PYTHONPATH"] += f":{OUTSIDE}:{ROOT}"
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(outside_config)]
    done = subprocess.run(
        [*command, *STAGES], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())["stages"]
    assert list(results) == ["plain"], "a stage that is not reported has no row"
    assert results["plain"]["tests"]["held_out"]["frames"] == 3
    lines = [json.loads(t) for t in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_colour", "val/colour/closeness"} <= {name for line in lines for name in line}
    best = load_checkpoint(run / "pretrain" / "best.pth").best
    assert best is not None and best["metric"] == "colour/closeness"
    assert not write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Pretrain</th>" in page and "<code>my_parts.Pretraining</code>" in page


def test_a_later_stage_starts_from_what_an_earlier_one_hands_on(outside_config: Path) -> None:
    frozen = ["optimizer.lr=0.0", "optimizer.backbone_lr=0.0", "optimizer.weight_decay=0.0"]
    run = make_run(outside_config, *STAGES, *frozen)
    run_stages(run)
    made = load_checkpoint(run.folder / "pretrain" / "best.pth").model
    trained = load_checkpoint(run.folder / "plain" / "final.pth").model
    for name, tensor in made.items():
        assert torch.equal(trained[f"backbone.{name}"], tensor)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stages.plain.needs={backbone: pretext}"],
            r"stages\.plain\.needs\.backbone is pretext, which is no stage",
        ),
        (
            [
                f"+stages.{a}={{_target_: my_parts.Pretraining, needs: {{x: {b}}}}}"
                for a, b in PAIRS
            ],
            r"stages need each other in a circle: a -> b -> a",
        ),
        (
            [*STAGES, "train.stages=[plain]"],
            r"plain, whose backbone is the stage pretrain: add pretrain to train\.stages before it",
        ),
        (
            [*STAGES, "train.stages=[plain, pretrain]"],
            r"add pretrain to train\.stages before it",
        ),
        (["stages.plain.settings=trian"], r"stages\.plain\.settings is trian, which is no key of"),
        (["+stages.evaluation={_target_: my_parts.Pretraining}"], r"rename the stage"),
        (["+stages.mine=3"], r"stages\.mine must be a mapping with a _target_"),
        (["train.stages=[plane]", "train.patience=1"], r"Did you mean plain\?"),
        (["train.stages=[plane]"], r"train\.stages must name some of .* Did you mean plain\?"),
        (["train.stages=[plain, plain]"], r"each stage once"),
        (["train.stages=[teacher]"], r"this config has no teacher\.model"),
    ],
)
def test_stages_that_cannot_run_are_refused_before_anything_is_built(
    outside_config: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(outside_config, overrides, world_size=1, has_gpu=False)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("{backbon: pretrain}", r"needs\.backbon: DetectorStage has no such role.*mean backbone\?"),
        ("{teacher: pretrain}", r"needs\.teacher: DetectorStage has no such role, only backbone"),
    ],
)
def test_a_role_that_a_stage_does_not_have_is_refused(
    outside_config: Path, needs: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_run(outside_config, STAGES[0], f"stages.plain.needs={needs}", STAGES[2])


def test_a_run_without_a_detector_needs_none(outside_config: Path) -> None:
    config = yaml.safe_load(outside_config.read_text())
    config["_base_"] = [base for base in config["_base_"] if "my_model" not in base]
    outside_config.write_text(yaml.safe_dump(config))
    run = make_run(outside_config, STAGES[0], "train.stages=[pretrain]")
    run_stages(run)
    assert (run.folder / "pretrain" / "final.pth").exists()
    with pytest.raises(ConfigError, match="the stage plain, but this config has no model"):
        load_run_config(outside_config, ["train.stages=[plain]"], world_size=1, has_gpu=False)


def test_settings_of_a_stage_are_checked_in_a_section_of_any_name(outside_config: Path) -> None:
    section = "+mine={max_iter: lots, batch_size: 2, init_checkpoint: 7, init_partial: false}"
    changes = [section, "stages.plain.settings=mine"]
    with pytest.raises(ConfigError, match=r"mine\.max_iter must be an integer or null") as caught:
        load_run_config(outside_config, changes, world_size=1, has_gpu=False)
    assert "mine.init_checkpoint must be text, but is 7" in str(caught.value)
    assert "mine.optimizer is missing" in str(caught.value)


def test_a_class_that_is_no_stage_is_refused(outside_config: Path) -> None:
    run = make_run(outside_config)
    run.config.stages.plain = {"_target_": "my_parts.Pretext"}
    with pytest.raises(ValueError, match=r"stages\.plain: Pretext is no Stage"):
        _ = run.stages
