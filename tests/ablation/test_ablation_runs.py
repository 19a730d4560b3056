"""Equal configs are one run and equal teachers are one teacher, and each has its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from v2idetr.ablation.row_configs import Settings, run_fingerprint, teacher_fingerprint
from v2idetr.ablation.run_records import check_earlier_runs
from v2idetr.ablation.runs import Plan, Run
from v2idetr.ablation.tables import Row, Table, find_tables
from v2idetr.config.load import differing_keys, load_config, save_config, to_plain

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TABLES = find_tables(CONFIGS)
FOLDER = Path("/runs")


def make_plan(*keys: str, folder: Path = FOLDER, **settings) -> Plan:
    tables = [table for table in TABLES if table.key in keys]
    return Plan(folder, Settings(CONFIGS, **({"dataset": "synthetic"} | settings)), tables)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan("table3", "table4", "fig5b", "table1")


def runs(plan: Plan, table: str, seeds: range = range(1)) -> list[Run]:
    return plan.runs([row for row in plan.rows.values() if row.table == table], seeds)


# ---------------------------------------------------------------- what is shared


@pytest.mark.parametrize(
    ("row", "first"),
    [
        ("table4/01_baseline", "table3/1_baseline"),
        ("table4/05_tfd", "table3/2_tfd"),
        ("fig5b/3", "table3/5_tfd_msi_cqd"),
        ("fig5b/baseline", "table3/1_baseline"),
        ("table1/deformable_detr", "table3/1_baseline"),
        ("table1/deformable_detr_v2i", "table3/5_tfd_msi_cqd"),
        ("table1/transvod_base", "table3/1_baseline"),
        ("table1/cva_net_base", "table3/1_baseline"),
        ("table1/cva_net", "table1/cva_net"),
        ("table4/11_cqd", "table4/11_cqd"),
        ("table4/11b_cqd_one_way", "table4/11b_cqd_one_way"),
    ],
)
def test_rows_with_equal_configs_are_one_run(plan: Plan, row: str, first: str) -> None:
    assert plan.run(plan.rows[row], 0).folder == FOLDER / "seed0" / first


@pytest.mark.parametrize(
    ("row", "first"),
    [
        ("table3/4_tfd_cqd", "table3/2_tfd"),
        ("table3/5_tfd_msi_cqd", "table3/3_tfd_msi"),
        ("table4/08_qd", "table3/2_tfd"),
        ("table1/sam_detr_v2i", "table3/3_tfd_msi"),
        ("fig5b/5", "fig5b/5"),
    ],
)
def test_rows_with_equal_teachers_have_one(plan: Plan, row: str, first: str) -> None:
    teacher = plan.teacher(plan.rows[row], 1)
    assert teacher is not None
    assert teacher.folder == FOLDER / "seed1" / "teachers" / first


def test_a_plain_detector_has_no_teacher(plan: Plan) -> None:
    run = plan.run(plan.rows["table3/1_baseline"], 0)
    assert (run.stage, run.teacher) == ("plain", None)


def test_a_layer_of_ones_own_that_names_no_stages_is_a_student(tmp_path: Path) -> None:
    layer = tmp_path / "weight_2.yaml"
    layer.write_text("# TFD weighs 2\ndistillation: {tfd: {weight: 2.0}}\n")
    row = Row("mine", layer.stem, "TFD weighs 2", (layer,))
    plan = Plan(FOLDER, Settings(CONFIGS, "synthetic"), [Table("mine", "mine", "mine", (row,))])
    run = plan.run(row, 0)
    assert (run.stage, list(run.config.train.stages)) == ("student", ["student"])
    assert run.teacher is not None and run.config.distillation.tfd.weight == 2.0


def test_a_given_teacher_is_not_trained(tmp_path: Path) -> None:
    (tmp_path / "t.pth").touch()
    plan = make_plan("table3", overrides=(f"teacher.checkpoint={tmp_path / 't.pth'}",))
    assert {run.stage for run in runs(plan, "table3")} == {"plain", "student"}


def test_each_seed_has_its_teachers_and_they_come_first(plan: Plan) -> None:
    stages = [(run.seed, run.stage) for run in runs(plan, "table3", range(2))]
    one = ["teacher", "teacher", "plain", "plain", "student", "student", "student", "student"]
    assert stages == [(seed, stage) for seed in (0, 1) for stage in one]


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("distillation.tfd.weight", 3.0, True),
        ("model.net.d", 64, True),
        ("train.stages", ["plain"], True),
        ("train.num_workers", 7, True),
        ("train.max_iter", 7, True),  # the teacher has its own
        ("teacher.max_iter", 7, False),
        ("teacher.model.net.d", 64, False),
        ("data.window", 7, False),
        ("optimizer.lr", 0.5, True),
        ("teacher.optimizer.lr", 0.5, False),
        ("evaluation.checkpoint", "final", False),
        ("train.eval_period", 7, False),
        ("train.seed", 7, False),
    ],
)
def test_a_teacher_is_another_one_if_its_stage_reads_what_differs(
    plan: Plan, key: str, value: object, same: bool
) -> None:
    config = OmegaConf.create(plan.config(plan.rows["table3/5_tfd_msi_cqd"]))
    before = teacher_fingerprint(config)
    OmegaConf.update(config, key, value)
    assert (teacher_fingerprint(config) == before) == same


# ---------------------------------------------------------------- command lines


@pytest.mark.parametrize(
    "name",
    [
        "table3/4_tfd_cqd",
        "table3/1_baseline",
        "table1/detr_v2i",
        "table1/faster_rcnn",
        "table1/transvod",
        "table1/fgfa_base",
    ],
)
def test_the_command_line_gives_the_config(plan: Plan, name: str) -> None:
    run = plan.run(plan.rows[name], 2)
    for one in filter(None, (run, run.teacher)):
        arguments = one.arguments(plan.settings)
        file, *rest = arguments[1:]
        layers = [rest[k + 1] for k, word in enumerate(rest) if word == "--layer"]
        config = load_config(file, rest[rest.index("--resume") + 1 :], layers=layers)
        assert config == one.config
        assert (config.train.seed, list(config.train.stages)) == (2, [one.stage])
        assert config.train.output_dir == str(one.folder)


def test_a_student_learns_from_the_checkpoint_that_the_config_evaluates(plan: Plan) -> None:
    run = plan.run(plan.rows["table4/08_qd"], 0)
    assert run.config.teacher.checkpoint == "/runs/seed0/teachers/table3/2_tfd/teacher/best.pth"
    final = make_plan("table3", overrides=("evaluation.checkpoint=final",))
    run = final.run(final.rows["table3/2_tfd"], 0)
    assert run.config.teacher.checkpoint.endswith("teacher/final.pth")


def test_a_video_detector_starts_from_the_run_of_its_single_frame_detector(plan: Plan) -> None:
    run = plan.run(plan.rows["table1/transvod"], 1)
    base = plan.run(plan.rows["table3/1_baseline"], 1)
    assert (run.stage, run.initial, run.needs) == ("video", base, (base,))
    assert run.config.video.base == str(base.weights)
    listed = plan.runs([run.row], [1])
    assert listed == [base, run]
    assert plan.run(plan.rows["table1/cva_net"], 1).needs == ()


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("video.model.video_class_weight", 0.5, True),
        ("stages.video.split", "other", True),
        ("model.net.num_queries", 31, False),
        ("train.batch_size", 4, False),
        ("data.window", 0, False),
    ],
)
def test_a_plain_detector_is_trained_anew_only_if_what_it_reads_changes(
    plan: Plan, key: str, value: object, same: bool
) -> None:
    config = OmegaConf.create(plan.config(plan.rows["table1/cva_net_base"]))
    before = run_fingerprint(to_plain(config), "plain")
    OmegaConf.update(config, key, value)
    assert (run_fingerprint(to_plain(config), "plain") == before) == same


# ---------------------------------------------------------------- overrides


def test_a_detector_of_another_kind_takes_the_overrides_that_it_has_a_place_for() -> None:
    own = ("train.max_iter=7", "data.negative_share=0.5", "model.net.roi_heads.num_classes=1")
    others = ("teacher.max_iter=7", "distillation.cqd=null", "model.net.num_queries=7")
    plan = make_plan("table1", overrides=(*own, *others))
    assert plan.run(plan.rows["table1/faster_rcnn"], 0).overrides[:4] == (*own, "train.seed=0")


def test_what_a_row_sets_wins_over_an_override() -> None:
    plan = make_plan("table4", overrides=("distillation.cqd.mask=isolated", "train.max_iter=9"))
    masks = {
        name: plan.config(plan.rows[f"table4/{name}"]) for name in ("11_cqd", "11b_cqd_one_way")
    }
    assert masks["11_cqd"]["distillation"]["cqd"]["mask"] == "none"
    assert masks["11b_cqd_one_way"]["distillation"]["cqd"]["mask"] == "isolated"
    assert {config["train"]["max_iter"] for config in masks.values()} == {9}


def test_an_override_does_not_reach_what_a_row_switches_off() -> None:
    plan = make_plan("table3", overrides=("distillation.cqd.weight=2",))
    plan.check([plan.rows[f"table3/{name}"] for name in ("2_tfd", "4_tfd_cqd")])
    assert plan.config(plan.rows["table3/2_tfd"])["distillation"]["cqd"] is None
    assert plan.config(plan.rows["table3/4_tfd_cqd"])["distillation"]["cqd"]["weight"] == 2


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.seed=3", "--seeds"),
        ("train.stages.0=plain", "set by the rows"),
        ("teacher.model.net={}", "would undo"),
        ("train.max_itr=3", r"Did you mean train.max_iter\?"),
        ("distillation.fd.weight=2", "applies to no row of the table"),
    ],
)
def test_an_override_that_cannot_be_is_refused(override: str, complaint: str) -> None:
    plan = make_plan("table3", overrides=(override,))
    with pytest.raises(ValueError, match=complaint):
        plan.check([plan.rows["table3/2_tfd"]])


def test_rows_of_a_table_share_their_data(tmp_path: Path) -> None:
    layer = tmp_path / "half.yaml"
    layer.write_text("# Half of the data\ndata: {train: {json: half.json}}\n")
    row = Row("mine", "half", "Half of the data", (layer,))
    plan = Plan(FOLDER, Settings(CONFIGS, "synthetic"), [Table("mine", "mine", "mine", (row,))])
    with pytest.raises(ValueError, match=r"Rows half change data\.train"):
        plan.check([row])


def test_a_mistake_in_all_rows_is_said_once() -> None:
    plan = make_plan("table3", overrides=("train.max_itr=3",))
    with pytest.raises(ValueError) as error:
        plan.check([plan.rows[f"table3/{name}"] for name in ("1_baseline", "2_tfd")])
    assert str(error.value).count("Did you mean train.max_iter? (all rows)") == 1


def test_features_are_aligned_for_detr() -> None:
    plan = make_plan("table4", student="detr")
    assert plan.config(plan.rows["table4/02_fd"])["distillation"]["fd"]["align"] == "conv1x1"
    assert plan.config(plan.rows["table4/05_tfd"])["distillation"]["fd"] is None


# ---------------------------------------------------------------- what is there already


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    plan = make_plan("table3", folder=tmp_path)
    run = plan.run(plan.rows["table3/1_baseline"], 0)
    check_earlier_runs([run])
    other = run.config.copy()
    other.optimizer.lr = 0.5
    save_config(other, run.folder / "config.yaml")
    check_earlier_runs([run])  # it was refused before it began
    (run.folder / run.stage).mkdir()
    with pytest.raises(ValueError, match=r"optimizer\.lr: 0\.5 -> 0\.001"):
        check_earlier_runs([run])


def test_a_finished_run_may_have_been_moved(tmp_path: Path) -> None:
    run = make_plan("table3", folder=tmp_path)
    row = run.rows["table3/2_tfd"]
    there = make_plan("table3").run(row, 0)
    here = run.run(row, 0)
    save_config(there.config, here.folder / "config.yaml")
    here.evaluation.parent.mkdir()
    here.evaluation.touch()
    assert differing_keys(there.config, here.config)
    check_earlier_runs([here])
