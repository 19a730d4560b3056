"""tools/ablate.py as a user meets it; train_net.py is a stub that writes what it was told."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from v2idetr.ablation.row_configs import Settings
from v2idetr.ablation.runs import Plan
from v2idetr.ablation.tables import DATASETS, find_tables

ROOT = Path(__file__).resolve().parents[2]

# Fails for seed 1 of row 4; writes the config as train_net.py would, weights and metrics.
STUB = """
import json, sys
from pathlib import Path
said = dict(a.split("=", 1) for a in sys.argv if "=" in a and not a.startswith("-"))
folder, stage = Path(json.loads(said["train.output_dir"])), said["train.stages"].strip("[]")
if "4_tfd_cqd" in str(folder) and said["train.seed"] == "1" and not Path("mended").exists():
    raise SystemExit("error: no luck")
if stage == "student":
    assert Path(json.loads(said["teacher.checkpoint"])).exists()
(folder / stage).mkdir(parents=True, exist_ok=True)
(folder / stage / "best.pth").touch()
rule = {"precision": 0.5, "recall": 0.5, "f1": 0.5}
part = {"videos": 1, "frames": 2, "lesions": 2, "lesion_free_frames": 0, "groups": {},
        "coco": {"AP": 0.1, "AP50": 0.2 + 0.1 * int(said["train.seed"]), "AP75": 0.1},
        "rules": {"endovis_center": rule, "iou50": rule}}
result = {"tests": {"easy": part}, "all_tests": None, "val": part, "thresholds": {}}
(folder / stage / "evaluation.json").write_text(json.dumps(result))
with open("ran", "a") as file:
    file.write(f"{folder.parent.name}/{folder.name} {stage}\\n")
"""


@pytest.fixture
def ablate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The program, with a stub in place of training and of the data."""
    module = importlib.import_module("ablate")
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(module, "TRAIN_NET", tmp_path / "stub.py")
    monkeypatch.setattr(module, "make_data", lambda *_: None)
    (tmp_path / "train.json").touch()
    monkeypatch.setattr("v2idetr.engine.run_context.load_splits", _splits)
    monkeypatch.setattr("v2idetr.ablation.dry_run.check_students", lambda *_: None)
    monkeypatch.setattr("v2idetr.ablation.dry_run.check_starts", lambda *_: None)
    monkeypatch.setattr("v2idetr.runs.folder.data_fingerprint", _fingerprint)
    monkeypatch.setattr(module, "find_tables", _only_table_3)
    monkeypatch.chdir(tmp_path)
    return module


def _only_table_3(configs: Path) -> list:
    """Fewer configs to read."""
    return [table for table in find_tables(configs) if table.key == "table3"]


class _Split:
    records = range(100)


def _splits(*_: object, **__: object) -> dict[str, _Split]:
    return {"train": _Split()}


def _fingerprint(split: object) -> dict[str, str]:
    return {"sha256": Path("train.json").read_text()}


