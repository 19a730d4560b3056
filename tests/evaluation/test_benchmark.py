"""The benchmark: fair to its variants, and runs from end to end."""

import json
from itertools import count

import benchmark
import benchmark_cases
import benchmark_processes
import pytest
import torch
from benchmark import measure
from benchmark_cases import Case, Setting
from benchmark_models import MODELS, ROLES, build, noise_clip

from v2idetr.evaluation import cost
from v2idetr.modeling.deformable_attention import reading_with

SMALL = {"size": (64, 96), "backbone": "efficientnet_lite0"}


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
    asked = ["--attention", "--size", "32", "64", "--repeats", "1", "--warm-up", "0"]
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
    more = {rows[b, ROLES["teacher"]] - rows[b, ROLES["model"]] for b in backbones}
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


@pytest.fixture(name="setting")
def _setting():
    return Setting(torch.device("cpu"), **SMALL)


def test_a_teacher_is_timed_once_with_all_of_its_students(monkeypatch, setting):
    monkeypatch.setattr(benchmark_cases, "build", lambda *_, **__: torch.nn.Identity())
    monkeypatch.setattr(benchmark_cases, "_floor", lambda *_: {"floor_ms": 1.0})
    monkeypatch.setattr(benchmark_cases, "_other_cases", lambda *_: [])
    cases = benchmark_cases.inference_cases(setting)
    assert [(case.baseline, list(case.variants)) for case in cases] == [
        ("deformable_detr", ["deformable_detr", "detr", "sam_detr", ROLES["teacher"]]),
        (
            "deformable_detr_small",
            ["deformable_detr_small", "detr_small", "sam_detr_small", ROLES["teacher"]],
        ),
    ]


def test_every_model_is_listed_with_its_video_detector(tables):
    listed = {row["detector"] for row in (*tables["parameters"], *tables["others"])}
    files = {path.stem for path in MODELS.glob("*.py")}
    assert files - listed == {"backbones", "encoders", "teachers", "video_stage"}
    video = {row["detector"] for row in tables["others"] if row["role"] == "video"}
    assert {"fgfa", "mega_small", "stft", "transvod_small", "yona", "cva_net"} <= video


@pytest.mark.parametrize("name", ["yona_small", "cva_net_small"])
def test_a_video_detector_is_timed_in_the_middle_of_a_video(setting, monkeypatch, name):
    monkeypatch.setattr(benchmark_cases, "others", lambda: [name])
    (case,) = benchmark_cases._other_cases(setting, noise_clip(setting.size))
    assert list(case.variants) == ["single frames", "video"]
    detect = case.variants["video"]
    detector, encoded = detect.args[0], []
    encode = detector.encode
    monkeypatch.setattr(detector, "encode", lambda f: encoded.append(len(f)) or encode(f))
    for _ in range(3):
        assert len(detect()) == 1
    assert encoded[1:] == [1, 1], "what is known of earlier frames is kept"


def test_the_floor_of_a_detection_is_its_operations_at_the_rate_of_a_product(monkeypatch):
    monkeypatch.setattr(cost, "timed", lambda *_: 0.5)
    monkeypatch.setattr(cost, "flops", lambda *_: 10**9)
    floor = benchmark_cases._floor(build("detr_small", "model", "efficientnet_lite0"), {})
    assert floor["gflops"] == 1
    assert floor["floor_ms"] == pytest.approx(1e3 * 1e9 * 0.5 / (2 * 2048**3))


def test_training_runs_the_three_stages_and_both_losses_with_their_memory(setting):
    case = benchmark_cases._training_case("deformable_detr_small", setting, (64, 96), 2, 3, 5)
    assert list(case.variants) == ["plain", "V2I student", "teacher", "TFD alone", "CQD alone"]
    added = [case.facts[name]["added_mib"] for name in ("plain", "V2I student", "teacher")]
    assert all(10 < mib < 2000 for mib in added) and added[0] < added[2]
    rows = measure(case, torch.device("cpu"), warm_up=0, repeats=1)
    assert all(row["median_ms"] > 0 for row in rows)
    assert "2 clips, T 3, N 5, 64 x 96 px" in case.name


def test_memory_that_a_call_adds_is_without_what_was_there_before(setting):
    kept = torch.ones(2**26)  # 256 MiB
    added = benchmark_cases._added_memory_mib(lambda: torch.ones(2**24), setting.device)
    assert kept[0] == 1 and 60 < added < 80


@pytest.mark.slow
def test_a_compiled_network_gives_the_boxes_of_the_network_and_a_failure_is_named(
    monkeypatch, capsys
):
    model = build("deformable_detr_small", "model", "efficientnet_lite0").eval()
    batch = [noise_clip((64, 96))]
    ways = {"captured": {"backend": "eager"}, "of no known backend": {"backend": "nobody"}}
    monkeypatch.setattr(benchmark_cases, "COMPILED", ways)
    with reading_with("gather"):
        case = benchmark_cases.compiled_case("detector", model, batch, "fp32")
        assert list(case.variants) == ["as it is", "captured"]
        plain, captured = (call() for call in case.variants.values())
    for expected, actual in zip(plain, captured, strict=True):
        torch.testing.assert_close(actual, expected)
    assert "detector, of no known backend, fails" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_process_answers_every_step_and_ends():
    with benchmark_processes._stepper() as step:
        step()
        step()
    with pytest.raises(OSError, match="has ended"):
        step()


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
    assert f"{option} {given}: not available; choose from {known}" in err
