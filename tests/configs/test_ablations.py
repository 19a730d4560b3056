"""Every row of the ablations fits on every data set, and changes what it says and nothing else."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from v2idetr.ablation.tables import EQUAL
from v2idetr.config.files import ConfigFile
from v2idetr.config.keys import select
from v2idetr.config.load import build, load_plain_run_config, load_run_config
from v2idetr.config.merge import merge
from v2idetr.config.yaml_text import parse_yaml

LOSSES = ("tfd", "fd", "ed", "cqd", "qd")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ABLATIONS = CONFIGS / "ablations"
LAYERS = (path for path in ABLATIONS.glob("*/**/*.yaml") if path.name != EQUAL)
ROWS = sorted(path.relative_to(ABLATIONS).as_posix() for path in LAYERS)
DATA = ["sun", "buv", "clinicdb", "synthetic"]


@functools.cache
def file(data: str) -> ConfigFile:
    return ConfigFile(CONFIGS / f"v2i_{data}.yaml")


@functools.cache
def load(data: str, *rows: str) -> DictConfig:
    layers = [ABLATIONS / row for row in rows]
    return load_run_config(file(data), [], world_size=1, has_gpu=False, layers=layers)


@functools.cache
def plain(data: str, *rows: str) -> dict[str, Any]:
    layers = [ABLATIONS / row for row in rows]
    return load_plain_run_config(file(data), [], world_size=1, has_gpu=False, layers=layers)


def read(row: str) -> dict[str, Any]:
    return parse_yaml((ABLATIONS / row).read_text())


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    if not isinstance(value, dict):
        return {key: value}
    parts = (leaves(item, f"{key}.{name}" if key else name) for name, item in value.items())
    return {name: item for part in parts for name, item in part.items()}


def folder(name: str) -> list[str]:
    return [row for row in ROWS if row.startswith(f"{name}/")]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("row", ROWS)
def test_a_row_changes_what_it_says_and_nothing_else(row: str, data: str) -> None:
    base, problems = plain(data), []
    changed = merge(base, read(row), source=row, problems=problems)
    assert not problems
    says, before, after = leaves(read(row)), leaves(base), leaves(changed)
    replaced = {key.removesuffix("._target_"): None for key in says if key.endswith("._target_")}
    assert {key: after[key] for key in says} == says
    for key in before.keys() | after.keys():
        said = any(
            f"{key}.".startswith(f"{k}.") or f"{k}.".startswith(f"{key}.") for k in says | replaced
        )
        assert said or before.get(key) == after.get(key), key


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_a_whole_run_on_every_data_set(row: str, data: str) -> None:
    config = plain(data, row)
    for key, value in leaves(read(row)).items():
        reference = isinstance(value, str) and value.startswith("${")
        assert select(config, key) == (select(config, value[2:-1]) if reference else value), key


@pytest.mark.parametrize("row", ROWS)
def test_a_row_begins_with_its_name_in_words(row: str) -> None:
    first = (ABLATIONS / row).read_text().splitlines()[0]
    assert first.startswith("# ") and len(first) > 3


@pytest.mark.parametrize("row", ROWS)
def test_the_losses_of_a_row_can_be_built_and_stand_below_their_keys(row: str) -> None:
    config = load("sun", row)
    for name in LOSSES:
        if config.distillation[name] is not None:
            assert build(config, f"distillation.{name}").key == name


@pytest.mark.parametrize(
    "name", ["table3", "table4", "fig5a/lambda_bk", "fig5a/lambda_qe", "fig5b", "choices"]
)
def test_no_two_rows_are_the_same_run(name: str) -> None:
    assert folder(name)
    rows = [row for row in folder(name) if "1b_control" not in row]  # its batch is ablate.py's
    for one, other in itertools.combinations(rows, 2):
        assert load("sun", one) != load("sun", other), (one, other)


# ------------------------------------------------------------------------- the paper's tables


def test_the_tables_have_the_rows_of_the_paper() -> None:
    numbers = [row.partition("/")[2].partition("_")[0] for row in folder("table4")]
    ours = [number for number in numbers if number.endswith("b")]
    assert [int(n) for n in numbers if n not in ours] == list(range(1, 12))
    numbers = [row.partition("/")[2].partition("_")[0] for row in folder("table3")]
    assert numbers == ["1", "1b", "2", "3", "4", "5"]


def test_the_last_row_of_table_3_is_the_method() -> None:
    (row,) = [row for row in folder("table3") if "/5_" in row]
    assert set(leaves(read(row))) == {"train.stages"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("table3/1_baseline.yaml", "table4/01_baseline.yaml"),
        ("table3/2_tfd.yaml", "table4/05_tfd.yaml"),
    ],
)
def test_the_tables_meet_where_the_papers_do(first: str, second: str) -> None:
    assert load("sun", first) == load("sun", second)


def test_one_teacher_without_msi_serves_table_4() -> None:
    taught = [row for row in folder("table4") if "baseline" not in row]
    teachers = [load("sun", row).teacher for row in taught]
    assert teachers[0].model.net.fusion is None
    assert all(teacher == teachers[0] for teacher in teachers)


def test_every_row_of_table_4_has_one_loss() -> None:
    for row in folder("table4")[1:]:
        losses = [name for name in LOSSES if load("sun", row).distillation[name] is not None]
        assert len(losses) == 1 and losses[0] in row, row


@pytest.mark.parametrize(("bk", "qe"), [("0.1", "10.0"), ("5.0", "1.0")])
def test_the_weights_of_figure_5a_are_a_grid_of_two_layers(bk: str, qe: str) -> None:
    config = load("sun", f"fig5a/lambda_bk/{bk}.yaml", f"fig5a/lambda_qe/{qe}.yaml")
    assert config.distillation.tfd.weight == float(bk)
    assert config.distillation.cqd.weight == float(qe)


def test_the_frames_of_figure_5b_are_those_of_the_teacher() -> None:
    for row in folder("fig5b"):
        config = load("sun", row)
        assert config.teacher.model.num_frames == config.data.num_frames == int(Path(row).stem)
