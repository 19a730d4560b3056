"""Checkpoints find lesions in frames with the interface of exported files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_fixtures import ROOT
from v2i_runtime.detections import FrameDetector
from v2idetr.deploy.torch_detector import TorchDetector

FRAME = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def test_a_checkpoint_is_a_detector_of_frames_of_any_sizes(detr: Path) -> None:
    detector = TorchDetector(detr)
    assert isinstance(detector, FrameDetector)
    assert detector.class_names == ["polyp"] and detector.score_threshold is None
    small, large = detector([FRAME, np.repeat(np.repeat(FRAME, 2, 0), 2, 1)])
    assert len(small) == len(large) == 6
    assert small.boxes_xyxy_px.max() <= 40 < large.boxes_xyxy_px.max() <= 80


def test_a_frame_that_lies_otherwise_in_memory_has_the_same_detections(detr: Path) -> None:
    detector, mirrored = TorchDetector(detr), FRAME[:, ::-1]
    one, other = detector([mirrored, mirrored.copy()])
    assert np.array_equal(one.scores, other.scores)


def test_the_config_can_lie_elsewhere(detr: Path, tmp_path: Path) -> None:
    config = detr.with_name("config.yaml").rename(tmp_path / "elsewhere.yaml")
    assert len(TorchDetector(detr, config_file=config)([FRAME])[0]) == 6


PROGRAMS = {
    "export": ["missing.pth", "--format", "onnx", "--output", "a.onnx"],
    "predict_video": ["missing.pth", "0.png", "--csv", "a.csv"],
}


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_programs_print_no_warnings_of_libraries(name: str, tmp_path: Path) -> None:
    Image.fromarray(FRAME).save(tmp_path / "0.png")
    program = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *PROGRAMS[name]]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: missing.pth") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_named(device: str, detr: Path) -> None:
    with pytest.raises(ValueError, match=f"device is '{device}'.*use cpu"):
        TorchDetector(detr, device=device)


def test_results_that_are_not_finite_are_refused(detr: Path) -> None:
    detector = TorchDetector(detr)
    weights = detector._module.net.query_embed.weight
    weights.data.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(ValueError, match="not finite"):
        detector([FRAME])
