"""A student that does not fit its teacher is refused before the teacher is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_fixtures import make_split
from v2idetr.ablation.dry_run import check_starts, check_students, new_students
from v2idetr.ablation.row_configs import Settings
from v2idetr.ablation.runs import Plan
from v2idetr.ablation.tables import find_tables
from v2idetr.engine.run_context import load_splits

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TABLES = find_tables(CONFIGS)


def make_plan(folder: Path, *overrides: str, student: str = "deformable_detr") -> Plan:
    """Of Tables III and IV, with a tiny data set."""
    first = [
        f"data.{name}.{key}={path}"
        for name in ("train", "val")
        for key, path in make_split(folder, name, videos=1, frames=4, seed=0).items()
    ]
    first += ["model.net.weights=null", "train.clips_at_once=2", "train.num_workers=0"]
    settings = Settings(CONFIGS, "synthetic", student, overrides, tuple(first))
    return Plan(folder, settings, [table for table in TABLES if table.key in ("table3", "table4")])


def refusal(plan: Plan, *keys: str) -> str:
    base = plan.base()
    base.data.test = {"held_out": base.data.val}
    splits = load_splits(base, with_train=True)
    students = new_students(plan.runs([plan.rows[key] for key in keys], range(2)))
    with pytest.raises(ValueError) as caught:
        check_students(students, splits)
    return str(caught.value)


def test_a_level_that_the_teacher_has_not_is_refused_with_the_rows(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distillation.tfd.stride=4")
    said = refusal(plan, "table3/1_baseline", "table3/2_tfd", "table4/11_cqd")
    assert "distillation.tfd" in said and "4" in said
    assert said.endswith("(rows 2_tfd)"), "row 11 has no TFD"


def test_a_row_that_another_student_cannot_have_is_refused(tmp_path: Path) -> None:
    said = refusal(make_plan(tmp_path, student="detr"), "table4/08_qd", "table4/08b_qd_hungarian")
    assert "10" in said and "30" in said
    assert said.endswith("(rows 08_qd)")


@pytest.mark.parametrize("student", ["deformable_detr", "detr"])
def test_the_students_of_the_papers_rows_fit_their_teachers(tmp_path: Path, student: str) -> None:
    plan = make_plan(tmp_path, student=student)
    rows = [row for key, row in plan.rows.items() if (key, student) != ("table4/08_qd", "detr")]
    base = plan.base()
    base.data.test = {"held_out": base.data.val}
    students = new_students(plan.runs(rows, [0]))
    assert {"table3/5_tfd_msi_cqd", "table4/02_fd"} <= {run.row.key for run in students}
    check_students(students, load_splits(base, with_train=True))


def test_missing_weights_are_seen_before_any_run_and_with_all_their_rows(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "model.net.weights=no/such.pth")
    names = ("1_baseline", "2_tfd", "3_tfd_msi")
    rows = [plan.rows[f"table3/{name}"] for name in names]
    with pytest.raises(ValueError) as caught:
        check_starts(plan.runs(rows, range(2)))
    heading, *lines = str(caught.value).splitlines()
    assert "cannot be built" in heading and len(lines) == 2
    assert all("No backbone weights at no/such.pth" in line for line in lines)
    assert lines[0].endswith("(rows 2_tfd, 3_tfd_msi)"), "their teachers"
    assert lines[1].endswith("(all rows)")


def test_detectors_with_all_that_they_start_from_are_built_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(tmp_path)
    check_starts(plan.runs([plan.rows["table3/1_baseline"], plan.rows["table3/2_tfd"]], [0]))
    assert not caplog.records


def test_of_each_row_one_student_that_has_not_begun_is_tried(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    runs = plan.runs([row for row in plan.rows.values() if row.table == "table3"], range(2))
    names = ["2_tfd", "3_tfd_msi", "4_tfd_cqd", "5_tfd_msi_cqd"]
    assert [(run.row.name, run.seed) for run in new_students(runs)] == [(n, 0) for n in names]
    trained = tmp_path / "seed0/teachers/table3/2_tfd/teacher/evaluation.json"
    trained.parent.mkdir(parents=True)
    trained.touch()
    assert [run.row.name for run in new_students(runs)] == names, (
        "a trained teacher changes nothing"
    )
    (tmp_path / "seed0/table3/5_tfd_msi_cqd/student").mkdir(parents=True)
    (tmp_path / "seed0/table3/4_tfd_cqd/student").mkdir(parents=True)
    (tmp_path / "seed1/table3/4_tfd_cqd/student").mkdir(parents=True)
    tried = [(run.row.name, run.seed) for run in new_students(runs)]
    assert tried == [("2_tfd", 0), ("3_tfd_msi", 0), ("5_tfd_msi_cqd", 1)]
