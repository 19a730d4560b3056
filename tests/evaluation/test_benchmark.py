"""The benchmark: fair to its variants, and runs from end to end."""

import json
from itertools import count

import pytest
import torch

from tools import benchmark
from tools.benchmark import Case, measure
from v2idetr.evaluation import cost


def test_medians_are_compared_with_the_baseline_of_the_same_run(monkeypatch):
    seconds = {"slow": iter([9, 2, 2, 8]), "fast": iter([9, 1, 1, 1])}  # the first is the warm-up
    order = []

    def timed(call, device):
        order.append(call())
        return next(seconds[order[-1]])

    monkeypatch.setattr(cost, "timed", timed)
    case = Case("case", "slow", {"slow": lambda: "slow", "fast": lambda: "fast"})
    slow, fast = measure(case, torch.device("cpu"), warm_up=1, repeats=3)
    assert (slow["median_ms"], slow["fastest_ms"], slow["slowest_ms"]) == (2000, 2000, 8000)
    assert (slow["speed_up"], fast["speed_up"]) == (1, 2)
    assert order == ["slow", "fast"] * 4  # in turns, so that a slow spell hits both


def test_whole_run_writes_machine_and_timings(tmp_path, monkeypatch, capsys):
    clock = count()
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))
    path = tmp_path / "benchmark.json"
    asked = ["--cases", "attention", "--size", "32", "64", "--repeats", "1", "--warm-up", "0"]
    benchmark.main([*asked, "--device", "cpu", "--json", str(path)])
    result = json.loads(path.read_text())
    assert " thread" in result["machine"] and result["size"] == [32, 64]
    assert {timing["baseline"] for timing in result["timings"]} <= {
        "grid_sample",
        "grid_sample (default)",
    }
    assert all(timing["speed_up"] == 1 for timing in result["timings"])
    assert "deformable attention, forward and backward" in capsys.readouterr().out


@pytest.fixture(name="tables", scope="module")
def _tables(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "parameters.json"
    benchmark.main(["--parameters", "--json", str(path)])
    return json.loads(path.read_text())


def test_a_teacher_is_a_plain_detector_with_msi(tables):
    rows = {
        (r["backbone"], r["role"]): r["total"]
        for r in tables["parameters"]
        if r["detector"] == "deformable_detr"
    }
    backbones = {backbone for backbone, _ in rows}
    more = {
        rows[b, benchmark.ROLES["teacher"]] - rows[b, benchmark.ROLES["model"]] for b in backbones
    }
    assert {"resnet50", "efficientnet_lite0"} <= backbones
    assert len(more) == 1 and more.pop() > 0  # MSI is the same whatever the backbone


def test_a_teacher_stands_once_however_many_students_it_has(tables):
    teachers = [r["detector"] for r in tables["parameters"] if r["role"].startswith("teacher")]
    assert set(teachers) == {"deformable_detr", "deformable_detr_small"}
    assert len(teachers) == 2 * len({r["backbone"] for r in tables["parameters"]})


def test_detectors_of_the_official_size_count_as_the_official_ones(tables):
    detectors = {row["detector"] for row in tables["official"]}
    assert detectors == {"detr", "deformable_detr", "sam_detr"}
    assert all(row["total"] == row["official"] for row in tables["official"])


def test_a_teacher_is_timed_once_with_all_of_its_students(monkeypatch):
    monkeypatch.setattr(benchmark, "build", lambda *_, **__: torch.nn.Identity())
    cases = benchmark.detector_cases(torch.device("cpu"), (32, 32), "resnet18")
    teacher = benchmark.ROLES["teacher"]
    assert [(case.baseline, list(case.variants)) for case in cases] == [
        ("deformable_detr", ["deformable_detr", "detr", "sam_detr", teacher]),
        (
            "deformable_detr_small",
            ["deformable_detr_small", "detr_small", "sam_detr_small", teacher],
        ),
    ]


@pytest.mark.parametrize(
    ("option", "given", "known"),
    [
        ("--backbone", "resnet5", "resnet50"),
        ("--device", "cuda", "cpu"),
        ("--device", "tpu", "cpu"),
    ],
)
def test_what_there_is_not_is_refused_before_anything_runs(
    monkeypatch, capsys, option, given, known
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert benchmark.main(["--device", "cpu", option, given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{option} {given}: not here; choose from {known}" in err
