"""The configs of Free Lunch: how often they validate, and their low-data regimes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.free_lunch.tiny_phases import TINY_ENCODER
from tests.tiny_fixtures import ROOT
from tests.tiny_runs import make_run
from v2idetr.config.load import ConfigError, load_run_config
from v2idetr.config.stage_settings import eval_period_of, steps_of
from v2idetr.engine.stages import run_stages

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("freelunch_*.yaml"))


def load(name: str, *overrides: str):
    path = Path(ROOT / "configs" / name)
    return load_run_config(path, list(overrides), world_size=1, has_gpu=False)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_best_step_is_one_of_five_at_least(name) -> None:
    config = load(name)
    for stage in config.stages:
        assert eval_period_of(config, stage) <= steps_of(config, stage) / 5, stage


@pytest.mark.parametrize("name", ["cholec80", "m2cai16"])
def test_low_data_regimes_have_one_share_of_the_labels_from_the_student_on(name) -> None:
    config = load(f"freelunch_{name}.yaml")
    for percent in (10, 40, 50, 100):
        finetune, phases = (f"{kind}_{percent}" for kind in ("finetune", "phases"))
        assert {finetune, phases} <= set(config.train.stages)
        assert config.stages[finetune].needs == {"backbone": "student"}
        assert config.stages[phases].needs == {"backbone": finetune}
        for stage in (finetune, phases):
            assert config.stages[stage].share == percent / 100
            assert config.stages[stage].transitions == name


def test_low_data_regimes_are_there_for_synthetic_operations_if_asked_for() -> None:
    assert not any("phases" in name for name in load("freelunch_synthetic.yaml").train.stages)
    stages = "train.stages=[teacher, student, finetune_10, phases_10]"
    assert load("freelunch_synthetic.yaml", stages).stages.phases_10.share == 0.1


def test_a_low_data_regime_is_trained_from_pretraining_to_its_result(phase_config) -> None:
    config = yaml.safe_load(phase_config.read_text())
    config["teacher"] = {"encoder": TINY_ENCODER}
    config["views"] = {"input_size": 64}
    config["stages"] |= {name: {"queue_size": 12} for name in ("teacher", "student")}
    phase_config.write_text(yaml.safe_dump(config))
    stages = "train.stages=[teacher, student, finetune_40, phases_40]"
    run_context = make_run(phase_config, stages, "phases.max_iter=2")
    run_stages(run_context)
    results = json.loads((run_context.folder / "results.json").read_text())["stages"]
    assert {name: result["labelled_videos"] for name, result in results.items()} == {
        "finetune_40": 2,
        "phases_40": 2,
    }


def test_several_gpus_need_as_many_videos_a_step_and_the_error_says_so() -> None:
    path = ROOT / "configs" / "freelunch_cholec80.yaml"
    message = r"phases\.batch_size is 1, .*: set phases\.batch_size to a multiple of 4, such as 4"
    with pytest.raises(ConfigError, match=message):
        load_run_config(path, [], world_size=4, has_gpu=False)
    readme = (ROOT / "projects" / "FreeLunch" / "README.md").read_text()
    (documented,) = re.findall(r"`--num-gpus (\d+) (phases[^`]+)`", readme)
    load_run_config(path, documented[1].split(), world_size=int(documented[0]), has_gpu=False)