def ran() -> list[str]:
    path = Path("ran")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_a_table_is_run_once_and_goes_on_where_a_run_failed(
    ablate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--table", "III", "--seeds", "2", "--output", "out", "--jobs", "2"]
    assert ablate.main(arguments) == 1
    first, output = ran(), capsys.readouterr().out
    assert len(first) == 2 * 8 - 1 and len(set(first)) == 8
    assert "FAILED  table3/4_tfd_cqd, seed 1: error: no luck (code 1)" in output
    assert "out/seed1/table3/4_tfd_cqd/log" in output
    table = Path("out/table_III.md").read_text()
    assert "11 of 12 results are available" in table
    assert "| 25.0\u00a0±\u00a07.1 |" in table

    Path("mended").touch()
    assert ablate.main(arguments) == 0
    assert ran() == ["table3/4_tfd_cqd student"]
    assert ablate.main(arguments) == 0
    assert ran() == []
    rows = json.loads(Path("out/table_III.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [[0, 1]] * 6


def test_only_a_run_that_was_begun_has_its_log_named(
    ablate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("stub.py").write_text("raise SystemExit('error: no luck')")
    assert ablate.main(["--table", "III", "--output", "out", "--rows", "2"]) == 1
    output = capsys.readouterr().out
    assert "table3/2_tfd, seed 0: not run, because teacher of table3/2_tfd, seed 0 failed" in output
    assert "out/seed0/teachers/table3/2_tfd/log" in output
    assert "out/seed0/table3/2_tfd/log" not in output


def test_a_student_that_does_not_fit_stops_the_table_before_anything_is_written(
    ablate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(students: list, splits: dict) -> None:
        assert [run.row.name for run in students] == ["2_tfd", "4_tfd_cqd"] and splits
        raise ValueError("no such level")

    monkeypatch.setattr("v2idetr.ablation.dry_run.check_students", refuse)
    monkeypatch.setattr(ablate, "data_to_make", lambda *_: [])
    arguments = ["--table", "III", "--output", "out", "--seeds", "2", "--rows", "1,2,4"]
    assert ablate.main(arguments) == 2
    assert "no such level" in capsys.readouterr().err
    assert ran() == [] and not Path("out").exists()


def test_only_what_chosen_rows_need_is_run(ablate: ModuleType) -> None:
    assert ablate.main(["--table", "3", "--output", "out", "--rows", "4"]) == 0
    assert ran() == ["table3/2_tfd teacher", "table3/4_tfd_cqd student"]


def test_rows_are_separated_by_commas_so_that_overrides_can_follow(ablate: ModuleType) -> None:
    arguments = ["--table", "3", "--output", "out", "--rows", "1_baseline,2", "train.max_iter=7"]
    assert ablate.main(arguments) == 0
    names = ["table3/1_baseline plain", "table3/2_tfd student", "table3/2_tfd teacher"]
    assert sorted(ran()) == names
    assert json.loads(Path("out/ablation.json").read_text())["overrides"] == ["train.max_iter=7"]


def test_the_command_of_a_table_is_for_all_that_it_shows(ablate: ModuleType) -> None:
    arguments = ["--table", "3", "--output", "out", "--seeds", "2", "--student", "detr"]
    more = ["train.max_iter=9", "data.window=3"]
    assert ablate.main([*arguments, "--rows", "1", *more]) == 0
    assert ablate.main([*arguments, "--seeds", "1", "--rows", "1", *more]) == 0
    words = shlex.split(json.loads(Path("out/table_III.json").read_text())["command"])
    assert ablate.parse(words[2:]) == ablate.parse([*arguments, "--table", "III", *more])


def test_runs_of_another_commit_are_warned_of_before_more_are_made(
    ablate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--table", "III", "--output", "out", "--rows"]
    monkeypatch.setattr("v2idetr.runs.folder.git_commit", lambda: "one")
    assert ablate.main([*arguments, "1"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    start = {"time": "", "git_commit": "one", "data": {"train": {"sha256": ""}}}
    Path("out/seed0/table3/1_baseline/run.json").write_text(json.dumps({"starts": [start]}))
    monkeypatch.setattr("v2idetr.runs.folder.git_commit", lambda: "two")
    assert ablate.main([*arguments, "2"]) == 0
    assert "WARNING: Runs of several commits: one, two." in capsys.readouterr().out


def test_a_folder_of_another_ablation_is_refused(
    ablate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--table", "III", "--output", "out", "--rows", "1"]
    assert ablate.main(arguments) == 0
    assert ablate.main([*arguments, "--student", "detr"]) == 2
    assert "student: deformable_detr -> detr" in capsys.readouterr().err
    assert ablate.main([*arguments, "optimizer.lr=0.5"]) == 2
    assert "optimizer.lr=0.5" in capsys.readouterr().err


def test_a_folder_with_other_things_is_not_touched(
    ablate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").touch()
    assert ablate.main(["--table", "III", "--output", "out"]) == 2
    assert "holds no ablation" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["thesis.tex"]


def test_a_folder_of_an_ablation_that_was_killed_at_its_very_beginning_is_used(
    ablate: ModuleType,
) -> None:
    Path("out").mkdir()
    for name in (".lock", "base.yaml", ".ablation.json.7.tmp"):
        Path("out", name).touch()
    assert ablate.main(["--table", "III", "--output", "out", "--rows", "1"]) == 0


def test_data_that_was_prepared_again_is_refused(
    ablate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--table", "III", "--output", "out", "--rows", "1"]
    assert ablate.main(arguments) == 0
    Path("train.json").write_text("{}")
    assert ablate.main(arguments) == 2
    assert "other data: the annotations of train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--table", "V", "--output", "out"], "no such table. The tables are III"),
        (["--table", "III", "--output", "out", "--rows", "6"], "has no row 6"),
        (["--table", "III", "--output", "out", "train.max_itr=5"], "Did you mean train.max_iter?"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing_behind(
    ablate: ModuleType, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate.main(arguments) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--table", "III"],
        ["--table", "3", "--output", "out", "--seeds", "0"],
        ["--list", "--seeds", "2"],
        ["--list", "--smoke"],
    ],
)
def test_wrong_usage_is_explained(ablate: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        ablate.main(arguments)
    assert stop.value.code == 2


def test_the_list_names_every_row_and_what_it_shares(
    ablate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate.main(["--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["2_tfd"].endswith("its own")
    assert lines["4_tfd_cqd"].split()[-1] == "table3/2_tfd"


def test_the_list_of_a_table_is_of_that_table_alone(
    ablate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("table3", "fig5b")
    tables = [table for table in find_tables(ROOT / "configs") if table.key in keys]
    monkeypatch.setattr(ablate, "find_tables", lambda _: tables)
    assert ablate.main(["--list", "--table", "5b"]) == 0
    output = capsys.readouterr().out
    assert "Fig. 5b" in output and "Table III" not in output


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.max_iterr=1", "Did you mean train.max_iter?"),
        ("train.seed=3", "are set by the rows"),
    ],
)
def test_a_list_with_overrides_that_do_not_fit_is_refused(
    ablate: ModuleType, override: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate.main(["--list", "--table", "III", override]) == 2
    assert complaint in capsys.readouterr().err


def test_missing_data_is_an_error_that_names_it_and_leaves_nothing_behind(
    ablate: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(ablate.TRAIN_NET.parent / "tests")
    monkeypatch.setattr(ablate, "find_tables", _only_table_3)
    given = ["--table", "III", "--dataset", "buv", "--output", str(tmp_path / "out")]
    assert ablate.main(given) == 2
    assert "No backbone weights at " in capsys.readouterr().err
    assert ablate.main([*given, "model.net.weights=null"]) == 2
    assert "data.train: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_share_the_machine(ablate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ablate.parse(["--table", "3", "--output", "out"])
    monkeypatch.setattr(ablate, "visible_gpus", lambda: [])
    monkeypatch.setattr(ablate, "cores", lambda: 8)
    monkeypatch.setattr(ablate, "available_memory_gib", lambda: 10.0)
    assert len(ablate.choose_slots(options, [None] * 9)) == 3  # 3 GiB each
    assert len(ablate.choose_slots(options, [None] * 2)) == 2
    options.jobs = 6
    assert len(ablate.choose_slots(options, [None] * 9)) == 6
    monkeypatch.setattr(ablate, "visible_gpus", lambda: ["0", "1"])
    options.jobs = None
    assert len(ablate.choose_slots(options, [None] * 9)) == 2


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_smoke_test_of_every_table_and_data_set_has_a_valid_config(
    ablate: ModuleType, dataset: str, tmp_path: Path
) -> None:
    smoke = sys.modules["ablate_data"].smoke_overrides(dataset, tmp_path)
    tables = find_tables(ROOT / "configs")
    plan = Plan(tmp_path, Settings(ROOT / "configs", dataset, first=tuple(smoke)), tables)
    for table in tables:
        rows = [table.rows[0], table.rows[-1]]
        plan.check(rows)
        for row in rows:
            config = OmegaConf.create(plan.config(row))
            own = config.model if row.config else config.model.net
            assert own.weights is None and config.train.max_iter == 4
            assert row.config or config.teacher.max_iter == 4
            splits = [config.data.train, config.data.val, *config.data.test.values()]
            assert all(split.json.startswith(str(tmp_path)) for split in splits)
