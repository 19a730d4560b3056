"""The keys of a run agree with each other, and with the machine and the files that they name."""

from __future__ import annotations

import contextlib

import pytest

from v2idetr.engine.config import ConfigError, load_run_config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stages=[]", "must name some of teacher, plain, student"),
        ("train.stages=[techer]", "must name some of teacher, plain, student"),
        ("train.stages=[student, teacher]", "must be in the order"),
        ("train.stages=[plain, student]", "needs a teacher"),
        ("train.batch_size=5", "which 2 processes cannot share equally"),
        ("train.batch_size=6", "use a divisor of 3"),
        ("train.max_iter=0", "must be at least 1"),
        ("data.num_frames=0", "must be at least 1"),
        ("distillation.qd={_target_: builtins.dict, weight: -1}", "distillation.qd.weight must be"),
        ("optimizer.lr=-1.0", "must be at least 0"),
        ("model.net.num_queries=0", "must be at least 1"),
        ("train.amp=fp8", "must be one of off, bf16, fp16"),
        ("train.amp=fp16", "needs a GPU"),
        ("train.device=cuda", "finds no GPU"),
        ("data.class_names=[a, a]", "must be different words"),
        ("model.class_names=[a]", "data.class_names is"),
        ("data.test={}", "must name at least one split"),
        ("data.test={a: {json: x}}", "must be {json: ..., image_root: ...}"),
        ("train.best_metric=AP60", "does not compute"),
        ("evaluation.rules=[iou60]", "the rules are"),
        ("train.eval_period=0", "needs train.eval_period above 0"),
        ("train.init_checkpoint=missing.pth", "there is no file missing.pth"),
        ("train.init_partial=true", "train.init_checkpoint names no file"),
        ("teacher.init_checkpoint=missing.pth", "there is no file missing.pth"),
        ("teacher.init_partial=true", "teacher.init_checkpoint names no file"),
        ("teacher.checkpoint=missing.pth", "there is no file missing.pth"),
        ("+data.nothing=1", None),
    ],
)
def test_settings_that_contradict_each_other_are_errors(tiny_config, override, expected) -> None:
    overrides = ["train.clips_at_once=2", override]
    if expected is None:
        load_run_config(tiny_config, overrides, world_size=2, has_gpu=False)
        return
    with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")) as caught:
        load_run_config(tiny_config, overrides, world_size=2, has_gpu=False)
    assert any(expected in problem for problem in caught.value.problems), caught.value


def test_a_missing_file_that_two_stages_start_from_is_one_error(tiny_config) -> None:
    with pytest.raises(ConfigError, match=r"train\.init_checkpoint: there is no file") as caught:
        load_run_config(
            tiny_config, ["train.init_checkpoint=missing.pth"], world_size=1, has_gpu=False
        )
    assert len(caught.value.problems) == 1


def test_mistyped_keys_and_contradictions_are_shown_together(tiny_config) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(
            tiny_config, ["train.max_itr=1", "train.stages=[]"], world_size=1, has_gpu=False
        )
    assert len(caught.value.problems) == 2


def test_a_config_without_a_section_is_told_what_is_missing(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {stages: [plain]}")
    with pytest.raises(ConfigError) as caught:
        load_run_config(path, [], world_size=1, has_gpu=False)
    assert any("data.train.json is missing; it must be text" in p for p in caught.value.problems)


@pytest.mark.parametrize(
    "override",
    [
        "train.init_checkpoint=missing.pth",
        "teacher.checkpoint=missing.pth",
        "train.stages=[student]",
        "train.batch_size=5",
        "train.amp=fp16",
    ],
)
def test_what_only_training_needs_does_not_stop_an_evaluation(tiny_config, override) -> None:
    for training in (False, True):
        with pytest.raises(ConfigError) if training else contextlib.nullcontext():
            load_run_config(tiny_config, [override], world_size=2, has_gpu=False, training=training)
