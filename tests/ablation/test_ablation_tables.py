"""Tables and rows are found in the folders of layers, and by what people call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from v2idetr.ablation.row_configs import Settings, config_file_of
from v2idetr.ablation.tables import (
    DATASETS,
    DETECTORS,
    EQUAL,
    Table,
    choose_rows,
    choose_table,
    find_tables,
    number,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TABLES = find_tables(CONFIGS)


def table(key: str) -> Table:
    return next(table for table in TABLES if table.key == key)


def test_every_layer_is_in_a_row() -> None:
    layers = {layer for table in TABLES for row in table.rows for layer in row.layers}
    files = set((CONFIGS / "ablations").glob("*/**/*.yaml"))
    assert layers == {path for path in files if path.name != EQUAL}


def test_no_two_rows_have_one_name() -> None:
    keys = [row.key for table in TABLES for row in table.rows]
    assert len(set(keys)) == len(keys)


def test_a_row_is_called_by_the_first_line_of_its_layer() -> None:
    assert [row.title for row in table("table3").rows] == [
        "Baseline",
        "Baseline, as many labelled frames a step as the teacher",
        "TFD",
        "TFD, MSI",
        "TFD, CQD",
        "TFD, MSI, CQD",
    ]


def test_a_figure_of_two_weights_is_a_grid_with_the_baseline_before_it() -> None:
    baseline, *grid = table("fig5a").rows
    assert baseline.layers[0].stem == "1_baseline"
    assert len(grid) == 5 * 4 and all(len(row.layers) == 2 for row in grid)
    assert [row.layers[1].stem for row in grid[:4]] == ["1.0", "2.0", "5.0", "10.0"]


def test_rows_are_compared_with_the_baseline_of_their_table() -> None:
    assert {row.reference for row in table("table4").rows} == {"table4/01_baseline"}
    assert {row.reference for row in table("fig5b").rows} == {"fig5b/baseline"}
    assert {row.reference for row in table("choices").rows} == {"choices/0_default"}


def test_a_student_of_table_1_is_compared_with_the_plain_detector_of_its_kind() -> None:
    references = {row.name: row.reference for row in table("table1").rows}
    assert references["sam_detr_v2i"] == references["sam_detr"] == "table1/sam_detr"


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_detector_of_tables_1_and_2_has_a_config_for_every_data_set(dataset: str) -> None:
    settings = Settings(CONFIGS, dataset)
    assert all(config_file_of(row, settings).is_file() for row in table("table1").rows)


@pytest.mark.parametrize(
    "row",
    [
        "{title: Mine}",
        "{title: Mine, student: yolo}",
        "{title: Mine, config: mine.yaml}",
        '{title: Mine, config: "{dataset}.yaml", against: nobody}',
        '{title: Mine, config: "{dataset}.yaml", colour: red}',
    ],
)
def test_a_detector_that_cannot_be_a_row_is_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / DETECTORS).write_text(f"mine: {row}\n")
    with pytest.raises(ValueError, match=r"detectors\.yaml: mine: .* must have a title"):
        find_tables(tmp_path)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("III", "table3"),
        ("3", "table3"),
        ("table3", "table3"),
        ("Table III", "table3"),
        ("5a", "fig5a"),
        ("Fig. 5B", "fig5b"),
        ("choices", "choices"),
        ("1", "table1"),
    ],
)
def test_a_table_has_several_names(name: str, key: str) -> None:
    assert choose_table(TABLES, name).key == key


def test_an_unknown_table_is_refused_with_a_list() -> None:
    with pytest.raises(ValueError, match=r"--table V: .*III, IV, 5a, 5b, choices, controls, I, II"):
        choose_table(TABLES, "V")


def test_rows_are_chosen_by_name_or_number_in_the_order_of_the_table() -> None:
    rows = choose_rows(table("table3"), ["5", "2_tfd"])
    assert [row.name for row in rows] == ["2_tfd", "5_tfd_msi_cqd"]
    assert choose_rows(table("table3"), []) == list(table("table3").rows)


@pytest.mark.parametrize(
    ("name", "said"),
    [("02b_fd_mse", "2b"), ("0_default", "0"), ("10_cqd_half", "10"), ("0.1", "0.1"), ("a", "a")],
)
def test_a_row_has_its_number_without_zeros_before_it(name: str, said: str) -> None:
    assert number(name) == said


def test_an_unknown_row_is_refused_with_a_suggestion_and_a_list() -> None:
    with pytest.raises(ValueError, match=r"2_tdf \(did you mean 2_tfd\?\).* 1_baseline, 1b_"):
        choose_rows(table("table3"), ["2_tdf"])


def test_a_folder_of_ones_own_is_a_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        layer = tmp_path / "ablations" / "mine" / f"{name}.yaml"
        layer.parent.mkdir(parents=True, exist_ok=True)
        layer.write_text(f"# Row {name}\ntrain: {{seed: 1}}\n")
    mine = choose_table(find_tables(tmp_path), "mine")
    assert [(row.title, row.reference) for row in mine.rows] == [
        ("Row a", "mine/a"),
        ("Row b", "mine/a"),
    ]


@pytest.mark.parametrize(
    "folder", [".ipynb_checkpoints", "empty", "mine/.ipynb_checkpoints", "mine/empty"]
)
def test_hidden_and_empty_folders_are_no_tables(tmp_path: Path, folder: str) -> None:
    for name in ("mine", folder):
        (tmp_path / "ablations" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "ablations" / "mine" / "a.yaml").write_text("# Row a\n")
    if "empty" not in folder:
        (tmp_path / "ablations" / folder / "a-checkpoint.yaml").write_text("# Row a\n")
    mine, *detectors = find_tables(tmp_path)
    assert [row.name for row in mine.rows] == ["a"]
    assert [table.key for table in detectors] == ["table1", "table2"]
