"""The keys of a run agree with each other, and with the machine and the files that they name."""

from __future__ import annotations

import contextlib

import pytest
import torch

from v2idetr.config.load import ConfigError, load_config, load_run_config
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.signals import StopSignals


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stages=[]", "must name some of teacher, plain, student"),
        ("train.stages=[techer]", "must name some of teacher, plain, student"),
        ("train.stages=[student, teacher]", "add teacher to train.stages before it"),
        ("train.stages=[plain, student]", "whose teacher is the stage teacher: add"),
        (
            "train.batch_size=5",
            "2 processes cannot share equally: set train.batch_size to a multiple of 2, such as 6",
        ),
        ("train.max_iter=0", "must be at least 1"),
        ("data.num_frames=0", "must be at least 1"),
        ("distillation.qd={_target_: builtins.dict, weight: -1}", "distillation.qd.weight must be"),
        ("optimizer.lr=-1.0", "must be at least 0"),
        ("model.net.num_queries=0", "must be at least 1"),
        ("train.amp=fp8", "must be one of off, bf16, fp16"),
        ("train.amp=fp16", "needs a GPU"),
        ("train.device=cuda", "finds no GPU"),
        ("data.class_names=[a, a]", "must be distinct names"),
        ("model.class_names=[a]", "data.class_names is"),
        ("data.test={a: {json: x}}", "must be {json: ..., image_root: ...}"),
        ("data.test={val: {json: x, image_root: x}}", "'val' is a reserved name"),
        ("data.test={all tests: {json: x, image_root: x}}", "'all tests' is a reserved name"),
        ("train.best_metric=AP60", "does not compute"),
        ("evaluation.rules=[iou60]", "the rules are"),
        ("train.eval_period=0", "needs evaluations during training"),
        ("data.val=null", "train.eval_period evaluates on the validation split, but data.val is"),
        ("train.patience=-1", "must be at least 0"),
        ("train.patience=9", "raise train.max_iter, or lower train.eval_period"),
        ("train.cooldown=.nan", "must be at least 0, but is nan"),
        ("train.clip_grad_norm=.nan", "must be at least 0, but is nan"),
        ("distillation.tfd.weight=.nan", "must be at least 0, but is nan"),
        ("model.net.dropout=.nan", "must be a number, but is nan"),
        ("train.cooldown=.inf", "must be a number of at least 0"),
        ("distillation.frames=every", "must be one of current, all"),
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


def test_only_stages_that_are_trained_are_checked(tiny_config) -> None:
    teachers = ["teacher.batch_size=5", "teacher.init_checkpoint=missing.pth"]
    alone = ["train.stages=[plain]", *teachers, "teacher.checkpoint=missing_too.pth"]
    load_run_config(tiny_config, alone, world_size=2, has_gpu=False)
    with pytest.raises(ConfigError) as caught:
        load_run_config(tiny_config, teachers, world_size=2, has_gpu=False)
    assert len(caught.value.problems) == 2


def test_a_given_teacher_needs_no_batch(tiny_config, tmp_path) -> None:
    (tmp_path / "teacher.pth").touch()
    given = [f"teacher.checkpoint={tmp_path / 'teacher.pth'}", "teacher.batch_size=5"]
    load_run_config(tiny_config, given, world_size=2, has_gpu=False)


@pytest.mark.parametrize(
    ("batch", "limit", "parts"), [(24, 16, 2), (24, 24, 1), (24, 5, 6), (7, 4, 7), (8, 2, 4)]
)
def test_clips_at_once_is_a_limit(tiny_config, batch, limit, parts) -> None:
    overrides = [
        "train.stages=[plain]",
        f"train.batch_size={batch}",
        f"train.clips_at_once={limit}",
    ]
    config = load_run_config(tiny_config, overrides, world_size=1, has_gpu=False)
    run = RunContext(config, torch.device("cpu"), {}, StopSignals())
    assert run.micro_batches(run.stages["plain"]) == parts


def test_a_missing_file_that_two_stages_start_from_is_one_error(tiny_config) -> None:
    with pytest.raises(ConfigError, match=r"train\.init_checkpoint: there is no file") as caught:
        load_run_config(
            tiny_config, ["train.init_checkpoint=missing.pth"], world_size=1, has_gpu=False
        )
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("role", ["initial", "backbone"])
def test_weights_that_an_earlier_stage_would_replace_are_refused(tiny_config, role) -> None:
    settings = [f"train.init_checkpoint={tiny_config}", f"+stages.plain.needs={{{role}: teacher}}"]
    said = rf"train\.init_checkpoint .* stages\.plain\.needs\.{role} replaces them"
    with pytest.raises(ConfigError, match=said) as caught:
        load_run_config(tiny_config, settings, world_size=1, has_gpu=False)
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


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.num_frames=1", "teacher.model.num_frames=1"], "but data.num_frames is 1"),
        (["teacher.model.num_frames=2"], "teacher.model.num_frames is 2 and data.num_frames 3"),
    ],
)
def test_every_frame_needs_a_teacher_that_looks_at_it(tiny_config, overrides, expected) -> None:
    given = ["distillation.frames=all", *overrides]
    with pytest.raises(ConfigError, match=expected):
        load_run_config(tiny_config, given, world_size=1, has_gpu=False)


def test_early_stopping_without_evaluations_is_an_error(tiny_config) -> None:
    given = ["train.patience=1", "train.eval_period=0", "evaluation.checkpoint=final"]
    with pytest.raises(ConfigError, match=r"train\.eval_period=0 disables them"):
        load_run_config(tiny_config, given, world_size=1, has_gpu=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["+teacher.eval_period=0"], r"set teacher\.eval_period above 0"),
        (["+teacher.eval_period=-1"], r"teacher\.eval_period must be at least 0"),
        (
            ["+teacher.eval_period=0", "train.patience=1", "evaluation.checkpoint=final"],
            r"teacher\.eval_period=0 disables them",
        ),
        (
            ["+teacher.eval_period=6", "train.patience=1", "train.eval_period=1"],
            r"raise teacher\.max_iter, or lower teacher\.eval_period or train\.patience",
        ),
        (
            ["data.val=null", "train.eval_period=0", "+teacher.eval_period=2"],
            r"teacher\.eval_period evaluates on the validation split, but data\.val is null",
        ),
    ],
)
def test_the_evaluations_of_a_stage_are_checked_by_its_own_period(
    tiny_config, changes, message
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(tiny_config, changes, world_size=1, has_gpu=False)


def test_a_validation_split_in_place_of_none_is_given_as_a_whole(tiny_config) -> None:
    none = ["data.val=null", "train.eval_period=0", "evaluation.checkpoint=final"]
    whole = load_config(tiny_config, [*none, "data.val={json: a.json, image_root: b}"])
    assert dict(whole.data.val) == {"json": "a.json", "image_root": "b"}
    for part in ("data.val={json: a.json}", "data.val.json=a.json"):
        with pytest.raises(ConfigError, match=r"data\.val={json: \.\.\., image_root: \.\.\.}"):
            load_config(tiny_config, [*none, part])
