"""The numbers of a table, by hand; and how they are shown."""

from __future__ import annotations

import itertools
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from v2idetr.ablation.aggregation import Spread, read_result
from v2idetr.ablation.folder import claim, claim_data, file_name, write_table
from v2idetr.ablation.markdown import form, to_markdown
from v2idetr.ablation.plot import draw, to_svg
from v2idetr.ablation.row_configs import Settings
from v2idetr.ablation.runs import Plan, Run
from v2idetr.ablation.table_data import build_content
from v2idetr.ablation.tables import Table, find_tables
from v2idetr.config.yaml_text import parse_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TABLES = find_tables(CONFIGS)
SEEDS = [0, 1, 2]
AP50 = {"1_baseline": [0.6, 0.7, 0.5], "2_tfd": [0.7, 0.75, 0.6], "5_tfd_msi_cqd": [0.8]}
FACTS = {"smoke": False, "file": "table_III", "command": "ablate", "data": {}}
COST = {"parameters": 4_250_000, "flops": 1.04e9, "frames_per_detection": 1, "machine": "a CPU"}


def metrics(ap50: float, lesions: int = 4, frames: int = 8) -> dict[str, Any]:
    rule = {"threshold": 0.5, "precision": ap50, "recall": None, "f1": ap50 / 2}
    return {
        "videos": 2,
        "frames": frames,
        "lesions": lesions,
        "lesion_free_frames": frames - lesions,
        "coco": {"AP": ap50 / 2, "AP50": ap50, "AP75": None},
        "rules": {"endovis_center": rule, "iou50": rule},
        "groups": {},
    }


def evaluation(ap50: float, easy_frames: int = 8) -> dict[str, Any]:
    easy = metrics(ap50, frames=easy_frames)
    tests = {"easy": easy, "hard": metrics(ap50), "negative": metrics(0.0, lesions=0)}
    return {
        "tests": tests,
        "all_tests": metrics(ap50),
        "val": metrics(ap50),
        "thresholds": {},
        "cost": COST | {"frames_per_second": 100 * ap50},
        "look_ahead": 2,
    }


def write_evaluation(path: Path, ap50: float, easy_frames: int = 8) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(evaluation(ap50, easy_frames)))


def begin_table_3(folder: Path) -> tuple[Table, Plan]:
    """With a baseline that has one result."""
    table = next(table for table in TABLES if table.key == "table3")
    plan = Plan(folder, Settings(CONFIGS, "synthetic"), [table])
    write_evaluation(plan.run(table.rows[0], 0).evaluation, 0.6)
    return table, plan


