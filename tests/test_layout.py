"""The rules that keep the project in one direction and readable, checked on the source itself."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "projects" / "V2IDETR" / "v2idetr"
RUNTIME = ROOT / "projects" / "Runtime" / "v2i_runtime"
FREE_LUNCH = ROOT / "projects" / "FreeLunch" / "free_lunch"
FILES = sorted(PACKAGE.rglob("*.py"))
RUNTIME_FILES = sorted(RUNTIME.rglob("*.py"))
FREE_LUNCH_FILES = sorted(FREE_LUNCH.rglob("*.py"))
VIDEO_DETECTORS = ROOT / "projects" / "VideoDetectors" / "video_detectors"
VIDEO_DETECTORS_FILES = sorted(VIDEO_DETECTORS.rglob("*.py"))
ALL_FILES = FILES + RUNTIME_FILES + FREE_LUNCH_FILES + VIDEO_DETECTORS_FILES

# Which other rooms of the package a room may import. Data flows from left to right and nothing
# reaches back: data -> prepare | modeling -> distillation, checkpoints -> evaluation | config
# -> runs -> engine -> report, ablation, deploy -> review.
MAY_IMPORT = {
    "data": set(),
    "prepare": {"data"},
    "modeling": set(),
    "distillation": {"modeling"},
    "checkpoints": {"modeling"},
    "evaluation": {"data", "modeling"},
    "config": {"data", "distillation", "evaluation"},  # their names, none that needs torch
    "runs": {"data", "modeling", "checkpoints", "config", "evaluation"},
    "engine": {"data", "modeling", "distillation", "checkpoints", "evaluation", "config", "runs"},
    "report": {"data", "distillation", "evaluation", "config", "runs"},
    "ablation": {"data", "evaluation", "config", "runs", "engine"},
    "deploy": {"data", "modeling", "checkpoints", "evaluation", "config", "runs", "engine"},
    "review": {
        "data",
        "modeling",
        "distillation",
        "evaluation",
        "config",
        "runs",
        "engine",
        "report",
        "deploy",
    },
}
# Where detectron2 may be imported: its engine costs seconds and most of a gigabyte, and a network
# has to be read, tested and exported without it.
DETECTRON2_ROOMS = {"data", "prepare", "config", "runs", "engine", "evaluation"}
DETECTRON2_FILES = {"modeling/meta_arch.py", "modeling/detectron2_models.py"}
# The runtime is the lowest layer: it runs where nothing of training is installed.
NOT_IN_THE_RUNTIME = {
    "v2idetr",
    "free_lunch",
    "video_detectors",
    "torch",
    "torchvision",
    "detectron2",
    "fvcore",
    "omegaconf",
}

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60  # its signature aside, which has one argument a line


def imported_modules(path: Path, package: Path = PACKAGE) -> Iterator[str]:
    """Absolute names of all modules that a file imports anywhere in it, also inside functions."""
    inside = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), path.name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            # `from package import room` names the room only after `import`
            yield from (f"{base}.{alias.name}" for alias in node.names)


def name_in_package(path: Path) -> str:
    """A file's path inside the package."""
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str | None:
    """The folder of the package that a file lies in; None beside them."""
    folder, *rest = path.relative_to(PACKAGE).parts
    return folder if rest else None


def test_a_room_imports_only_what_lies_before_it() -> None:
    offences = []
    for path in FILES:
        room = room_of(path)
        if room is None:
            continue
        assert room in MAY_IMPORT, f"new room {room}: say above what it may import"
        used = {name.split(".")[1] for name in imported_modules(path) if name[:8] == "v2idetr."}
        forbidden = used & set(MAY_IMPORT) - MAY_IMPORT[room] - {room}
        offences += [f"{name_in_package(path)} imports {name}" for name in sorted(forbidden)]
    assert not offences


def test_networks_do_not_import_detectron2() -> None:
    offences = [
        f"{name_in_package(path)} imports {name}"
        for path in FILES
        if room_of(path) not in DETECTRON2_ROOMS and name_in_package(path) not in DETECTRON2_FILES
        for name in imported_modules(path)
        if name.split(".")[0] == "detectron2"
    ]
    assert not offences


def test_the_runtime_imports_nothing_of_training() -> None:
    offences = [
        f"{path.name} imports {name}"
        for path in RUNTIME_FILES
        for name in imported_modules(path, RUNTIME)
        if name.split(".")[0] in NOT_IN_THE_RUNTIME
    ]
    assert RUNTIME_FILES and not offences


@pytest.mark.parametrize("project", [FREE_LUNCH, VIDEO_DETECTORS], ids=lambda path: path.name)
def test_the_other_projects_plug_in_from_outside(project: Path) -> None:
    others = {FREE_LUNCH, VIDEO_DETECTORS} - {project}
    files = [(PACKAGE, path) for path in FILES]
    files += [(other, path) for other in others for path in sorted(other.rglob("*.py"))]
    offences = [
        f"{path} imports {name}"
        for package, path in files
        for name in imported_modules(path, package)
        if name.split(".")[0] == project.name
    ]
    assert list(project.rglob("*.py")) and not offences


def test_files_are_named_after_what_they_do() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert not [path for path in ALL_FILES if path.stem in drawers]


def test_files_and_functions_stay_short() -> None:
    offences = []
    for path in ALL_FILES:
        text = path.read_text()
        lines = text.count("\n")
        if lines > MOST_LINES_OF_A_FILE:
            offences.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.body[0].lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    offences.append(f"{path}, {node.name}: {lines} lines")
    assert not offences


def test_a_network_is_imported_without_detectron2() -> None:
    program = (
        "import sys, v2idetr.modeling.deformable_detr, v2idetr.distillation.cqd\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith('detectron2')) or 0)"
    )
    paths = os.pathsep.join([str(PACKAGE.parent), str(RUNTIME.parent)])
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


def test_tests_are_found_by_unique_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "two test files of one name"
    assert not list((ROOT / "tests").rglob("__init__.py")), "tests are not a package"


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import v2idetr.data.loader", ["v2idetr.data.loader"]),
        ("from ..data import loader", ["v2idetr.data.loader"]),
        ("from .. import data", ["v2idetr.data"]),
        ("from . import matcher", ["v2idetr.modeling.matcher"]),
        ("def f():\n    from detectron2.config import L", ["detectron2.config.L"]),
    ],
)
def test_every_form_of_import_is_seen(tmp_path: Path, source: str, modules: list[str]) -> None:
    path = tmp_path / "v2idetr" / "modeling" / "network.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert list(imported_modules(path, tmp_path / "v2idetr")) == modules
