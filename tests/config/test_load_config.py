"""A config is right as a whole, or every mistake in it is named before anything is built."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from v2idetr.config.checks import validate_config
from v2idetr.config.load import (
    ConfigError,
    build,
    differing_keys,
    fingerprint,
    load_config,
    save_config,
    to_plain,
)
from v2idetr.config.yaml_text import dump_yaml, parse_yaml

BASE = """
from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

train = dict(max_iter=10, lr=0.1, amp="off", seed=0, verbose=True, stages=["plain"], hint=None)
schedule = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[10], num_updates=12)
other = dict(length="${train.max_iter}")
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.py"
    path.write_text(BASE)
    return path


def derive(base: Path, text: str) -> Path:
    path = base.with_name("derived.yaml")
    path.write_text(f"_base_: {base.name}\n{text}")
    return path


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    return caught.value.problems


def only_problem(path: Path, *overrides: str) -> str:
    (problem,) = problems_of(path, *overrides)
    return problem


# ------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.max_itr=5", "train.max_iter"),
        ("trian.max_iter=5", "train.max_iter"),
        ("max_iter=5", "train.max_iter"),
        ("schedule.milestone=[3]", "schedule.milestones"),
    ],
)
def test_a_mistyped_key_is_an_error_that_suggests_the_nearest(base, override, nearest) -> None:
    assert f"Did you mean {nearest}?" in only_problem(base, override)


