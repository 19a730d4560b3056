"""Controls: plain detectors that are given as much as a student and its teacher had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ablation.test_ablation_aggregation import evaluation
from tests.ablation.test_ablation_runs import TABLES, make_plan
from v2idetr.ablation.aggregation import VideoCounts, paired_f1, video_counts
from v2idetr.ablation.dry_run import check_batches
from v2idetr.ablation.markdown import to_markdown
from v2idetr.ablation.plot import curves_to_svg
from v2idetr.ablation.run_records import check_earlier_runs
from v2idetr.ablation.runs import Plan, Run
from v2idetr.ablation.table_data import build_content
from v2idetr.ablation.tables import Equal, Table, find_tables
from v2idetr.config.load import load_run_config, save_config
from v2idetr.runs.training_log import TrainingCost, training_cost, validation_curve

CONTROLS = next(table for table in TABLES if table.key == "controls")


def plan_in(folder: Path, **settings) -> Plan:
    return make_plan("controls", "table3", folder=folder, **settings)


def row(plan: Plan, name: str):
    return plan.rows[f"controls/{name}"]


def write_metrics(run: Run, steps: int, *, frames: float, time_s: float) -> None:
    """As of a stage with two log lines and an evaluation."""
    folder = run.folder / run.stage
    folder.mkdir(parents=True, exist_ok=True)
    line = {"time_s": 9.0, "labelled_frames": frames, "processor_time_s": time_s}
    lines = [
        {"iteration": steps // 2, **line},
        {"iteration": steps // 2, "val/AP": 0.25, "val/AP50": None},
        {"iteration": steps, **line},
    ]
    text = "".join(json.dumps(entry) + "\n" for entry in lines)
    (folder / "metrics.jsonl").write_text(text)


def finish(run: Run, steps: int, *, frames: float, time_s: float) -> None:
    write_metrics(run, steps, frames=frames, time_s=time_s)
    run.evaluation.write_text(json.dumps(evaluation(0.5)))


def finish_what_decides(plan: Plan) -> None:
    v2i, pace = (plan.run(row(plan, name), 0) for name in ("4_v2i_all", "2_plain_labels"))
    assert v2i.teacher is not None
    finish(v2i.teacher, 100, frames=24.0, time_s=4.0)
    finish(v2i, 50, frames=24.0, time_s=3.0)
    finish(pace, 60, frames=24.0, time_s=2.0)


# ---------------------------------------------------------------- what is equal


@pytest.mark.parametrize(("dataset", "frames"), [("synthetic", 24), ("clinicdb", 24), ("sun", 48)])
def test_the_controls_see_as_many_labelled_frames_a_step_as_the_teacher(
    dataset: str, frames: int
) -> None:
    plan = make_plan("controls", "table3", dataset=dataset)
    for name in ("controls/2_plain_labels", "controls/6_plain_time", "table3/1b_control"):
        run = plan.run(plan.rows[name], 0)
        assert run.config.train.batch_size == frames
        assert f"train.batch_size={frames}" in run.overrides
        teacher = plan.teacher(plan.rows["table3/5_tfd_msi_cqd"], 0)
        assert teacher is not None
        clips = teacher.config.teacher.batch_size or teacher.config.train.batch_size
        assert clips * teacher.config.data.num_frames == frames


def test_the_command_line_of_a_control_gives_the_config_that_was_planned(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    finish_what_decides(plan)
    run = plan.run(row(plan, "5_plain_frames"), 0)
    words = run.arguments(plan.settings)
    layers = [Path(words[i + 1]) for i, word in enumerate(words) if word == "--layer"]
    overrides = [word for word in words if "=" in word]
    config = load_run_config(Path(words[1]), overrides, world_size=1, has_gpu=False, layers=layers)
    assert config.train.batch_size == 24 and config.train.max_iter == 150
    folder = run.folder / run.stage
    folder.mkdir(parents=True)
    save_config(config, run.folder / "config.yaml")
    check_earlier_runs([run])


def test_as_many_frames_are_those_of_the_student_and_its_teacher(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    run = plan.run(row(plan, "5_plain_frames"), 0)
    assert run.budget is not None and run.budget.steps() is None
    assert run.steps == 2000  # what the recipe says, until it is known
    finish_what_decides(plan)
    assert run.steps == 100 + 50


def test_as_much_processor_time_is_that_of_the_student_and_its_teacher(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    finish_what_decides(plan)
    run = plan.run(row(plan, "6_plain_time"), 0)
    assert run.steps == (100 * 4 + 50 * 3) / 2
    assert f"train.max_iter={run.steps}" in run.arguments(plan.settings)


def test_a_length_that_has_changed_is_noticed(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    finish_what_decides(plan)
    run = plan.run(row(plan, "5_plain_frames"), 0)
    (run.folder / run.stage).mkdir(parents=True)
    config = run.config.copy()
    config.train.max_iter = 149
    save_config(config, run.folder / "config.yaml")
    with pytest.raises(ValueError, match=r"train\.max_iter: 149 -> 150"):
        check_earlier_runs([run])


def test_runs_come_after_those_that_decide_their_length(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    alone = plan.runs([row(plan, "6_plain_time")], [0])
    assert [(run.row.name, run.stage) for run in alone] == [
        ("3_v2i", "teacher"),
        ("4_v2i_all", "student"),
        ("2_plain_labels", "plain"),
        ("6_plain_time", "plain"),
    ]
    names = [run.name for run in alone]
    for position, run in enumerate(alone):
        assert {needed.name for needed in run.needs} <= set(names[:position])
    assert {needed.row.name for needed in alone[-1].needs} == {
        "3_v2i",
        "4_v2i_all",
        "2_plain_labels",
    }


def test_controls_of_frames_and_of_time_are_two_runs(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    folders = {plan.run(r, 0).folder for r in CONTROLS.rows}
    assert len(folders) == len(CONTROLS.rows) == 6


def test_overrides_reach_the_recipe_that_all_rows_share(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, overrides=("train.max_iter=700", "train.patience=2"))
    assert plan.run(row(plan, "3_v2i"), 0).steps == 700
    assert plan.config(row(plan, "1_plain"))["train"]["patience"] == 2
    assert plan.config(row(plan, "6_plain_time"))["train"]["patience"] == 0  # its own


def test_what_a_given_teacher_has_cost_is_not_known(tmp_path: Path) -> None:
    weights = tmp_path / "t.pth"
    weights.touch()
    plan = plan_in(tmp_path, overrides=(f"teacher.checkpoint={weights}",))
    with pytest.raises(ValueError, match="Rows 5_plain_frames, 6_plain_time are matched"):
        plan.check(CONTROLS.rows)
    plan.check(CONTROLS.rows[:4])


def test_a_length_whose_reason_is_gone_is_named(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    run = plan.run(row(plan, "5_plain_frames"), 0)
    (run.folder / run.stage).mkdir(parents=True)
    save_config(run.config, run.folder / "config.yaml")
    with pytest.raises(ValueError, match=r"as long as .*controls/4_v2i_all.* are missing"):
        check_earlier_runs([run])


def test_a_step_that_asks_for_more_frames_than_there_are_is_refused(tmp_path: Path) -> None:
    class Split:
        records = [{}] * 23

    plan = plan_in(tmp_path)
    with pytest.raises(ValueError, match=r"2_plain_labels .* 24, but data\.train has 23"):
        check_batches(plan.runs([row(plan, "2_plain_labels")], [0]), {"train": Split})
    check_batches(plan.runs([row(plan, "1_plain")], [0]), {"train": Split})


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize(
    "entry",
    [
        "1_plian: {what: labels}",
        "1_plain: {what: label}",
        "1_plain: {what: frames}",
        "1_plain: {what: frames, to: 2_other, pace: 1_plain}",
        "1_plain: {what: labels, to: 1_plain, pace: 1_plain}",
        "1_plain: {what: frames, to: 1_plain, pace: 1_plain}",
        "1_plain: labels",
        "1_plain: {to: 1_plain}",
    ],
)
def test_a_wrong_entry_is_refused_with_the_file(tmp_path: Path, entry: str) -> None:
    folder = tmp_path / "ablations" / "mine"
    folder.mkdir(parents=True)
    (folder / "1_plain.yaml").write_text("# Plain\ntrain: {stages: [plain]}\n")
    (folder / "_equal.yaml").write_text(entry)
    with pytest.raises(ValueError, match=r"_equal\.yaml: 1_pl.*\(1_plain\)"):
        find_tables(tmp_path)


def test_files_with_an_underscore_are_no_rows() -> None:
    assert [r.name for r in CONTROLS.rows][:2] == ["1_plain", "2_plain_labels"]
    assert all(r.layers[0].name == "_recipe.yaml" for r in CONTROLS.rows)
    table3 = next(table for table in TABLES if table.key == "table3")
    assert table3.rows[1].equal == Equal("labels") and table3.numbers["1b_control"] == "1b"


# ---------------------------------------------------------------- costs and curves


def test_costs_are_sums_over_steps_without_evaluations(tmp_path: Path) -> None:
    run = plan_in(tmp_path).run(row(plan_in(tmp_path), "1_plain"), 0)
    write_metrics(run, 10, frames=8.0, time_s=0.5)
    metrics = run.folder / run.stage / "metrics.jsonl"
    assert training_cost(metrics) == TrainingCost(10, 80.0, 5.0)
    assert validation_curve(metrics, "AP") == [(5, 25.0)]
    assert validation_curve(metrics, "AP50") == []


def test_metrics_without_costs_are_refused_with_the_file(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"iteration": 20, "time_s": 1.0}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl .*labelled_frames is missing"):
        training_cost(metrics)


def content_of(plan: Plan, table: Table = CONTROLS) -> dict:
    facts = {"smoke": False, "file": "controls", "command": "x", "data": {}}
    return build_content(table, plan, [0], facts)


def test_the_table_says_what_each_row_cost_with_its_teacher(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    finish_what_decides(plan)
    content = content_of(plan)
    costs = {entry["name"]: entry["cost"] for entry in content["rows"]}
    assert costs["4_v2i_all"] == {
        "0": {"steps": 150, "labelled_frames": 3600.0, "processor_time_s": 550.0}
    }
    assert costs["1_plain"] == {}
    text = to_markdown(content)
    line = next(line for line in text.splitlines() if "every frame of a clip" in line)
    assert [cell.strip() for cell in line.split("|")[-4:-1]] == ["150", "3.6", "9.2"]
    assert "controls_curves.svg" in text
    svg = curves_to_svg(content)
    assert "V2I, every frame of a clip" in svg and svg == curves_to_svg(content_of(plan))


def test_tables_iii_and_iv_have_a_column_for_the_control(tmp_path: Path) -> None:
    plan = make_plan("table3", "table4", folder=tmp_path)
    names = ("1b_control", "2_tfd", "5_tfd_msi_cqd")
    tables = {table.key: table for table in TABLES}
    without = to_markdown(content_of(plan, tables["table4"]))
    assert "to control" not in without and "add it with `--table III --rows 1b`" in without
    for name in names:
        finish(plan.run(plan.rows[f"table3/{name}"], 0), 10, frames=8.0, time_s=1.0)
    content = content_of(plan, tables["table3"])
    entry = next(entry for entry in content["rows"] if entry["name"] == "5_tfd_msi_cqd")
    assert entry["to_control"]["all tests"]["AP50"]["mean"] == pytest.approx(0.0)
    control = next(entry for entry in content["rows"] if entry["name"] == "1b_control")
    assert not control["to_control"]
    assert "Δ AP50 to control" in to_markdown(content)
    assert "Δ AP50 to control" in to_markdown(content_of(plan, tables["table4"]))


def per_video(*counts: tuple[int, int, int]) -> VideoCounts:
    return {"iou50": {("test", number): count for number, count in enumerate(counts)}}


def test_f1_is_compared_over_videos_with_the_counts_of_the_seeds_that_both_have() -> None:
    ours = {0: per_video((4, 0, 1), (2, 1, 3)), 1: per_video((5, 0, 0), (3, 1, 2))}
    theirs = {0: per_video((3, 0, 2), (1, 1, 4)), 2: per_video((0, 9, 9), (0, 9, 9))}
    found = paired_f1(ours, theirs, "iou50")
    assert found is not None
    assert found["difference"] == pytest.approx(100 * (12 / 17 - 8 / 15))
    assert found["low"] <= found["difference"] <= found["high"]
    assert paired_f1(ours, {5: theirs[0]}, "iou50") is None
    assert paired_f1(ours, theirs, "endovis_center") is None


def test_counts_of_videos_are_those_of_the_pooled_test_splits() -> None:
    result = evaluation(0.5)
    video = {"split": "easy", "video_id": 3, "rules": {"iou50": {"tp": 2, "fp": 1, "fn": 0}}}
    result["all_tests"]["per_video"] = [video]
    assert video_counts(result) == {"iou50": {("easy", 3): (2, 1, 0)}}


def test_the_table_of_controls_has_the_intervals(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    finish_what_decides(plan)
    finish(plan.run(row(plan, "1_plain"), 0), 60, frames=8.0, time_s=1.0)
    for name, count in (("1_plain", 3), ("4_v2i_all", 5)):
        run = plan.run(row(plan, name), 0)
        result = evaluation(0.5)
        rules = {"iou50": {"tp": count, "fp": 1, "fn": 5 - count}}
        result["all_tests"]["per_video"] = [
            {"split": "easy", "video_id": number, "rules": rules} for number in range(4)
        ]
        run.evaluation.write_text(json.dumps(result))
    text = to_markdown(content_of(plan))
    assert "| Δ F1 iou50, over videos |" in text.replace("  ", " ").replace("  ", " ")
    assert "+24.2 (+24.2 to +24.2)" in text