def write_record(run: Run, *starts: dict[str, Any]) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "run.json").write_text(json.dumps({"starts": starts}))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Table III of which two rows have three seeds and one has one; a teacher has one."""
    folder = tmp_path_factory.mktemp("ablation")
    table = next(table for table in TABLES if table.key == "table3")
    plan = Plan(folder, Settings(CONFIGS, "synthetic"), [table])
    for row in table.rows:
        for seed, value in enumerate(AP50.get(row.name, [])):
            write_evaluation(plan.run(row, seed).evaluation, value)
    teacher = plan.teacher(table.rows[2], 0)
    assert teacher is not None
    write_evaluation(teacher.evaluation, 0.9)
    return build_content(table, plan, SEEDS, FACTS)


def row(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in content["rows"] if row["name"] == name)


# ---------------------------------------------------------------- numbers


def test_mean_and_sample_standard_deviation() -> None:
    spread = Spread({0: 60.0, 1: 70.0, 2: 50.0})
    assert (spread.mean, spread.sd, spread.count) == (60.0, 10.0, 3)


def test_one_seed_has_no_spread_and_none_no_mean() -> None:
    assert (Spread({0: 60.0}).mean, Spread({0: 60.0}).sd) == (60.0, None)
    assert Spread({}).mean is None


def test_differences_are_taken_seed_by_seed() -> None:
    difference = Spread({0: 70.0, 1: 75.0, 5: 1.0}).minus(Spread({0: 60.0, 1: 70.0, 2: 0.0}))
    assert difference.values == {0: 10.0, 1: 5.0}
    assert difference.sd == pytest.approx(5 / math.sqrt(2))


def test_a_row_has_its_metrics_and_its_difference_to_the_baseline(content) -> None:
    tfd = row(content, "2_tfd")
    mine = tfd["metrics"]["all tests"]["AP50"]
    assert mine["mean"] == pytest.approx((70 + 75 + 60) / 3)
    assert mine["seeds"] == pytest.approx({"0": 70, "1": 75, "2": 60})
    difference = tfd["difference"]["all tests"]["AP50"]
    assert difference["seeds"] == pytest.approx({"0": 10, "1": 5, "2": 10})
    assert difference["mean"] == pytest.approx(25 / 3)


def test_a_row_with_fewer_seeds_is_compared_where_it_has_them(content) -> None:
    method = row(content, "5_tfd_msi_cqd")
    assert method["seeds"] == [0]
    assert method["difference"]["all tests"]["AP50"]["seeds"] == pytest.approx({"0": 20})


def test_teachers_stand_below_with_the_rows_that_they_teach(content) -> None:
    first, second = content["teachers"]
    assert first["teaches"] == ["2_tfd", "4_tfd_cqd"]
    assert second["teaches"] == ["3_tfd_msi", "5_tfd_msi_cqd"]
    assert first["difference"]["all tests"]["AP50"]["mean"] == pytest.approx(30)
    assert second["metrics"]["all tests"]["AP50"]["mean"] is None


def test_switches_are_what_the_config_has_on(content) -> None:
    on = {r["name"]: [s for s, v in r["switches"].items() if v] for r in content["rows"]}
    assert on == {
        "1_baseline": [],
        "1b_control": [],
        "2_tfd": ["TFD"],
        "3_tfd_msi": ["TFD", "MSI"],
        "4_tfd_cqd": ["TFD", "CQD"],
        "5_tfd_msi_cqd": ["TFD", "MSI", "CQD"],
    }


def test_the_pooled_test_splits_come_first(content) -> None:
    assert [b["title"] for b in content["blocks"]] == ["all tests", "easy", "hard", "negative"]


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation\.json: is not JSON"):
        read_result(tmp_path / "evaluation.json")


@pytest.mark.parametrize(("index", "seed"), [(0, 1), (1, 0)])
def test_test_splits_of_different_size_are_not_put_into_one_table(
    index: int, seed: int, tmp_path: Path
) -> None:
    table, plan = begin_table_3(tmp_path)
    run = plan.run(table.rows[index], seed)
    write_evaluation(run.evaluation, 0.6, easy_frames=6)
    with pytest.raises(ValueError, match=r"different data: easy has .*'frames': 6"):
        build_content(table, plan, SEEDS, FACTS)


def test_runs_of_other_data_are_not_put_into_a_table(tmp_path: Path) -> None:
    table, plan = begin_table_3(tmp_path)
    run = plan.run(table.rows[0], 0)
    data = {name: {"sha256": name} for name in ("train", "val", "test/easy")}
    write_record(run, {"time": "", "git_commit": "", "data": data})
    build_content(table, plan, SEEDS, {**FACTS, "data": data})
    other = {**data, "test/easy": {"sha256": "other"}}
    with pytest.raises(ValueError, match=r"1_baseline was made with other data: .* of test/easy"):
        build_content(table, plan, SEEDS, {**FACTS, "data": other})


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [(83.84, 1.26, "83.8 ± 1.3"), (5.0, None, "5.0"), (None, None, "-")],
)
def test_a_figure_is_shown_with_its_spread(mean, sd, text: str) -> None:
    assert form({"mean": mean, "sd": sd}) == text


def test_a_difference_is_shown_with_its_sign() -> None:
    assert form({"mean": 1.25, "sd": 0.5}, signed=True) == "+1.2 ± 0.5"
    assert form({"mean": -0.04, "sd": None}, signed=True) == "+0.0"


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip().replace("\u00a0", " ") for cell in line.strip("|").split("|")]


def test_a_line_has_ticks_metrics_and_the_papers(content) -> None:
    text = to_markdown(content)
    shown = dict(zip(cells(text, "| #"), cells(text, "| 2 "), strict=True))
    assert [shown[s] for s in ("TFD", "MSI", "CQD", "n")] == ["✓", "", "", "3"]
    assert (shown["AP50"], shown["Δ AP50"]) == ("68.3 ± 7.6", "+8.3 ± 2.9")
    assert shown["R"] == "-"
    assert [shown[f"paper hard {key}"] for key in ("P", "F1", "Δ F1")] == ["85.1", "78.3", "+3.9"]


def test_the_papers_numbers_stand_beside_ours_of_the_same_kind(content) -> None:
    columns = cells(to_markdown(content), "| #")
    at = columns.index("Δ F1")
    assert columns[at - 3 : at + 2] == ["P", "R", "F1", "Δ F1", "paper hard P"]
    assert columns[-1] == "F1 iou50"  # of further rules F1 alone


def test_a_comparison_of_detectors_shows_all_metrics_and_what_a_detection_costs(
    tmp_path: Path,
) -> None:
    table = next(table for table in TABLES if table.key == "table1")
    plan = Plan(tmp_path, Settings(CONFIGS, "synthetic"), [table])
    row = next(row for row in table.rows if row.name == "detr")
    for seed, value in enumerate((0.6, 0.9, 0.7)):
        write_evaluation(plan.run(row, seed).evaluation, value)
    text = to_markdown(build_content(table, plan, SEEDS, FACTS))
    shown = dict(zip(cells(text, "| row"), cells(text, "| DETR "), strict=True))
    assert {"AP50", "AP", "AP75", "P", "R", "F1", "P iou50", "R iou50", "F1 iou50"} < shown.keys()
    costs = ("params, M", "GFLOPs", "frames/s", "frames seen", "look-ahead, frames")
    assert [shown[key] for key in costs] == ["4.2", "1.0", "70.0", "1", "2"]
    assert [shown[f"paper {key}"] for key in ("frames/s", "params, M", "hard F1")] == [
        "30",
        "41",
        "71.7",
    ]
    assert "Frames/s were measured at the end of each run, beside others (a CPU)" in text


def test_rows_are_named_by_numbers_only_where_the_table_shows_them(tmp_path: Path) -> None:
    """The layers of choices/ are 0_default.yaml and others without a number."""
    table = next(table for table in TABLES if table.key == "choices")
    plan = Plan(tmp_path, Settings(CONFIGS, "synthetic"), [table])
    path = write_table(tmp_path, build_content(table, plan, [0], {**FACTS, "file": "choices"}))
    text = path.read_text()
    assert "difference to the row Defaults" in text and "| #" not in text
    content = json.loads(path.with_suffix(".json").read_text())
    assert {row["number"] for row in content["rows"]} == {""}
    assert "teacher of MSI at the two deep levels" in [t["title"] for t in content["teachers"]]


def test_groups_of_videos_are_in_the_file_of_all_values_alone(tmp_path: Path) -> None:
    table, plan = begin_table_3(tmp_path)
    easy = {**metrics(0.6), "groups": {"seen": metrics(0.7), "unseen": metrics(0.5)}}
    result = {"tests": {"easy": easy}, "all_tests": None, "val": easy}
    plan.run(table.rows[0], 0).evaluation.write_text(json.dumps(result))
    content = build_content(table, plan, [0], FACTS)
    assert [block["title"] for block in content["blocks"]] == [
        "easy",
        "easy / seen",
        "easy / unseen",
    ]
    assert to_markdown(content).count("\n## ") == len(["Easy", "Notes", "Runs"])


def test_a_grid_is_listed_row_by_row_only_once(tmp_path: Path) -> None:
    table = next(table for table in TABLES if table.key == "fig5a")
    plan = Plan(tmp_path, Settings(CONFIGS, "synthetic"), [table])
    write_evaluation(plan.run(table.rows[2], 0).evaluation, 0.6)
    content = build_content(table, plan, [0], {**FACTS, "file": "fig_5a"})
    pooled, easy = to_markdown(content).split("\n## ")[1:3]
    assert "| lambda_bk = 0.1, lambda_qe = 1.0 " in pooled
    assert "lambda_bk =" not in easy and "| 0.1" in easy


def test_one_seed_is_said_to_be_one(content) -> None:
    assert "± sample" in to_markdown(content)
    assert "±" not in to_markdown({**content, "seeds": [0]}).partition("\n## ")[0]


def test_what_is_missing_is_said(content) -> None:
    text = to_markdown(content)
    assert "7 of 18 results are available" in text
    assert cells(text, "| 3 ")[6] == "-"
    assert "negative: without lesions" in text


def test_numbers_of_the_paper_stand_beside_their_own_test_set(content) -> None:
    text = to_markdown({**content, "dataset": "sun"})
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    assert ["paper" in parts[title] for title in ("All tests", "Easy", "Hard")] == [
        False,
        False,
        True,
    ]


def test_commits_are_those_of_the_finished_runs(tmp_path: Path) -> None:
    table, plan = begin_table_3(tmp_path)
    commits = {0: ["aaa", "aaa+"], 1: ["aaa"], 2: ["of a run that goes on"]}
    write_evaluation(plan.run(table.rows[0], 1).evaluation, 0.6)
    for seed, names in commits.items():
        starts = [{"time": f"{seed}", "git_commit": name, "data": {}} for name in names]
        write_record(plan.run(table.rows[0], seed), *starts)
    content = build_content(table, plan, SEEDS, FACTS)
    assert content["commits"] == ["aaa", "aaa+"]
    said = "**Runs of several commits: aaa, aaa+ (+: with local changes)."
    assert said in to_markdown(content)


def test_a_table_of_one_commit_is_shown_without_a_warning(content) -> None:
    text = to_markdown({**content, "commits": ["0123456789abcdef"]})
    assert "- Commit of the runs: 0123456789ab.\n" in text


def test_a_smoke_test_says_that_it_means_nothing(content, tmp_path: Path) -> None:
    write_table(tmp_path, {**content, "smoke": True})
    for ending in ("md", "svg"):
        assert "numbers mean nothing" in (tmp_path / f"table_III.{ending}").read_text()
    assert json.loads((tmp_path / "table_III.json").read_text())["smoke"] is True


def test_the_plot_has_a_dot_a_seed_and_the_baselines_line(content) -> None:
    for axes, mean in zip(draw(content).axes, (60.0, 30.0), strict=True):
        marks = [line.get_marker() for line in axes.lines]
        assert marks.count("o") == 4
        seeds = [line for line in axes.lines if line.get_marker() == "."]
        assert [len(line.get_xdata()) for line in seeds] == [3, 3]  # one is its own mean
        (base,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert base.get_xdata() == pytest.approx([mean, mean])


def test_a_plots_axis_ends_at_100_percent(tmp_path: Path) -> None:
    table, plan = begin_table_3(tmp_path)
    write_evaluation(plan.run(table.rows[0], 1).evaluation, 1.0)
    low, high = draw(build_content(table, plan, SEEDS, FACTS)).axes[0].get_xlim()
    assert low < 80 - 100 * math.sqrt(0.08)  # mean and standard deviation of 60 and 100
    assert high == 100


def test_nearly_equal_values_look_so_in_a_plot(tmp_path: Path) -> None:
    table, plan = begin_table_3(tmp_path)
    write_evaluation(plan.run(table.rows[0], 1).evaluation, 0.601)
    low, high = draw(build_content(table, plan, SEEDS, FACTS)).axes[0].get_xlim()
    assert high - low == pytest.approx(2.5)


def test_the_same_table_is_the_same_plot(content) -> None:
    assert to_svg(content) == to_svg(content)


@pytest.mark.parametrize("key", ["table3", "choices", "table1"])
def test_titles_of_the_plots_rows_have_room(key: str, tmp_path: Path) -> None:
    table = next(table for table in TABLES if table.key == key)
    plan = Plan(tmp_path, Settings(CONFIGS, "synthetic"), [table])
    write_evaluation(plan.run(table.rows[0], 0).evaluation, 0.6)
    figure = draw(build_content(table, plan, [0], {**FACTS, "file": key}))
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    places = [label.get_window_extent() for label in labels]
    assert len(labels) >= len(table.rows)
    assert all(place.x0 > 0 for place in places)
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(places))
    assert figure.axes[0].get_window_extent().width > 200


def test_a_table_without_any_result_can_be_written(tmp_path: Path) -> None:
    table = next(table for table in TABLES if table.key == "fig5b")
    plan = Plan(tmp_path, Settings(CONFIGS, "synthetic"), [table])
    path = write_table(tmp_path, build_content(table, plan, [0], {**FACTS, "file": "fig_5b"}))
    assert "No run has finished yet" in path.read_text()


# ---------------------------------------------------------------- the paper, the folder


def test_the_papers_numbers_are_of_rows_that_there_are() -> None:
    paper = parse_yaml((CONFIGS / "ablations" / "paper.yaml").read_text())
    names = {table.key: {row.name for row in table.rows} for table in TABLES}
    for key, entry in paper["tables"].items():
        for part in entry["parts"]:
            assert part["rows"].keys() <= names[key] | {"teacher"}
            assert all(len(row) == len(part["columns"]) for row in part["rows"].values())


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    base = Plan(tmp_path, Settings(CONFIGS, "synthetic"), []).base()
    settings = {"dataset": "synthetic", "overrides": [], "smoke": False}
    claim(tmp_path, settings, base)
    claim(tmp_path, settings, base)
    with pytest.raises(ValueError, match="smoke: False -> True"):
        claim(tmp_path, {**settings, "smoke": True}, base)
    base.train.max_iter = 9
    with pytest.raises(ValueError, match=r"train\.max_iter: 400 -> 9"):
        claim(tmp_path, settings, base)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (["a=1", "b=2"], ["b=2", "a=1"], True),
        (["a=1", "b=2"], ["a=1", "b=3"], False),
        (["a=1", "a=2"], ["a=2", "a=1"], False),
        (["a={}", "a.b=2"], ["a.b=2", "a={}"], False),
    ],
)
def test_the_order_of_overrides_counts_only_where_they_meet(
    one: list[str], other: list[str], same: bool, tmp_path: Path
) -> None:
    base = Plan(tmp_path, Settings(CONFIGS, "synthetic"), []).base()
    claim(tmp_path, {"overrides": one}, base)
    refused = nullcontext() if same else pytest.raises(ValueError, match="overrides")
    with refused:
        claim(tmp_path, {"overrides": other}, base)


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({"train": {"sha256": "b"}, "test/easy": {"sha256": "e"}}, "of train have"),
        ({"train": {"sha256": "a"}}, "of test/easy have"),
    ],
)
def test_a_folder_of_other_data_is_refused(now: dict, named: str, tmp_path: Path) -> None:
    base = Plan(tmp_path, Settings(CONFIGS, "synthetic"), []).base()
    data = {"train": {"sha256": "a"}, "test/easy": {"sha256": "e"}}
    for _ in range(2):
        claim(tmp_path, {"overrides": []}, base)
        claim_data(tmp_path, data)
    with pytest.raises(ValueError, match=named):
        claim_data(tmp_path, now)


@pytest.mark.parametrize(
    ("label", "name"), [("III", "table_III"), ("5a", "fig_5a"), ("choices", "choices")]
)
def test_files_are_named_after_the_table(label: str, name: str) -> None:
    assert file_name(label) == name