@pytest.mark.parametrize(
    ("override", "expected", "given"),
    [
        ("train.max_iter=abc", "an integer", "'abc'"),
        ("train.max_iter=1.5", "an integer", "1.5"),
        ("train.max_iter=true", "an integer", "True"),
        ("train.lr=fast", "a number", "'fast'"),
        ("train.verbose=1", "true or false", "1"),
        ("train.stages=plain", "a list", "'plain'"),
        ("train.stages=[1]", "a list like", "[1]"),
        ("train=3", "a mapping", "3"),
        ("schedule.values=[a]", "a list like [1.0, 0.1]", "['a']"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_was_expected(
    base, override, expected, given
) -> None:
    problem = only_problem(base, override)
    assert override.partition("=")[0] in problem
    assert expected in problem and given in problem


def test_null_is_allowed_only_where_the_base_is_null(base) -> None:
    assert "cannot be null" in only_problem(base, "train.max_iter=null")
    assert load_config(base, ["train.hint=null"]).train.hint is None
    assert load_config(base, ["train.hint=abc"]).train.hint == "abc"


def test_null_is_allowed_where_the_signature_says_so(base) -> None:
    # fvcore: def __init__(self, values, num_updates=None, milestones=None)
    assert load_config(base, ["schedule.milestones=null"]).schedule.milestones is None
    assert "cannot be null" in only_problem(base, "schedule.values=null")


def test_an_integer_is_a_number_and_text_stays_text(base) -> None:
    config = load_config(base, ["train.lr=1", "train.amp=off", "train.seed=3"])
    assert isinstance(config.train.lr, float) and config.train.lr == 1.0
    assert config.train.amp == "off"
    assert load_config(base, ["train.amp=16"]).train.amp == "16"
    assert load_config(base, ["train.amp="]).train.amp == ""
    assert load_config(base, ["train.lr=1e-4"]).train.lr == 1e-4


def test_list_items_are_addressed_by_their_index(base) -> None:
    assert list(load_config(base, ["schedule.values.1=0.2"]).schedule["values"]) == [1.0, 0.2]
    assert "does not exist" in only_problem(base, "schedule.values.2=0.2")


def test_a_key_behind_a_reference_is_checked_and_changed_for_itself(base) -> None:
    base.write_text(BASE + 'more = dict(train="${train}", seeds=["${train.seed}"])\n')
    config = load_config(base, ["more.train.seed=5", "other.length=3"])
    assert (config.more.train.seed, config.train.seed, config.other.length) == (5, 0, 3)
    assert "an integer" in only_problem(base, "more.train.seed=abc")
    assert "an integer" in only_problem(base, "other.length=abc")
    assert "an integer" in only_problem(derive(base, "other: {length: abc}\n"))
    assert "more.train.sede does not exist" in only_problem(base, "more.train.sede=1")


def test_a_plus_adds_a_key_and_refuses_an_existing_one(base) -> None:
    config = load_config(base, ["+train.note=hello", "+extra.depth.key=3"])
    assert config.train.note == "hello" and config.extra.depth.key == 3
    assert "drop the +" in only_problem(base, "+train.seed=1")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("tries/run #2", "tries/run #2"),
        ("a: b, [c] {d} & *e !f | %g @h", "a: b, [c] {d} & *e !f | %g @h"),
        ("- x", "- x"),
        ("12", "12"),
        ("yes=no=1", "yes=no=1"),
        ("  in spaces ", "in spaces"),
        ('"tries/run #2"', "tries/run #2"),
        ("'it''s  '", "it's  "),
        ('"tab\\t"', "tab\t"),
        ('"half', '"half'),
        ('"one" and "two"', '"one" and "two"'),
        ("", ""),
    ],
)
def test_text_is_what_follows_the_equals_sign_unless_it_is_quoted(base, said, text) -> None:
    assert load_config(base, [f"train.amp={said}"]).train.amp == text


def test_text_of_a_key_that_the_base_leaves_out_is_literal_too(base) -> None:
    assert load_config(base, ["+train.note=run #2"]).train.note == "run #2"


def test_text_that_may_be_null_can_be_set_to_null_and_back(tiny_config) -> None:
    key = "model.net.weights"
    assert load_config(tiny_config, [f"{key}=null"]).model.net.weights is None
    back = load_config(tiny_config, [f"{key}=null", f"{key}=null #1.pth"])
    assert back.model.net.weights == "null #1.pth"


@pytest.mark.parametrize("override", ["train.seed", "=3", "train..seed=1", "train.seed=[1"])
def test_an_override_that_cannot_be_read_is_an_error(base, override) -> None:
    assert override in only_problem(base, override)


def test_all_errors_are_shown_together(base) -> None:
    path = derive(base, "train: {max_itr: 5, seed: x}\nschedule: {value: [1]}\n")
    problems = problems_of(path, "trian.seed=1", "train.lr=x")
    assert len(problems) == 5


# ----------------------------------------------------------------------------------------- files


def test_a_yaml_changes_only_what_its_base_has(base) -> None:
    path = derive(base, "train: {max_iter: 7}\n")
    config = load_config(path)
    assert config.train.max_iter == 7 and config.train.lr == 0.1
    assert config.other.length == 7, "references see the change"
    problem = only_problem(derive(base, "train: {max_itr: 7}\n"))
    assert "derived.yaml" in problem and "train.max_iter" in problem


def test_a_yaml_can_be_the_base_of_a_yaml(base) -> None:
    derive(base, "train: {max_iter: 7, seed: 1}\n")
    path = base.with_name("third.yaml")
    path.write_text("_base_: derived.yaml\ntrain: {seed: 2}\n")
    config = load_config(path)
    assert (config.train.max_iter, config.train.seed) == (7, 2)


def test_a_config_is_put_together_from_several_bases(base) -> None:
    base.with_name("part.py").write_text("data = dict(frames=3)\n")
    path = base.with_name("whole.yaml")
    path.write_text("_base_: [base.py, part.py]\ndata: {frames: 5}\n")
    assert load_config(path).data.frames == 5


def test_a_part_changes_the_sections_of_those_before_it(base) -> None:
    part = base.with_name("part.py")
    part.write_text("data = dict(frames=3)\ntrain = dict(max_iter=7)\n")
    path = base.with_name("whole.yaml")
    path.write_text("_base_: [base.py, part.py]\n")
    for config in (load_config(path), load_config(base, layers=[part])):
        assert (config.data.frames, config.train.max_iter, config.train.lr) == (3, 7, 0.1)
        assert config.other.length == 7, "references see the change"
    part.write_text("train = dict(max_itr=7)\n")
    assert "part.py: train.max_itr does not exist" in only_problem(path)


def test_an_output_folder_is_named_after_the_config_unless_it_says_another(base) -> None:
    base.write_text('train = dict(output_dir="output/${config_name}", seed=0)\n')
    assert load_config(derive(base, "train: {seed: 1}\n")).train.output_dir == "output/derived"
    assert load_config(base, ["train.output_dir=runs #2"]).train.output_dir == "runs #2"
    assert "config_name" not in load_config(base)


def test_layers_are_put_on_a_config_in_their_order_and_below_the_overrides(base) -> None:
    first, second = base.with_name("first.yaml"), base.with_name("second.yaml")
    first.write_text("train: {max_iter: 7, seed: 1, lr: 0.5}\n")
    second.write_text("train: {seed: 2, lr: 0.6}\n")
    config = load_config(base, ["train.lr=0.7"], layers=[first, second])
    assert (config.train.max_iter, config.train.seed, config.train.lr) == (7, 2, 0.7)
    assert config.other.length == 7, "references see the change"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {max_itr: 7}\n", "layer.yaml: train.max_itr does not exist"),
        ("train: {seed: x}\n", "layer.yaml: train.seed must be an integer"),
        ("_base_: base.py\n", "layer.yaml: has a _base_, so it is a complete config"),
        ("- a\n", "layer.yaml: must hold a mapping"),
        (None, "layer.yaml: no such layer; a layer is a .yaml or .py file"),
    ],
)
def test_a_layer_is_read_as_strictly_as_a_config(base, text, expected) -> None:
    path = base.with_name("layer.yaml")
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(base, layers=[path])
    (problem,) = caught.value.problems
    assert expected in problem


