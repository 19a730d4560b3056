"""Every config in the repository can be run, and says what the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from v2idetr.config.load import build, fingerprint, load_config, load_run_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What each student's configs are called: v2i_DATA + this, and the key for its baselines.
STUDENTS = {"deformable_detr": "", "detr": "_detr", "sam_detr": "_sam_detr"}
DETECTRON2 = ("faster_rcnn", "retinanet", "fcos")
SMALL = ("clinicdb", "synthetic")  # recipes of our own
FILES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if "ablations" not in path.parts  # layers on a config, see test_ablations.py
)


def load(name: str, *overrides: str):
    return load_run_config(CONFIGS / name, list(overrides), world_size=1, has_gpu=False)


@pytest.mark.parametrize("name", FILES)
def test_every_config_loads_and_its_settings_agree(name) -> None:
    config = load(name)
    assert config.train.output_dir == f"output/{Path(name).stem}"


def test_a_config_file_is_the_same_as_its_parts_one_after_the_other() -> None:
    parts = [CONFIGS / "models" / "detr_small.py", CONFIGS / "data" / "clinicdb.py"]
    own = ["distillation.tfd.weight=0.6", "model.size_divisor=16"]
    config = load_config(CONFIGS / "recipes" / "small.py", own, layers=parts)
    assert fingerprint(config) == fingerprint(load("v2i_clinicdb_detr.yaml"))


def test_a_student_can_be_put_on_another_config() -> None:
    parts = [CONFIGS / "models" / "detr.py"]
    config = load_config(CONFIGS / "v2i_buv.yaml", ["model.net.num_classes=2"], layers=parts)
    assert fingerprint(config) == fingerprint(load("v2i_buv_detr.yaml"))


@pytest.mark.parametrize("data", ["sun", "buv", "clinicdb", "synthetic"])
@pytest.mark.parametrize("student", STUDENTS)
def test_a_baseline_is_the_same_detector_without_a_teacher(student, data) -> None:
    full = load(f"v2i_{data}{STUDENTS[student]}.yaml")
    plain = load(f"baselines/{student}_{data}.yaml")
    assert list(full.train.stages) == ["teacher", "plain", "student"]
    assert list(plain.train.stages) == ["plain"]
    assert (plain.model, plain.data, plain.optimizer) == (full.model, full.data, full.optimizer)


@pytest.mark.parametrize("data", ["sun", "buv", "clinicdb", "synthetic"])
@pytest.mark.parametrize("detector", DETECTRON2)
def test_detectors_of_detectron2_are_trained_and_evaluated_as_the_others(detector, data) -> None:
    ours, theirs = load(f"v2i_{data}.yaml"), load(f"baselines/{detector}_{data}.yaml")
    assert list(theirs.train.stages) == ["plain"]
    assert "teacher" not in theirs and "distillation" not in theirs
    for section in ("data", "evaluation", "lr_multiplier"):
        assert theirs[section] == ours[section]
    for key in ("max_iter", "batch_size", "best_metric", "eval_period"):
        assert theirs.train[key] == ours.train[key]


@pytest.mark.parametrize("data", ["buv", "clinicdb"])
@pytest.mark.parametrize("detector", DETECTRON2)
def test_detectors_of_detectron2_can_be_built(detector, data) -> None:
    config = load(f"baselines/{detector}_{data}.yaml", "model.weights=null")
    with torch.device("meta" if data == "buv" else "cpu"):
        model = build(config, "model")
    optimizer = build(config, "optimizer")(model)
    fast, slow = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    pyramid = [p for n, p in model.named_parameters() if "fpn" in n]
    assert len(pyramid) >= 12 and {id(p) for p in pyramid} <= fast
    below = model.net.backbone.bottom_up.parameters()
    assert slow == {id(p) for p in below if p.requires_grad}


@pytest.mark.parametrize("data", ["sun", "buv", "clinicdb", "synthetic"])
@pytest.mark.parametrize("student", [name for name in STUDENTS if STUDENTS[name]])
def test_students_of_one_data_set_differ_by_their_network_alone(student, data) -> None:
    # So that one trained teacher serves them all.
    first, other = load(f"v2i_{data}.yaml"), load(f"v2i_{data}{STUDENTS[student]}.yaml")
    assert other.teacher == first.teacher
    for section in ("train", "optimizer", "lr_multiplier", "data", "evaluation"):
        theirs = dict(other[section])
        if section == "train":
            theirs["output_dir"] = first.train.output_dir
            if data in SMALL and student == "detr":  # learns more slowly
                theirs["max_iter"] = first.train.max_iter
        if data in SMALL and section == "optimizer":
            theirs["lr"] = first.optimizer.lr
        assert theirs == dict(first[section]), section
    ours, theirs = first.distillation, other.distillation
    at_one_size = theirs.tfd.stride == ours.tfd.stride
    assert theirs.cqd == ours.cqd and (theirs.tfd.weight == ours.tfd.weight) == at_one_size
    assert other.model.net._target_ != first.model.net._target_
    same = {key for key in first.model if key not in ("net", "criterion")}
    assert {key: other.model[key] for key in same} == {key: first.model[key] for key in same}


@pytest.mark.parametrize("data", ["sun", "clinicdb"])
@pytest.mark.parametrize("student", [name for name in STUDENTS if STUDENTS[name]])
def test_a_change_of_another_student_leaves_its_teacher_alone(student, data) -> None:
    name = f"v2i_{data}{STUDENTS[student]}.yaml"
    before, after = load(name), load(name, "model.net.num_queries=7", "model.net.ffn_dim=33")
    assert after.teacher == before.teacher


@pytest.mark.parametrize("student", [name for name in STUDENTS if STUDENTS[name]])
def test_what_makes_features_of_pictures_is_one_for_teacher_and_student(student) -> None:
    changes = ["model.net.weights=''", "model.net.num_classes=2", "model.size_divisor=16"]
    teacher = load(f"v2i_buv{STUDENTS[student]}.yaml", *changes).teacher.model
    assert (teacher.net.weights, teacher.net.num_classes, teacher.size_divisor) == ("", 2, 16)


@pytest.mark.parametrize("name", ["v2i_sun.yaml", "v2i_buv.yaml"])
def test_the_recipe_is_that_of_the_paper(name) -> None:
    config = load(name)
    assert (config.train.batch_size, config.data.num_frames) == (16, 3)
    assert config.model.net.num_queries == 100
    assert (config.optimizer.lr, config.optimizer.backbone_lr) == (1e-4, 1e-5)
    assert (config.distillation.tfd.weight, config.distillation.cqd.weight) == (1.0, 5.0)
    assert config.train.clip_grad_norm == 0.1
    assert config.teacher.max_iter == config.train.max_iter
    schedule = build(config, "lr_multiplier")
    assert [schedule(epoch / 12) for epoch in (0, 9.99, 10, 11.99)] == [1.0, 1.0, 0.1, 0.1]


@pytest.mark.parametrize("name", ["v2i_sun.yaml", "v2i_buv.yaml"])
@pytest.mark.parametrize("gpus", [1, 2, 4, 8, 16])
def test_the_large_configs_run_on_one_to_sixteen_gpus(name, gpus) -> None:
    load_run_config(CONFIGS / name, [], world_size=gpus, has_gpu=True)


def test_ultrasound_has_two_classes() -> None:
    config = load("v2i_buv.yaml")
    assert config.model.net.num_classes == config.teacher.model.net.num_classes == 2
    assert list(config.model.class_names) == ["benign", "malignant"]


@pytest.mark.parametrize("name", [name for name in FILES if "/" not in name])
def test_augmentations_of_every_config_can_be_built(name) -> None:
    config = load(name)
    built = [build(config, f"data.augmentations.{kind}") for kind in ("train", "test")]
    if config.data.class_names or config.data.phases:  # frames without labels have other views
        assert all(built)


def test_a_chain_is_the_config_without_pretraining_and_two_stages_before_it() -> None:
    for data in SMALL:
        chain, without = load(f"v2i_{data}_pretrained.yaml"), load(f"v2i_{data}.yaml")
        assert list(chain.train.stages) == ["backbone_teacher", "backbone", *without.train.stages]
        for section in ("model", "distillation", "data", "evaluation", "optimizer", "teacher"):
            assert chain[section] == without[section], section
        for stage in without.train.stages:
            assert chain.stages[stage].needs.backbone == "backbone"
        for key in ("weights", "pixel_mean", "pixel_std"):
            detector = chain.model.net if key == "weights" else chain.model
            assert chain.encoder[key] == detector[key]
