"""Tiny students and their exported files, made once for all tests and all their processes.

An export takes seconds, mostly torch's own. Tests of what surrounds it replace trace and conversion
by a file that is there: `quick`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from torch.export import ExportedProgram

from tests.tiny_fixtures import write_tiny_config
from tests.tiny_runs import make_run
from tools.export import main
from v2i_runtime.backends import openvino_core
from v2idetr.config.load import to_plain
from v2idetr.config.yaml_text import dump_yaml
from v2idetr.deploy import export as files
from v2idetr.deploy.export import trace  # which stays when `quick` replaces that of the module
from v2idetr.deploy.student import load_student
from v2idetr.engine.stage_graph import build_stage
from v2idetr.modeling.deformable_attention import Implementation
from v2idetr.output_folder import sole_user
from v2idetr.runs.checkpoint import Checkpoint, save_checkpoint

SIZE = 56, 80  # of the network's input; frames have 48 x 64 px, padded inputs 64 x 96
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
# Of Deformable DETRs; few, since torch takes its time by the number of operations.
STRIDES = {"deformable_detr": [16, 32], "one_level": [32]}

Export = Callable[..., Path]
Trace = Callable[..., ExportedProgram]


def write_student_config(folder: Path, data: dict[str, Any], kind: str) -> Path:
    """Config of a tiny "deformable_detr", "one_level", "detr" or "sam_detr"."""
    path = write_tiny_config(folder, data)
    config = yaml.safe_load(path.read_text())
    net, teacher = config["model"]["net"], config["teacher"]["model"]["net"]
    if kind in STRIDES:
        net["strides"] = STRIDES[kind]
        teacher["fusion"]["features"]["roles"] = ["local", "global"][: len(STRIDES[kind])]
    else:
        config["_base_"] = [base.replace("deformable_detr", kind) for base in config["_base_"]]
        shared = ("backbone", "weights")
        teacher |= {key: value for key, value in net.items() if key not in shared}
    resize = config["data"]["augmentations"]["test"][0]
    resize["height"], resize["width"] = SIZE
    path.write_text(yaml.safe_dump(config))
    return path


def write_student(config: Path, stage: str = "plain", *overrides: str) -> Path:
    """best.pth of a stage beside its config, with weights whose detections depend on the frame."""
    run = make_run(config, *overrides)
    detector: Any = build_stage(run.config, stage).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in detector.named_parameters():
            if "class_head" in name and name.endswith("bias"):
                parameter.zero_()  # else all scores are near zero
    path = run.stage_folder(stage) / "best.pth"
    save_checkpoint(Checkpoint(stage, 2, detector.state_dict(), class_names=["polyp"]), path)
    (path.parent / "config.yaml").write_text(dump_yaml(to_plain(run.config)))
    return path


@pytest.fixture(scope="session", autouse=True)
def shapes_are_not_checked_in_tracing() -> Iterator[None]:
    """Symbolic numbers of torch.export are no integers."""
    traced = torch.export.export

    def unchecked(*arguments: Any, **options: Any) -> Any:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return traced(*arguments, **options)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", unchecked)
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the tests have."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "exports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def student(shared_folder: Path, tiny_data: dict[str, Any]) -> Callable[[str], Path]:
    """Checkpoint of a kind of student, with its config beside it and without an evaluation."""

    def get(kind: str) -> Path:
        folder = shared_folder / kind
        with sole_user(shared_folder / f"{kind}.lock", "Another test", patience_s=300.0):
            folder.mkdir(exist_ok=True)
            path = folder / "run" / "plain" / "best.pth"
            if not path.exists():
                assert write_student(write_student_config(folder, tiny_data, kind)) == path
        return path

    return get


@pytest.fixture(scope="session")
def traced(student: Callable[[str], Path]) -> Trace:
    """The graph of a kind of student, traced once in a process."""

    @cache
    def get(kind: str, attention: Implementation = "grid_sample") -> ExportedProgram:
        return trace(load_student(student(kind)).image_detector(), SIZE, attention)

    return get


@pytest.fixture(scope="session")
def exported(shared_folder: Path, student: Callable[[str], Path], traced: Trace) -> Export:
    """An exported file of a kind of student in a format, with the default or other reads."""

    def write(weights: Path, form: str, attention: str, path: Path, program: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "trace", lambda *arguments: program)
            options = ["--format", form, "--output", str(path), "--attention", attention]
            assert main([str(weights), *options]) == 0

    def get(kind: str, form: str, attention: Implementation = "grid_sample") -> Path:
        folder, weights = shared_folder / f"{kind}_{attention}", student(kind)
        with sole_user(folder / ".lock", "Another test", patience_s=300.0):
            # Both formats of one trace, by indices only what is asked for.
            for each in SUFFIXES if attention == "grid_sample" else (form,):
                path = folder / f"student{SUFFIXES[each]}"
                if not path.exists():
                    write(weights, each, attention, path, traced(kind, attention))
        return folder / f"student{SUFFIXES[form]}"

    return get


@pytest.fixture
def detr(student: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint of a tiny DETR of the test's own, its config beside it."""
    return Path(shutil.copytree(student("detr").parent, tmp_path / "detr")) / "best.pth"


class Written:
    """What torch.onnx.export returns, for a file that is there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, path: Path) -> None:
        shutil.copy(self._path, path)


@pytest.fixture(scope="session")
def any_program() -> ExportedProgram:
    return torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))


@pytest.fixture
def quick(exported: Export, any_program: ExportedProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the tiny DETR take what an earlier one has written."""
    onnx_file, openvino_file = (exported("detr", form) for form in SUFFIXES)

    def to_openvino(program: object) -> Any:
        return openvino_core().read_model(openvino_file)

    monkeypatch.setattr(files, "trace", lambda *arguments: any_program)
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **options: Written(onnx_file))
    monkeypatch.setattr(files, "to_openvino", to_openvino)