def test_a_layer_that_is_not_there_names_those_beside_it(base) -> None:
    base.with_name("other.yaml").write_text("train: {seed: 1}\n")
    with pytest.raises(ConfigError, match=r"oter\.yaml: .* Layers in .*other\.yaml"):
        load_config(base, layers=[base.with_name("oter.yaml")])


@pytest.mark.parametrize("way", ["override", "layer", "config"])
def test_a_loss_that_is_null_can_be_set(tiny_config, way) -> None:
    name = "v2idetr.distillation.feature_distillation.FeatureDistillation"
    loss = f"{{_target_: {name}, weight: 1, mask: box}}"
    path = tiny_config.with_name("more.yaml")
    if way == "override":
        config = load_config(tiny_config, [f"distillation.fd={loss}"])
    elif way == "layer":
        path.write_text(f"distillation: {{fd: {loss}}}\n")
        config = load_config(tiny_config, layers=[path])
    else:
        path.write_text(f"_base_: {tiny_config.name}\ndistillation: {{fd: {loss}}}\n")
        config = load_config(path)
    assert (config.distillation.fd._target_, config.distillation.fd.mask) == (name, "box")


def test_a_loss_of_any_name_can_be_added(tiny_config) -> None:
    name = "v2idetr.distillation.feature_distillation.FeatureDistillation"
    config = load_config(tiny_config, [f"+distillation.new={{_target_: {name}, mask: box}}"])
    assert config.distillation.new.mask == "box"
    assert "distillation.new must be a mapping" in only_problem(tiny_config, "+distillation.new=1")


def test_losses_that_are_not_used_may_be_left_out(tiny_config) -> None:
    config = to_plain(load_config(tiny_config))
    for name in [name for name, loss in config["distillation"].items() if loss is None]:
        del config["distillation"][name]
    assert validate_config(config) == []


@pytest.mark.parametrize("way", [".weight=1", "={weight: 1}"])
def test_a_key_of_a_loss_that_is_null_is_explained(tiny_config, way) -> None:
    problem = only_problem(tiny_config, f"distillation.fd{way}")
    assert "distillation.fd is null; give it as a whole: distillation.fd={_target_: " in problem


