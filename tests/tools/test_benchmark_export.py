"""Exported detectors in the benchmark: what they are, and that they run and compare."""

import time
from contextlib import nullcontext

import benchmark_export
import jaxtyping
import numpy as np
import pytest
import torch
from benchmark import measure
from benchmark_bags import read_bags
from benchmark_cases import Case, Setting
from benchmark_real_time import REAL_TIME, RealTimeDetector

from v2idetr.evaluation.cost import parameters
from v2idetr.modeling.deformable_attention import deformable_read

SIZE = (64, 96)
RUNTIMES = ["ONNX Runtime fp32", "OpenVINO fp32", "OpenVINO fp16 weights", "OpenVINO INT8"]
TOTALS = {"transformers RT-DETR R18": 20_073_172, "transformers D-FINE-N": 3_719_545}


@pytest.fixture(name="setting")
def _setting():
    return Setting(torch.device("cpu"), SIZE, "efficientnet_lite0", batches=(1, 2))


@pytest.fixture(name="untyped")
def _untyped():
    """Shapes are not checked: symbolic numbers of torch.export are no integers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_bags_read_what_deformable_attention_reads():
    torch.manual_seed(0)
    shapes = [(8, 12), (4, 6), (1, 1)]
    value = torch.randn(2, sum(h * w for h, w in shapes), 3, 5)
    locations = torch.rand(2, 7, 3, len(shapes), 4, 2) * 1.6 - 0.3  # some outside
    weights = torch.rand(2, 7, 3, len(shapes), 4)
    expected = deformable_read(value, shapes, locations, weights, "grid_sample")
    torch.testing.assert_close(read_bags(value, shapes, locations, weights), expected)


@pytest.mark.parametrize("name", TOTALS)
def test_real_time_detectors_have_the_published_sizes(name):
    pytest.importorskip("transformers")
    assert list(REAL_TIME) == list(TOTALS)
    with torch.device("meta"):
        detector = RealTimeDetector(REAL_TIME[name]((480, 640)))
    assert parameters(detector)["total"] == TOTALS[name]


def test_runtimes_that_fail_are_named_and_the_others_stay(monkeypatch, setting):
    def no_graph():
        raise RuntimeError("unsupported operator\nand a long trace")

    detector = benchmark_export._Detector(
        "detector", torch.nn.Identity(), {"eager": nullcontext}, (1,), no_graph, lambda _: set()
    )
    monkeypatch.setattr(benchmark_export, "_makers", lambda _: [lambda: detector])
    monkeypatch.setattr(benchmark_export, "_facts", lambda *_: {"gflops": 1.0})
    (case,) = benchmark_export.export_cases(setting)  # none to compare all detectors in OpenVINO
    rows = measure(case, setting.device, warm_up=0, repeats=1)
    assert [row["variant"] for row in rows] == ["eager", *RUNTIMES]
    assert rows[0]["gflops"] == 1 and rows[0]["frames_per_s"] > 0
    assert all(row == {**row, "failed": "unsupported operator"} for row in rows[1:])


def test_a_detector_that_cannot_take_the_size_is_left_out(monkeypatch, setting, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setattr(benchmark_export, "STUDENTS", ())
    assert list(benchmark_export.export_cases(setting)) == []
    out = capsys.readouterr().out
    assert all(f"{name} cannot take frames of this size" in out for name in TOTALS)


def test_threads_fall_asleep_before_each_call(monkeypatch):
    events = []
    monkeypatch.setattr(time, "sleep", lambda seconds: events.append(seconds))
    variants = {name: lambda name=name: events.append(name) for name in ("one", "other")}
    case = Case("case", "one", variants, pause_s=0.5)
    measure(case, torch.device("cpu"), warm_up=0, repeats=2)
    assert events == [0.5, "one", 0.5, "other"] * 2


def test_runtimes_are_compared_on_cpus_only():
    setting = Setting(torch.device("cuda"), SIZE, "resnet50")
    with pytest.raises(ValueError, match="--device cpu"):
        list(benchmark_export.export_cases(setting))


@pytest.mark.slow
@pytest.mark.usefixtures("untyped")
def test_a_student_runs_in_torch_and_in_every_runtime_with_every_batch(monkeypatch, setting):
    monkeypatch.setattr(benchmark_export, "STUDENTS", ("deformable_detr_small",))
    monkeypatch.setattr("benchmark_real_time.REAL_TIME", {})
    *cases, last, last_of_two = benchmark_export.export_cases(setting)
    assert [(case.frames, case.failed) for case in cases] == [(1, {}), (2, {})]
    for case in cases:
        assert list(case.variants) == [
            *("eager", "eager, grid_sample", "eager, bags"),
            *RUNTIMES,
        ]
        rows = {row["variant"]: row for row in measure(case, setting.device, warm_up=0, repeats=1)}
        assert all(row["p95_ms"] == pytest.approx(row["median_ms"]) for row in rows.values())
        assert rows["eager"]["gflops"] > 0 and rows["eager"]["parameters"] > 1e6
        half, full = (rows[f"OpenVINO {kind}"]["file_mib"] for kind in ("fp16 weights", "fp32"))
        assert half < 0.6 * full
    for case in (last, last_of_two):
        assert list(case.variants) == ["deformable_detr_small"]


@pytest.mark.slow
def test_a_real_time_detector_detects_the_same_in_every_runtime(setting):
    pytest.importorskip("transformers")
    size = (256, 320)
    setting = Setting(setting.device, size, setting.backbone)
    torch.manual_seed(0)
    detector = benchmark_export._real_time("transformers D-FINE-N", setting)
    backends, failed, _ = benchmark_export._backends(detector, size)
    assert list(backends) == RUNTIMES and not failed
    frames = benchmark_export._noise(1, size)
    with torch.inference_mode():
        scores, _, boxes = detector.module(torch.from_numpy(frames))
    for label in RUNTIMES[:2]:
        outputs = backends[label].run(frames)
        np.testing.assert_allclose(outputs.scores, scores, atol=1e-4)
        assert outputs.boxes.shape == tuple(boxes.shape)
