"""Python in the documentation runs as it stands there, one page after the other in a notebook."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from tests.deploy.exports import Export
from tests.docs.pages import PAGES, blocks, name_of
from tests.runtime.tiny_videos import write_video
from tests.tiny_runs import make_run
from v2i_runtime.backends import open_backend
from v2idetr.data.reference_sampler import AdjacentSampler
from v2idetr.deploy.export import describe
from v2idetr.distillation.loss import DistillationLoss
from v2idetr.engine.stage_graph import build_stage
from video_detectors.frame_states import VideoMemory, images_of

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


def evaluation(weights: Path) -> str:
    """As training writes it, as far as it is read for the threshold."""
    rules = {"iou50": {"f1": 0.5}}
    content = {"thresholds": {"iou50": 0.3}, "val": {"rules": rules}, "checkpoint": str(weights)}
    return json.dumps(content)


class MeanColour(VideoMemory, nn.Module):
    """A video detector that finds nothing, of two frames."""

    reference_sampler, evaluation_sampler = AdjacentSampler(before=0, after=1), None

    def forward(self, batched_inputs):
        return self.follow(batched_inputs)

    def encode(self, frames):
        return list(images_of(frames, torch.device("cpu")).float().mean((1, 2, 3)))

    def detect(self, sample, states):
        found = Instances((sample["height"], sample["width"]))
        found.pred_boxes, found.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
        found.pred_classes = torch.zeros(0).long()
        return found


# What a page takes for granted: a detector that was trained, a video that comes.
GIVEN: dict[str, dict[str, Any]] = {
    "projects/VideoDetectors/README.md": {
        "detector": MeanColour(),
        "video": [(np.full((48, 64, 3), number, np.uint8), number / 25) for number in range(3)],
    }
}


@pytest.fixture(scope="module")
def exports(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with student.onnx and student.xml, which know their threshold."""
    folder = tmp_path_factory.mktemp("exports")
    for form in ("onnx", "openvino"):
        for part in exported("detr", form).parent.glob("student.*"):
            shutil.copy(part, folder)
    for path in (folder / "student.onnx", folder / "student.xml"):
        info = open_backend(path, device="CPU", threads=1).info
        describe(path, replace(info, score_threshold=0.3))
    return folder


@pytest.fixture
def place(
    tmp_path: Path, student: Callable[[str], Path], exports: Path, tiny_data: dict[str, Any]
) -> Path:
    """A folder with the files that the pages name, as a reader would have them."""
    run = tmp_path / "output" / "demo" / "run" / "student"
    shutil.copytree(student("detr").parent, run)
    (run / "evaluation.json").write_text(evaluation(run / "best.pth"))
    shutil.copytree(exports, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tiny_data["val"]["image_root"], tmp_path / "data" / "frames")
    for name, split in {"val": tiny_data["val"], "test": tiny_data["test"]["held_out"]}.items():
        shutil.copy(split["json"], tmp_path / "data" / f"{name}.json")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    write_video(tmp_path / "colonoscopy.mp4", frames=4)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_of_a_page_runs_from_top_to_bottom(
    page: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    names: dict[str, Any] = {"__name__": "notebook", **GIVEN.get(name_of(page), {})}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{name_of(page)}, block {number}", "exec"), names)


def test_pages_with_python_are_found() -> None:
    names = [name_of(page) for page in WITH_PYTHON]
    assert {"README.md", "docs/python.md", "docs/own_detector.md"} <= set(names)
    assert "projects/Runtime/README.md" in names


def test_what_the_page_about_python_writes_is_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (page,) = (page for page in WITH_PYTHON if page.name == "python.md")
    exec("\n".join(blocks(page, "python")), {"__name__": "notebook"})
    for name in ("drawn.png", "boxes.mp4", "boxes.csv", "predictions.json.gz"):
        assert (place / name).stat().st_size > 0


def test_the_loss_of_the_page_about_own_detectors_is_one_of_a_run(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (page,) = (page for page in WITH_PYTHON if page.name == "own_detector.md")
    (source,) = (block for block in blocks(page, "python") if "DistillationLoss" in block)
    (tmp_path / "my_losses.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    run = make_run(tiny_config, "+distillation.mean={_target_: my_losses.MeanFeatures, weight: 1}")
    trained = build_stage(run.config, "student").trained
    assert isinstance(trained.losses["mean"], DistillationLoss)