def test_a_loss_that_is_null_takes_no_other_kind_of_value(tiny_config) -> None:
    assert "must be a mapping" in only_problem(tiny_config, "distillation.fd=1")
    name = "v2idetr.distillation.feature_distillation.FeatureDistillation"
    problem = only_problem(tiny_config, f"distillation.fd={{_target_: {name}, stride: 32}}")
    assert "no such argument. Did you mean distillation.fd.strides?" in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("_base_: missing.py\n", "no such config file"),
        ("_base_: derived.yaml\n", "leads back to itself"),
        ("_base_: {a: 1}\n", "_base_ must be a file name"),
        ("_base_: base.txt\n", "no such config file"),
        ("- a\n", "must hold a mapping"),
        ("train: {seed: 1\n", "cannot be read as YAML"),
        ("train: {seed: 1}\ntrain: {seed: 2}\n", "the key 'train' is given twice"),
        ("1: 2\n", "the key 1 is not a string"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(base, text, expected) -> None:
    path = base.with_name("derived.yaml")
    path.write_text(text)
    problem = only_problem(path)
    assert expected in problem and base.parent.name in problem


def test_a_yaml_runs_no_code(base, tmp_path) -> None:
    target = tmp_path / "touched"
    path = derive(base, f"train: !!python/object/apply:os.mkdir ['{target}']\n")
    assert "cannot be read as YAML" in only_problem(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "target", ["os.system", "subprocess.run", "builtins.eval", "torch.os.system"]
)
def test_a_config_cannot_call_the_standard_library(base, target) -> None:
    problem = only_problem(base, f"+danger={{_target_: {target}}}")
    assert "belongs to Python itself" in problem


@pytest.mark.parametrize("program", ["raise RuntimeError('no')", "import nothing_like_this", "x ="])
def test_a_failing_config_file_leaves_the_import_function_as_it_was(tmp_path, program) -> None:
    path = tmp_path / "broken.py"
    path.write_text(program + "\n")
    original = builtins.__import__
    assert "broken.py" in only_problem(path)
    assert builtins.__import__ is original


def test_a_value_that_a_saved_config_cannot_hold_is_an_error(base) -> None:
    base.write_text(BASE + "extra = dict(function=len)\n")
    assert "extra.function" in only_problem(base)


# --------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("schedule._target_=fvcore.common.param_scheduler.Nothing", "cannot be imported"),
        ("schedule._target_=nothing.at.all", "cannot be imported"),
        ("schedule._target_=fvcore.common.param_scheduler.__name__", "is not callable"),
        ("+schedule.warmup=3", "has no such argument"),
        (
            "schedule={_target_: fvcore.common.param_scheduler.ConstantParamScheduler}",
            "needs the argument",
        ),
    ],
)
def test_targets_and_their_arguments_are_checked_at_load(base, override, expected) -> None:
    assert expected in only_problem(base, override)


def test_another_target_replaces_the_whole_node(base) -> None:
    target = "fvcore.common.param_scheduler.CosineParamScheduler"
    path = derive(base, f"schedule: {{_target_: {target}, start_value: 1.0, end_value: 0.5}}\n")
    assert build(load_config(path), "schedule")(0.0) == 1.0


def test_a_parameter_that_the_base_does_not_mention_can_be_set(base) -> None:
    base.write_text(
        BASE + "from detectron2.solver import WarmupParamScheduler as W\n"
        "w = L(W)(scheduler=schedule, warmup_factor=0.1, warmup_length=0.1)\n"
    )
    assert load_config(base, ["w.warmup_method=constant"]).w.warmup_method == "constant"
    assert "must be text" in only_problem(derive(base, "w: {warmup_method: [1]}\n"))


def test_a_reference_that_leads_nowhere_is_an_error(base) -> None:
    problem = only_problem(base, "other.length=${train.nothing}")
    assert "other.length" in problem and "train.nothing" in problem
    assert "train.amp: cannot be read as a reference" in only_problem(base, "train.amp=${a")


def test_a_library_that_a_target_needs_and_that_is_missing_is_named_with_the_key(
    base, tmp_path, monkeypatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_library\n\ndef part(size): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    problem = only_problem(base, "+part={_target_: needs_more.part, size: 3}")
    assert "part._target_" in problem and "no_such_library" in problem


@pytest.mark.parametrize("override", ["model.net.smca=true", "+model.net.smca=true"])
def test_an_argument_of_another_family_is_told_with_who_has_it(tiny_detr_config, override) -> None:
    problem = only_problem(tiny_detr_config, override)
    assert "model.net.smca: v2idetr.modeling.detr.DETR has no such argument." in problem
    assert "It takes backbone, " in problem
    assert "v2idetr.modeling.sam_detr.SAMDETR has it." in problem
    assert "modeling.deformable_detr" not in problem


@pytest.mark.parametrize("target", ["''", ".", "..x", "__main__.x"])
def test_words_that_name_no_callable_at_all_are_an_error(base, target) -> None:
    assert "_target_" in only_problem(base, f"+part={{_target_: {target}}}")


def test_build_names_the_key_of_a_module_that_refuses_its_arguments(base) -> None:
    config = load_config(base, ["schedule.milestones=[20]"])
    with pytest.raises(ValueError, match=r"^schedule: "):
        build(config, "schedule")


def test_a_refusal_that_names_its_key_is_not_named_twice(base, monkeypatch) -> None:
    def refuse(_) -> None:
        raise ValueError("schedule.values must fall.")

    monkeypatch.setattr("v2idetr.config.load.instantiate", refuse)
    with pytest.raises(ValueError, match=r"^schedule\.values must fall\.$"):
        build(load_config(base), "schedule")


# ------------------------------------------------------------------------------------ round trip


def test_a_saved_config_loads_as_an_equal_one(tiny_config, tmp_path) -> None:
    config = load_config(
        tiny_config, ["train.amp=off", "optimizer.lr=1e-5", "train.init_checkpoint=1e-4"]
    )
    save_config(config, tmp_path / "saved.yaml")
    again = load_config(tmp_path / "saved.yaml")
    assert to_plain(again) == to_plain(config)
    assert fingerprint(again) == fingerprint(config)
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["train"]["amp"] == "off"


@pytest.mark.parametrize(
    "value",
    [
        "off",
        "1e-4",
        "010",
        "1:30",
        "2024-01-01",
        "null",
        "~",
        "",
        "true",
        "3",
        " x ",
        "a: b",
        "${a}",
    ],
)
def test_text_survives_the_round_trip_through_yaml(value) -> None:
    assert parse_yaml(dump_yaml({"key": [value]})) == {"key": [value]}


def test_numbers_survive_the_round_trip_through_yaml() -> None:
    values = [1, -1, 0, 1.0, 1e-5, 1e22, 0.1, float("inf"), True, None]
    assert parse_yaml(dump_yaml({"key": values})) == {"key": values}
    assert [type(v) for v in parse_yaml(dump_yaml(values))] == [type(v) for v in values]


def test_the_fingerprint_ignores_what_does_not_change_the_weights(tiny_config) -> None:
    config = load_config(tiny_config)
    neutral = load_config(
        tiny_config, ["train.num_workers=3", "train.output_dir=x", "data.val.image_root=y"]
    )
    other = load_config(tiny_config, ["train.seed=3", "optimizer.lr=0.5"])
    assert fingerprint(neutral) == fingerprint(config)
    assert fingerprint(other) != fingerprint(config)
    assert differing_keys(config, other) == [
        "optimizer.lr: 0.001 -> 0.5",
        "teacher.optimizer.lr: 0.001 -> 0.5",
        "train.seed: 0 -> 3",
    ]


def test_a_layer_adds_a_stage_but_does_not_change_one_that_is_not_there(tiny_config) -> None:
    layer = tiny_config.with_name("layer.yaml")
    target = "v2idetr.engine.stage.DetectorStage"
    layer.write_text(f"stages: {{third: {{_target_: {target}, model: model}}}}")
    stages = load_config(tiny_config, layers=[layer]).stages
    assert list(stages) == ["teacher", "plain", "student", "third"]
    assert stages.third == {"_target_": target, "model": "model"}
    layer.write_text("stages: {techer: {model: model}}")
    with pytest.raises(ConfigError, match=r"stages\.techer does not exist\. Did you mean"):
        load_config(tiny_config, layers=[layer])


def test_the_named_test_splits_are_replaced_as_a_whole(tiny_config) -> None:
    config = load_config(tiny_config, ["data.test={mine: {json: a, image_root: b}}"])
    assert OmegaConf.to_container(config.data.test) == {"mine": {"json": "a", "image_root": "b"}}
